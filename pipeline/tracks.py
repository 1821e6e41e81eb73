"""Faces of a video linked over time: which findings are one face, and which of its moments are the best."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.config import VideoConfig
from stages.base import Cut, Detection

SIMILARITY_PX = 16  # thumbnails are compared at this size
NEAR = 0.6  # a face whose box no longer overlaps its place is looked for within this many of its sides
NEAR_SIMILARITY = 0.6  # and must then look like the last thumbnail; two faces of a crowd reach 0.3 to 0.5
FRAMES_PER_SECOND = 25.0  # where a file has no time stamps


@dataclass(frozen=True)
class Shot:
    """One moment of a face.

    Attributes:
        frame, time_s: when. quality: how good a view it is, see `quality_of`.
        detection, cut: where, and its thumbnail.
        grey: whether the frame was grey.
    """

    frame: int
    time_s: float | None
    quality: float
    detection: Detection
    cut: Cut
    grey: bool


@dataclass
class Track:
    """One face over time. At most `keep` shots are held, the best ones; `seen` counts all."""

    keep: int
    first: Shot
    last: Shot
    seen: int = 0
    looks: np.ndarray = field(default_factory=lambda: np.empty(0))
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # px per second
    _best: list[tuple[float, int, Shot]] = field(default_factory=list)

    def add(self, shot: Shot) -> None:
        """The face was seen again."""
        if self.seen and (passed := seconds_between(self.last, shot)) > 0:
            step = (_centre(shot.detection) - _centre(self.last.detection)) / passed
            self.velocity = 0.5 * (self.velocity + step)
        self.seen += 1
        self.last, self.looks = shot, looks_of(shot.cut.pixels)
        entry = (shot.quality, -shot.frame, shot)  # of equal ones the earlier is the better
        if len(self._best) < self.keep:
            heapq.heappush(self._best, entry)
        else:
            heapq.heappushpop(self._best, entry)

    def shots(self) -> list[Shot]:
        """The shots to use, the best first: those of one size, for only they show the same detail. It is the size that
        has the most quality together, so that one larger shot does not cost the many others."""
        ordered = [shot for *_, shot in sorted(self._best, key=lambda e: (-e[0], -e[1]))]
        worth: dict[int, float] = {}
        for shot in ordered:
            worth[len(shot.cut.pixels)] = worth.get(len(shot.cut.pixels), 0.0) + shot.quality
        size = max(worth, key=lambda n: (worth[n], n))
        return [shot for shot in ordered if len(shot.cut.pixels) == size]

    def expected(self, time_s: float) -> np.ndarray:
        """(4,) edges of the box where the face should be at a time."""
        box = np.array(self.last.detection.box_xywh_px, np.float64)
        centre = _centre(self.last.detection) + self.velocity * (time_s - time_of(self.last))
        return np.concatenate([centre - box[2:] / 2, centre + box[2:] / 2])


def time_of(shot: Shot) -> float:
    """Seconds, by the frame number where there is no time stamp."""
    return shot.frame / FRAMES_PER_SECOND if shot.time_s is None else shot.time_s


def seconds_between(earlier: Shot, later: Shot) -> float:
    """Time from one shot to another."""
    return time_of(later) - time_of(earlier)


def quality_of(detection: Detection, side_px: float) -> float:
    """How good a view of the face this is: its size, times how frontal it is, times the detector's score.

    Frontal means that the nose lies between the eyes: 1 there, 0.1 where it is half an eye distance off. 64 px is as
    large as a restorer can use, so more counts no more.
    """
    quality = min(side_px, 64.0) * (1.0 if detection.score is None else max(float(detection.score), 0.01))
    if detection.points_px is None:
        return quality
    right, left, nose = np.asarray(detection.points_px, np.float64)[:3]
    between = left - right
    distance = float(np.hypot(*between))
    if distance < 1e-6:
        return quality * 0.1
    off = abs(float((nose - (right + left) / 2) @ between)) / distance**2  # eye distances along the eye line
    return quality * max(0.1, 1 - 1.8 * off)


def looks_of(pixels: np.ndarray) -> np.ndarray:
    """A thumbnail (n, n, 3) as a unit vector without brightness and contrast, for correlation."""
    n = len(pixels)
    edges = np.linspace(0, n, SIMILARITY_PX + 1).astype(int)
    grey = pixels.astype(np.float64).mean(2)
    rows = np.add.reduceat(grey, edges[:-1], axis=0) / np.diff(edges)[:, None]
    small = np.add.reduceat(rows, edges[:-1], axis=1) / np.diff(edges)[None]
    flat = (small - small.mean()).ravel()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1e-9 else flat


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) of edges."""
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common + 1e-12))


def _centre(detection: Detection) -> np.ndarray:
    box = np.array(detection.box_xywh_px, np.float64)
    return box[:2] + box[2:] / 2


class Tracker:
    """Links shots of frames that come one after the other.

    A shot goes to the track whose expected place it overlaps by `min_iou` and whose last thumbnail it resembles by
    `min_similarity`; the surest pair first, until none is left. Memory: the tracks in sight, `keep` thumbnails each.
    """

    def __init__(self, config: VideoConfig, keep: int) -> None:
        self.config, self.keep = config, keep
        self.tracks: list[Track] = []

    def _fit(self, track: Track, shot: Shot) -> float:
        """How well a shot continues a track; 0 where it does not."""
        place, box = track.expected(time_of(shot)), np.array(shot.detection.box_xywh_px, np.float64)
        iou = overlap(place, np.concatenate([box[:2], box[:2] + box[2:]]))
        similarity = float(track.looks @ looks_of(shot.cut.pixels))
        if iou >= self.config.min_iou and similarity >= self.config.min_similarity:
            return iou + 0.5 * (1 + similarity)
        away = float(np.hypot(*((place[:2] + place[2:]) / 2 - _centre(shot.detection)))) / max(box[2:].max(), 1e-6)
        return 0.5 * (1 + similarity) if away <= NEAR and similarity >= NEAR_SIMILARITY else 0.0

    def add(self, shots: Sequence[Shot], frame: int, time_s: float | None) -> list[Track]:
        """The faces of the next frame; returns the tracks that have ended by then."""
        now = frame / FRAMES_PER_SECOND if time_s is None else time_s
        ended = [t for t in self.tracks if now - time_of(t.last) > self.config.max_gap_s]
        self.tracks = [t for t in self.tracks if now - time_of(t.last) <= self.config.max_gap_s]
        fits = [(-self._fit(t, s), i, j) for i, t in enumerate(self.tracks) for j, s in enumerate(shots)]
        used_tracks: set[int] = set()
        used_shots: set[int] = set()
        for fit, i, j in sorted(fits):
            if fit < 0 and i not in used_tracks and j not in used_shots:
                self.tracks[i].add(shots[j])
                used_tracks.add(i)
                used_shots.add(j)
        for j, shot in enumerate(shots):
            if j not in used_shots:
                track = Track(self.keep, shot, shot)
                track.add(shot)
                self.tracks.append(track)
        return ended

    def finish(self) -> list[Track]:
        """The tracks that are still open; there will be no further frames."""
        ended, self.tracks = self.tracks, []
        return ended


def describe(track: Track, used: Sequence[Shot]) -> dict[str, Any]:
    """What the journal says of a track."""
    return {
        "first_frame": track.first.frame,
        "last_frame": track.last.frame,
        "first_s": None if track.first.time_s is None else round(track.first.time_s, 4),
        "last_s": None if track.last.time_s is None else round(track.last.time_s, 4),
        "seen": track.seen,
        "frames_used": [shot.frame for shot in used],
    }
