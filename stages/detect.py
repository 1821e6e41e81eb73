"""Stage `detect`: whole frames go in, faces in the canonical frame come out, with where they were found."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from landmarks.alignment import canonical_points, invert, similarity, to_canonical, warp
from landmarks.backends import create, model_files, why_unavailable
from landmarks.backends.mtcnn import suppress
from stages.base import ANY_SIDES, Cut, Detection, Opening, Sides, StageConfig
from stages.precision import Precision

Backend = Literal["mtcnn", "dlib", "dlib_cnn", "face_alignment", "boxes"]
# Lowest score taken where the chain names none, on each back end's own scale; see their classes.
LOWEST_SCORE: dict[str, float] = {
    "mtcnn": 0.5, "dlib": 0.0, "dlib_cnn": 0.0, "face_alignment": 0.5, "boxes": float("-inf"),
}  # fmt: skip
# What the back ends are asked for, so that the journal can name what was dropped for its score.
ASKED_SCORE: dict[str, float] = {"mtcnn": 0.4, "dlib": -0.2, "dlib_cnn": -0.2, "face_alignment": 0.3}
# MTCNN's first two thresholds. With the last one at 0.5 they find 95 % (LFW, grey) and 97 % (UTKFace) of 80 faces of
# 16 px after x2 enlargement, with 0.1 false findings a frame of 320x240; the customary 0.6, 0.7, 0.8 find 89 and 94 %
# with none.
MTCNN_FIRST = (0.5, 0.5)
NATIVE_SIZES = (16, 24, 32, 48, 64)  # px; few sizes, so that faces of many frames still fill batches
TILE_PX, OVERLAP_PX = 640, 128  # MTCNN after x2 enlargement takes 0.3 GB for a tile; 0.9 GB for a frame of 1920x1080
SAME_FACE = 0.5  # intersection over union, from which two findings are one face
MOSTLY_OUTSIDE = 0.5  # share of a given box that may lie outside the picture


class DetectConfig(StageConfig):
    """Options of `detect`."""

    backend: Backend = "mtcnn"  # `boxes`: no detector, the file given with --boxes
    upsample: float = Field(default=2, ge=1, le=8)  # enlarge before detection: 2 finds faces of 10 px with MTCNN
    score: float | None = None  # lowest detector score, its own scale; None: 0.5 MTCNN, 0 dlib, 0.5 face_alignment
    select: Literal["all", "largest"] = "all"
    min_px: float = Field(default=10, ge=1)  # side of the canonical crop, px of the frame; smaller faces are dropped
    max_faces: int = Field(default=1000, ge=1)  # per frame, the surest first; bounds memory
    size: Literal["native", 16, 24, 32, 48, 64] = "native"  # px of the thumbnail; native: never above the face's own
    box_scale: float = Field(default=1.0, gt=0, le=4)  # side of the crop over the longer side of its box


def _back_end(config: DetectConfig) -> str:
    """Name in `landmarks.backends`; `dlib_cnn` is dlib."""
    return config.backend.partition("_cnn")[0]


class Detect(Opening[DetectConfig]):
    """Finds faces in frames and cuts them out: a similarity crop where five points are known, else a square.

    Writes `image` and `observed`: (B, 3, n, n) RGB in [0, 1], n = 16 to 64; `to_source`, and for videos `frames`.
    Frames beyond 640 px are searched in overlapping tiles, at full size and at each half of it, so that memory does not
    grow with the frame.
    Method: the back end's, see `landmarks/backends`.
    """

    Config = DetectConfig
    reads: ClassVar[frozenset[str]] = frozenset()
    writes: ClassVar[frozenset[str]] = frozenset({"image", "observed", "to_source", "frames"})
    generative: ClassVar[bool] = False

    def __init__(self, config: DetectConfig, device: torch.device, precision: Precision) -> None:
        """Raises `ValueError` where the back end cannot work on this machine."""
        super().__init__(config, device, precision)
        if not self.reads_boxes and (reason := why_unavailable(_back_end(config))):
            raise ValueError(reason)
        self._detector: Any = None  # made on first use: its sessions must not be carried over a fork
        self._lock = threading.Lock()

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """Only with boxes from a file: every detector here is learned."""
        return isinstance(config, DetectConfig) and config.backend == "boxes"

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        assert isinstance(config, DetectConfig)
        return ANY_SIDES if config.size == "native" else (config.size, config.size)

    @classmethod
    def model_files(cls, config: StageConfig) -> Sequence[Path]:
        assert isinstance(config, DetectConfig)
        return () if config.backend == "boxes" else model_files(_back_end(config))

    @property
    def reads_boxes(self) -> bool:
        """Whether the faces come from a file of boxes."""
        return self.config.backend == "boxes"

    @property
    def lowest_score(self) -> float:
        """Findings below it are dropped."""
        return LOWEST_SCORE[self.config.backend] if self.config.score is None else self.config.score

    def _make(self) -> Any:
        name, asked = self.config.backend, min(ASKED_SCORE.get(self.config.backend, 0), self.lowest_score)
        if name == "mtcnn":
            thresholds = (*MTCNN_FIRST, min(max(asked, 0.01), 0.99))
            return create("mtcnn", upsample=self.config.upsample, thresholds=thresholds, threads=1)
        if name == "face_alignment":
            return create(name, upsample=self.config.upsample, min_score=max(asked, 0.0), device=self.device.type)
        kind = "cnn" if name == "dlib_cnn" else "hog"
        return create("dlib", detector=kind, upsample=self.config.upsample, min_score=asked)

    def find(self, frame: np.ndarray, given: Sequence[Detection] | None = None) -> list[Detection]:
        """Every face of `frame`, (H, W, 3) uint8 RGB, the surest first; with the back end `boxes` those `given`.

        A given box is marked with an error where less than half of it lies inside the picture.
        """
        if self.reads_boxes:
            return [self._checked(d, frame.shape[1], frame.shape[0]) for d in given or ()]
        with self._lock:  # only MTCNN's sessions may be used by two threads at once
            if self._detector is None:
                self._detector = self._make()
            boxes, scores, points = self._search(frame)
        keep = suppress(boxes, scores, SAME_FACE)
        found = []
        for i in keep:
            left, top, right, bottom = (float(edge) + 0.5 for edge in boxes[i])  # edges of the frame at 0
            found.append(Detection((left, top, right - left, bottom - top), float(scores[i]), points[i]))
        return found

    def _search(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 4) edges, (N,) scores and (N, 5, 2) points of all tiles of all sizes, in pixels of the frame."""
        boxes, scores, points = [np.empty((0, 4))], [np.empty(0)], [np.empty((0, 5, 2))]
        level, factors = frame, np.ones(2)
        while True:
            for x0, y0, x1, y1 in _tiles(level.shape[1], level.shape[0]):
                for face in self._detector.detect(np.ascontiguousarray(level[y0:y1, x0:x1])):
                    box = np.asarray(face.bbox, np.float64) + (x0, y0, x0, y0)
                    if _owner(box, level.shape[1], level.shape[0]) == (x0, y0):
                        here = (box.reshape(2, 2) + 0.5) * factors - 0.5
                        boxes.append(here.reshape(1, 4))
                        scores.append(np.array([face.det_score], np.float64))
                        points.append(((np.asarray(face.kps, np.float64) + (x0, y0)) + 0.5)[None] * factors - 0.5)
            if max(level.shape[:2]) <= TILE_PX:
                return np.concatenate(boxes), np.concatenate(scores), np.concatenate(points)
            level = _halved(level)
            factors = np.array([frame.shape[1] / level.shape[1], frame.shape[0] / level.shape[0]])

    @staticmethod
    def _checked(detection: Detection, width: int, height: int) -> Detection:
        if detection.error:
            return detection
        left, top, w, h = detection.box_xywh_px
        inside = max(0.0, min(left + w, width) - max(left, 0)) * max(0.0, min(top + h, height) - max(top, 0))
        if inside >= MOSTLY_OUTSIDE * w * h:
            return detection
        error = f"the box {left:g}, {top:g}, {w:g} x {h:g} lies outside the {width}x{height} px picture"
        return Detection(detection.box_xywh_px, detection.score, None, detection.row, error)

    def choose(
        self, found: Sequence[Detection], size: tuple[int, int]
    ) -> tuple[list[Detection], list[tuple[Detection, str]]]:
        """The faces to go on with, and the others with the reason; those in error are with the former."""
        kept: list[Detection] = []
        dropped: list[tuple[Detection, str]] = []
        for item in found:
            side = self.side_px(item)
            if item.error is not None:
                kept.append(item)
            elif item.score is not None and item.score < self.lowest_score:
                dropped.append((item, f"score {item.score:.3f} is under {self.lowest_score:g}"))
            elif side < self.config.min_px:
                dropped.append((item, f"{side:.1f} px is under min_px {self.config.min_px:g}"))
            else:
                kept.append(item)
        if self.config.select == "largest" and (sound := [d for d in kept if d.error is None]):
            largest = max(sound, key=self.side_px)
            dropped += [(d, "not the largest") for d in sound if d is not largest]
            kept = [d for d in kept if d.error is not None or d is largest]
        dropped += [(d, f"over max_faces {self.config.max_faces}") for d in kept[self.config.max_faces :]]
        return kept[: self.config.max_faces], dropped

    def side_px(self, detection: Detection) -> float:
        """Side of the face's crop in pixels of the frame: what `min_px` is compared with."""
        if detection.points_px is None:
            return max(detection.box_xywh_px[2:]) * self.config.box_scale
        matrix = to_canonical(detection.points_px, 128)
        return float(128 / np.hypot(matrix[0, 0], matrix[1, 0]))

    def cut(self, frame: np.ndarray, detection: Detection) -> Cut:
        """Cut one face out of `frame`, (H, W, 3) RGB uint8; borders are reflected."""
        own, size = self.side_px(detection), self.config.size
        side = max((s for s in NATIVE_SIZES if s <= own), default=NATIVE_SIZES[0]) if size == "native" else size
        matrix = self._matrix(detection, side)
        # Only the neighbourhood is warped: blurring a whole frame for each face would take longer than finding it.
        corners = np.array([(-0.5, -0.5), (side - 0.5, -0.5), (side - 0.5, side - 0.5), (-0.5, side - 0.5)])
        back = invert(matrix)
        there = corners @ back[:, :2].T + back[:, 2]
        margin = 4 + 4 * own / side
        last = np.array([frame.shape[1], frame.shape[0]]) - 1
        x0, y0 = np.clip(np.floor(there.min(0) - margin), 0, last).astype(int)
        x1, y1 = np.clip(np.ceil(there.max(0) + margin), 0, last).astype(int) + 1
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ (x0, y0)
        return Cut(warp(frame[y0:y1, x0:x1], local, side), back)

    def _matrix(self, detection: Detection, side: int) -> np.ndarray:
        """(2, 3) from pixels of the frame to pixels of the crop."""
        if detection.points_px is not None:
            return similarity(np.asarray(detection.points_px, np.float64), canonical_points(side))
        left, top, width, height = detection.box_xywh_px
        factor = side / (max(width, height) * self.config.box_scale)
        centre = np.array([left + width / 2, top + height / 2]) - 0.5  # pixel centres at integers
        shift = (side - 1) / 2 - factor * centre
        return np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])


def _starts(length: int) -> list[int]:
    """First pixels of the tiles along one axis."""
    step = TILE_PX - OVERLAP_PX
    count = max(1, -(-(length - OVERLAP_PX) // step)) if length > TILE_PX else 1
    return [i * step for i in range(count)]


def _tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Overlapping tiles (left, top, right, bottom) that cover a picture."""
    return [(x, y, min(x + TILE_PX, width), min(y + TILE_PX, height)) for y in _starts(height) for x in _starts(width)]


def _owner(box: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """First pixel of the tile that answers for a face: the one in whose inner part the face's centre lies."""
    place = []
    for centre, length in zip((box[:2] + box[2:]) / 2, (width, height), strict=True):
        starts = _starts(length)
        inner = [s for s in starts if s == 0 or centre >= s + OVERLAP_PX / 2]
        place.append(inner[-1])
    return place[0], place[1]


def _halved(picture: np.ndarray) -> np.ndarray:
    """A picture at half its size, by the mean of each 2 x 2 pixels; an odd last row or column is repeated."""
    odd = ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0))
    even = np.pad(picture, odd, mode="edge").astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) // 4).astype(np.uint8)
