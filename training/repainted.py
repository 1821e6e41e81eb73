"""Faces without what they have, painted by the restorer: a mouth without teeth, eyes without glasses, a shaven chin.

Prototypes move and tint what is there; teeth, rims and beards they leave as traces. So those parts are covered and the
restorer, which learned to paint behind covers, says what lies there. That teaches the editor to take off what a
photograph has and, with the photograph as the truth, to put on what is real. Training only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from landmarks.alignment import apply
from stages.attributes import ATTRIBUTES
from stages.consistency import average_to
from stages.networks.coogan import GLOBAL_SIZE
from stages.networks.face_parser import PARSING_CLASSES
from stages.networks.prouigan import INPUT_SIZE, ProUiganNet
from stages.precision import fastest_precision
from training.edit_faces import EditFaces
from training.files import whole_file

SOFT_PX = 7  # over which the painted part fades into the photograph
MOST = 2500  # faces of a part: beyond, there is nothing new in them
CLEARLY = 0.5  # the label from which on there is something to take away; mouths are open from 0 on
LIKE_PAINTED = 32.0  # grey levels between an eye behind a clear lens and its painted one: by eye on 26 faces
_BATCH = 16
_GLASSES = PARSING_CLASSES.index("eyeglasses")
_MOUTH, _NOSE_BASE, _CHIN = [*range(48, 68)], [*range(31, 36)], [*range(3, 14)]
_EYES_AND_BROWS = [*range(17, 27), *range(36, 48)]
# The part painted for each attribute that is taken away, the attribute that says whose part is painted, and from where.
PART_OF = {"mouth_open": "mouth", "smiling": "mouth", "eyeglasses": "glasses", "beard": "chin"}
_TOLD_BY = {"mouth": ("mouth_open", 0.0), "glasses": ("eyeglasses", CLEARLY), "chin": ("beard", CLEARLY)}


@dataclass(frozen=True)
class Paint:
    """A painted part in a frame.

    Attributes:
        picture: (128, 128, 3) uint8. cover: (128, 128) float32 in [0, 1], where it replaces what was there.
    """

    picture: np.ndarray
    cover: np.ndarray

    def moved(self, matrix: np.ndarray) -> "Paint":
        """The same under `matrix` (2, 3), frame to frame."""
        size = (GLOBAL_SIZE, GLOBAL_SIZE)
        picture = cv2.warpAffine(self.picture, matrix, size, borderMode=cv2.BORDER_REFLECT_101)
        return Paint(picture, cv2.warpAffine(self.cover, matrix, size))


def cover_of(part: str, points: np.ndarray, glasses: np.ndarray) -> np.ndarray:
    """(128, 128) bool: what is covered to have a part painted anew.

    Args:
        part: one of the values of `PART_OF`. points: (68, 2) landmarks in the frame.
        glasses: (128, 128) bool, what the parser takes for eyeglasses.
    """
    if part == "mouth":
        return _hull(points[_MOUTH + _NOSE_BASE], 9)
    if part == "chin":
        return _hull(points[_CHIN + _NOSE_BASE], 3)
    apart = float(np.linalg.norm(points[42:48].mean(0) - points[36:42].mean(0)))
    below = points[36:48] + np.array([0, 0.38 * apart])  # as far as lenses reach
    return _hull(np.concatenate([points[_EYES_AND_BROWS], below]), 6) | _grown(glasses.astype(np.uint8), 4)


def seen_through(frame: np.ndarray, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(128, 128) bool: the eyes, where they look in `frame` (128, 128, 3) uint8 about as painted in `picture`: clear
    lenses hide nothing, and no painted eye is as sharp. `points` (68, 2): landmarks in the frame."""
    found = np.zeros((GLOBAL_SIZE, GLOBAL_SIZE), bool)
    apart = np.abs(frame.astype(np.float32) - picture).mean(2)
    for eye in (slice(36, 42), slice(42, 48)):
        if apart[_hull(points[eye], 2)].mean() < LIKE_PAINTED:
            found |= _hull(points[eye], 2 + SOFT_PX // 2)  # what is painted beside it fades this far into it
    return found


def _hull(points: np.ndarray, more: int) -> np.ndarray:
    """(128, 128) bool: the convex hull of points (n, 2), grown by `more` px."""
    drawn = np.zeros((GLOBAL_SIZE, GLOBAL_SIZE), np.uint8)
    cv2.fillConvexPoly(drawn, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    return _grown(drawn, more)


def _grown(drawn: np.ndarray, more: int) -> np.ndarray:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * more + 1, 2 * more + 1))
    return np.asarray(cv2.dilate(drawn, disc)) > 0


