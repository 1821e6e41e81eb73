"""Edits of faces with a known answer, which the editor is trained on.

An edit's answer is another picture of an invented person (`omi_pairs`), or is laid on: by `training.prototypes` or,
where something is taken away, by what the restorer paints there (`training.repainted`). Some of those run backwards:
the laid-on face goes in, the photograph is the truth. Each sample brings the region of its edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from landmarks.alignment import apply
from landmarks.scheme import MIRROR
from stages.attributes import ATTRIBUTES, HAIR_COLOURS
from stages.coogan import region_where
from stages.networks.coogan import GLOBAL_SIZE
from stages.networks.face_parser import PARSING_CLASSES
from training.edit_faces import EditFaces, is_grey
from training.prototypes import (
    Glasses,
    Prototype,
    any_glasses,
    draw_glasses,
    fit_prototype,
    moved,
    prototype_edit,
    recoloured,
    relit,
)  # fmt: skip
from training.repainted import Paint

SHAPED = ("smiling", "age", "masculine", "mouth_open", "beard")  # edited by prototypes
PROTOTYPE_FACES = 300  # a side: means change little beyond
# Labels that count as without and with an attribute. For age: 17 to 33 years, and from 56 on.
_SIDES = {"age": ((-0.8, -0.16), (0.76, 1.01))}
_CLEAR = ((-1.01, -0.7), (0.7, 1.01))
# How far past the mean difference an edit goes, so that it shows on faces that have less of it than most: by eye.
EXAGGERATION = {"smiling": 1.1, "age": 1.5, "masculine": 1.5, "mouth_open": 0.9, "beard": 1.3}


def fit_prototypes(faces: EditFaces, names: Sequence[str], seed: int) -> dict[str, Prototype]:
    """Prototypes of those attributes of `names` that are edited by shape; faces of both sides of each set, gender
    (or smile) weigh alike, so that what goes with an attribute in one set only does not enter."""
    rng = np.random.default_rng(seed)
    usable = ~faces.validation & np.isfinite(faces.landmarks).all((1, 2)) & (faces.sets != "omi_pairs")
    glasses = faces.labels[:, ATTRIBUTES.index("eyeglasses")]
    found = {}
    for name in (n for n in SHAPED if n in names):
        label = faces.labels[:, ATTRIBUTES.index(name)]
        other = faces.labels[:, ATTRIBUTES.index("smiling" if name == "masculine" else "masculine")]
        low, high = _SIDES.get(name, _CLEAR)
        side = np.where(
            (label >= low[0]) & (label <= low[1]), 0, np.where((label >= high[0]) & (label <= high[1]), 1, 2)
        )
        group = np.array([f"{s}{np.sign(np.nan_to_num(o)):.0f}" for s, o in zip(faces.sets, other, strict=True)])
        fit = usable & (side < 2) & ~(glasses > 0)
        picked, weights = [], []
        for g in np.unique(group[fit]):
            members = [np.flatnonzero(fit & (group == g) & (side == s)) for s in (0, 1)]
            mass = min(len(m) for m in members)
            for m in members:
                if mass >= 8:
                    taken = rng.permutation(m)[: max(8, PROTOTYPE_FACES * mass // max(1, int(fit.sum()) // 3))]
                    picked.append(taken)
                    weights.append(np.full(len(taken), mass / len(taken)))
        if not picked:
            continue
        rows, weight = np.concatenate(picked), np.concatenate(weights)
        shapes = np.stack([apply(faces.frame_matrix(i), faces.landmarks[i].astype(np.float64)) for i in rows])
        is_high = side[rows] == 1
        span = np.average(label[rows][is_high], weights=weight[is_high]) - np.average(
            label[rows][~is_high], weights=weight[~is_high]
        )
        found[name] = fit_prototype([faces.frame(i) for i in rows], shapes, is_high, weight, float(span))
    return found


# ---- regions


def region_of(classes: np.ndarray, matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(128, 128) uint8: where edits of `names` may act, as `stages.coogan.region_where` says, from a class map.

    `matrix` (2, 3) maps pixels of the class map to the frame.
    """

    def mass(parts: Sequence[str]) -> Tensor:
        found = np.isin(classes, [PARSING_CLASSES.index(p) for p in parts]).astype(np.float32)
        in_frame = cv2.warpAffine(found, matrix, (GLOBAL_SIZE, GLOBAL_SIZE), borderMode=cv2.BORDER_REFLECT_101)
        return torch.from_numpy(in_frame)[None, None]

    return np.asarray((region_where(mass, names)[0, 0] * 255).round().byte())


# ---- edits with an answer


