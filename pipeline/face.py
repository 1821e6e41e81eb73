"""A face on its way into a batch, and where it was cut out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.images import Picture, pixels_sha256
from stages.base import Detection


@dataclass(frozen=True)
class Origin:
    """Where a face lies in its input.

    Attributes:
        index: number of the face within the input, from 0: `face` in the journal, and in the name of its files.
        detection: box, score and points in the frame.
        to_source: (2, 3) from pixels of the cut thumbnail to pixels of the frame.
        frame_size: (height, width) of the frame.
        frame, time_s: number of the frame (from 0) and its time stamp in seconds; None for pictures.
        track: of a video, plain values: first and last frame, how often seen, frames used.
    """

    index: int
    detection: Detection
    to_source: np.ndarray
    frame_size: tuple[int, int]
    frame: int | None = None
    time_s: float | None = None
    track: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """What the journal says of it."""
        points = self.detection.points_px
        said: dict[str, Any] = {
            **place(self.detection),
            "points_px": None if points is None else np.round(np.asarray(points, np.float64), 2).tolist(),
            "frame_size": list(self.frame_size),
        }
        if self.frame is not None:
            said |= {"frame": self.frame, "time_s": None if self.time_s is None else round(self.time_s, 4)}
        return said if self.track is None else said | {"track": self.track}


def place(detection: Detection) -> dict[str, Any]:
    """Box and score of a detection for the journal."""
    score = detection.score
    return {
        "box_xywh_px": [round(float(v), 2) for v in detection.box_xywh_px],
        "score": None if score is None else round(float(score), 4),
    }


@dataclass(frozen=True)
class Face:
    """A decoded input, or a face cut out of one, on its way into a batch.

    Attributes:
        source: name of the input.
        picture: decoded, square where the chain takes face crops.
        digest: SHA-256 of the input's content.
        mask: (H, W) float32 in [0, 1], 1 = covered; None = blind.
        origin: where it was cut out; None for an input that is a face crop itself.
        frames: (N, H, W, 3) uint8, the face at up to N moments of a video, `picture` first; None for pictures.
    """

    source: str
    picture: Picture
    digest: str
    mask: np.ndarray | None = None
    origin: Origin | None = None
    frames: np.ndarray | None = None

    @property
    def side_px(self) -> int:
        """Shorter side of the face crop in the pixels of its input: what was there before anything was enlarged."""
        side = min(self.picture.notes.get("padded_from_px", self.picture.pixels.shape[:2]))
        return side if self.origin is None else round(side * float(np.hypot(*self.origin.to_source[:, 0])))

    @property
    def group(self) -> tuple[int, int, bool, int]:
        """Faces of one group fit into one batch."""
        frames = 0 if self.frames is None else len(self.frames)
        return (*self.picture.pixels.shape[:2], self.mask is not None, frames)

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of what the network sees: of the input, or of the pixels cut out of it."""
        if self.origin is None:
            return self.digest
        pixels = self.picture.pixels if self.frames is None else self.frames
        return pixels_sha256(pixels)