def softened(cover: np.ndarray) -> np.ndarray:
    """(128, 128) float32 in [0, 1]: a cover that fades over `SOFT_PX`, from its rim outwards."""
    return cv2.blur(_grown(cover.astype(np.uint8), SOFT_PX // 2).astype(np.float32), (SOFT_PX, SOFT_PX))


@torch.inference_mode()
def behind(restorer: ProUiganNet, frames: Sequence[np.ndarray], covers: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 128, 128, 3) uint8: canonical frames, uint8, as the restorer sees them as thumbnails with those covers."""
    made = [np.zeros((0, GLOBAL_SIZE, GLOBAL_SIZE, 3), np.uint8)]
    in_bf16 = fastest_precision(torch.device("cpu")) == "bf16"
    for start in range(0, len(frames), _BATCH):
        image = torch.from_numpy(np.stack(frames[start : start + _BATCH])).permute(0, 3, 1, 2).float() / 255
        cover = torch.from_numpy(np.stack(covers[start : start + _BATCH]))[:, None].float()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            out = restorer(average_to(image, INPUT_SIZE), (average_to(cover, INPUT_SIZE) > 0).float())
        made.append((out.images[-1].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(made)


@dataclass(frozen=True)
class Repainted:
    """Painted parts of many faces, in the canonical frame.

    Attributes:
        rows: for each part, which row of `pictures` and `covers` each face has, (N,), -1 for none.
        pictures: (M, 128, 128, 3) uint8. covers: (M, 128, 128) bool.
    """

    rows: Mapping[str, np.ndarray]
    pictures: np.ndarray
    covers: np.ndarray

    @staticmethod
    def none() -> "Repainted":
        """No part of any face."""
        side = GLOBAL_SIZE
        return Repainted({}, np.zeros((0, side, side, 3), np.uint8), np.zeros((0, side, side), bool))

    def having(self, attribute: str) -> np.ndarray:
        """The faces of which something was painted that takes the attribute away."""
        rows = self.rows.get(PART_OF.get(attribute, ""))
        return np.zeros(0, int) if rows is None else np.flatnonzero(rows >= 0)

    def of(self, attribute: str, face: int) -> Paint:
        """What to lay on `face`, one of `having`, to take the attribute away."""
        row = int(self.rows[PART_OF[attribute]][face])
        return Paint(self.pictures[row], softened(self.covers[row]))


def repaint(faces: EditFaces, restorer: ProUiganNet, made_by: str, path: Path) -> Repainted:
    """Paint the parts of all faces that have them, evenly over the sets; kept in `path`.

    `made_by` tells one restorer's weights from another's.
    """
    if path.exists():
        kept = np.load(path, allow_pickle=False)
        if str(kept["made_by"]) == made_by and np.array_equal(kept["ids"], faces.ids):
            covers = np.unpackbits(kept["covers"], axis=-1).astype(bool)
            return Repainted({part: kept[part] for part in _TOLD_BY}, kept["pictures"], covers)
    made = _repainted(faces, restorer)
    arrays: dict[str, Any] = {"made_by": made_by, "ids": faces.ids, "pictures": made.pictures, **made.rows}
    with whole_file(path) as file:
        np.savez(file, covers=np.packbits(made.covers, axis=-1), **arrays)
    return made


def _repainted(faces: EditFaces, restorer: ProUiganNet) -> Repainted:
    rows: dict[str, np.ndarray] = {}
    frames: list[np.ndarray] = []
    points: list[np.ndarray] = []
    covers: list[np.ndarray] = []
    usable = np.isfinite(faces.landmarks).all((1, 2)) & ~faces.validation
    for part, (attribute, least) in _TOLD_BY.items():
        chosen = np.flatnonzero(usable & (faces.labels[:, ATTRIBUTES.index(attribute)] > least))
        chosen = chosen[:: max(1, -(-len(chosen) // MOST))]
        rows[part] = np.full(len(faces), -1)
        rows[part][chosen] = len(frames) + np.arange(len(chosen))
        for i in map(int, chosen):
            frame = faces.frame_matrix(i)
            worn = (faces.class_map(i) == _GLASSES).astype(np.float32)
            glasses = cv2.warpAffine(worn, faces.map_matrix(i, frame), (GLOBAL_SIZE, GLOBAL_SIZE)) > 0.5
            frames.append(faces.frame(i))
            points.append(apply(frame, faces.landmarks[i].astype(np.float64)))
            covers.append(cover_of(part, points[-1], glasses))
    pictures = behind(restorer, frames, covers)
    for row in rows["glasses"][rows["glasses"] >= 0]:
        covers[row] &= ~seen_through(frames[row], pictures[row], points[row])
    return Repainted(rows, pictures, np.stack(covers) if covers else np.zeros(pictures.shape[:-1], bool))