@dataclass(frozen=True)
class LaidOn:
    """An edit that is laid on a face, before it is drawn at some size.

    Attributes:
        paint: what is painted over the face, before all else; None where the edit has none, as of the others.
        where, ratio: as of `prototype_edit`, (128, 128, 2) px of the frame and (128, 128, 3).
        colour: to add, (128, 128, 3) in 0-255.
        glasses: eyeglasses to draw, and how much of them, 0 to 1.
    """

    paint: Paint | None = None
    where: np.ndarray | None = None
    ratio: np.ndarray | None = None
    colour: np.ndarray | None = None
    glasses: tuple[Glasses, float] | None = None

    def aligned(self, place: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(height, width) float32 in [0, 1]: where the edit leaves all that it does not replace in its place.

        `size` is (width, height) of a part as `on_part` takes it.
        """
        if self.where is None:
            return np.ones(size[::-1], np.float32)
        if self.paint is None:
            return np.zeros(size[::-1], np.float32)
        return cv2.warpAffine(self.paint.cover, place, size, flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)

    def on_part(self, part: np.ndarray, place: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The edited `part` (h, w, 3) uint8 of a face at full size; `place` (2, 3) maps its pixels to the frame, by a
        scale and a shift; `points` (68, 2), the face's landmarks, in the frame."""
        if self.glasses is not None:
            kind, share = self.glasses
            worn = draw_glasses(part, (points - place[:, 2]) / place[0, 0], kind)
            return cv2.addWeighted(worn, share, part, 1 - share, 0)
        size, inverse = part.shape[1::-1], cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        out = part.astype(np.float32)
        if self.paint is not None:
            picture = cv2.warpAffine(self.paint.picture, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE)
            cover = cv2.warpAffine(self.paint.cover, place, size, flags=inverse)[..., None]
            out = out + (picture - out) * cover
        if self.where is not None:
            y, x = np.mgrid[:GLOBAL_SIZE, :GLOBAL_SIZE].astype(np.float32)
            shift = (self.where - np.stack([x, y], -1)) / np.float32(place[0, 0])
            shift = cv2.warpAffine(shift, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE)
            y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
            out = moved(out, shift + np.stack([x, y], -1), cv2.INTER_LANCZOS4)  # bilinear takes the grain away
        if self.ratio is not None:
            ratio = self.ratio.astype(np.float32)
            out = relit(out, cv2.warpAffine(ratio, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE))
        if self.colour is not None:
            colour = self.colour.astype(np.float32)
            out = out + cv2.warpAffine(colour, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE)
        return np.round(np.clip(out, 0, 255)).astype(np.uint8)


def laid_on(
    name: str, amount: float, face: np.ndarray, points: np.ndarray, hair: np.ndarray,
    prototypes: Mapping[str, Prototype], rng: np.random.Generator | None = None, paint: Paint | None = None,
) -> LaidOn | None:  # fmt: skip
    """The edit that changes the label of attribute `name` by `amount`; None where nothing can be laid on.

    Args:
        face: (128, 128, 3) uint8 frame. points: (68, 2) in it. hair: (128, 128) float32 in [0, 1].
        rng: for eyeglasses of any kind; always the same kind without.
        paint: of the face without what `name` takes away (`Repainted.of`), in the frame.
    """
    if paint is not None and name != "smiling":
        return LaidOn(paint)
    if name == "eyeglasses":
        share = min(1.0, amount / 2)  # from clearly none to clearly there
        return LaidOn(glasses=(Glasses() if rng is None else any_glasses(rng), share)) if amount > 0 else None
    if name in HAIR_COLOURS:
        if amount <= 0 or hair.mean() < 0.04 or is_grey(face):
            return None
        return LaidOn(colour=recoloured(face, hair, name))
    if name not in prototypes or not np.isfinite(points).all():
        return None
    where, ratio = prototype_edit(prototypes[name], points, amount * EXAGGERATION[name])
    if is_grey(face):
        ratio = np.repeat(ratio.mean(2, keepdims=True), 3, 2)
    if paint is not None:  # a mouth without teeth: its shape is all that still smiles
        return LaidOn(paint, where)
    return LaidOn(where=where, ratio=ratio)


def mirrored_points(points: np.ndarray) -> np.ndarray:
    """Landmarks (68, 2) of the mirrored frame, each point again where its number says."""
    flipped = points[MIRROR].copy()
    flipped[:, 0] = GLOBAL_SIZE - 1 - flipped[:, 0]
    return flipped


def tensor_of(pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """(B, 3, h, w) float32 in [0, 1] of (h, w, 3) uint8 pictures."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device).float() / 255
