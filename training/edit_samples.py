"""What the editor is trained on: faces with labels, and edits of them with a known answer.

An edit's answer is another picture of an invented person (`omi_pairs`), or is laid on by `training.prototypes`. Half of
those run backwards: the laid-on face goes in, the photograph is the truth. Each sample brings the region of its edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from landmarks.alignment import apply
from landmarks.scheme import MIRROR
from stages.attributes import ATTRIBUTES, HAIR_COLOURS
from stages.coogan import region_where
from stages.networks.classifier import TraitNet
from stages.networks.coogan import GLOBAL_SIZE
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.trait_labels import read_columns
from training.attribute_labels import colour_of, label_of_answer, labels_of_row
from training.faces import PACK_SIZE, Pack
from training.files import whole_file
from training.hr_faces import HrPack
from training.parsing_labels import parsed, parsed_glasses
from training.prototypes import (
    Glasses,
    Prototype,
    any_glasses,
    draw_glasses,
    fit_prototype,
    moved,
    prototype_edit,
    recoloured,
)  # fmt: skip

MAP_SIZE, PARSED_PX = 72, 144  # px, side of a class map of a large face, and of the picture it is made from
SHAPED = ("smiling", "age", "masculine", "mouth_open", "beard")  # edited by prototypes
PROTOTYPE_FACES = 300  # a side: means change little beyond
_HAIR = PARSING_CLASSES.index("hair")
# Labels that count as without and with an attribute. For age: 17 to 33 years, and from 56 on.
_SIDES = {"age": ((-0.8, -0.16), (0.76, 1.01))}
_CLEAR = ((-1.01, -0.7), (0.7, 1.01))
# How far past the mean difference an edit goes, so that it shows on faces that have less of it than most: by eye.
EXAGGERATION = {"smiling": 1.1, "age": 1.5, "masculine": 1.5, "mouth_open": 0.9, "beard": 1.5}


@dataclass(frozen=True)
class EditFaces:
    """Faces of several packs under one number.

    Attributes:
        packs: where the pictures are. maps: class maps of each pack, (n, m, m) uint8 over the stored picture, 255
            unknown. which, row: (N,) pack and row of each face.
        labels: (N, A) float32 for all `ATTRIBUTES`, NaN where unknown. sides, stored, landmarks, ids, sets, validation:
            as in `HrPack`.
    """

    packs: Sequence[HrPack]
    maps: Sequence[np.ndarray]
    which: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    sides: np.ndarray
    stored: np.ndarray
    landmarks: np.ndarray
    ids: np.ndarray
    sets: np.ndarray
    validation: np.ndarray

    @staticmethod
    def of(packs: Sequence[HrPack], maps: Sequence[np.ndarray]) -> "EditFaces":
        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(p, name) for p in packs])

        names = ("labels", "sides", "stored", "landmarks", "ids", "sets", "validation")
        return EditFaces(
            packs, maps,
            which=np.concatenate([np.full(len(p), i) for i, p in enumerate(packs)]),
            row=np.concatenate([np.arange(len(p)) for p in packs]),
            **{n: joined(n) for n in names},
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.which)

    def picture(self, index: int) -> np.ndarray:
        """(stored, stored, 3) uint8 RGB."""
        return self.packs[self.which[index]].picture(int(self.row[index]))

    def class_map(self, index: int) -> np.ndarray:
        """(m, m) uint8 over the stored picture."""
        return self.maps[self.which[index]][self.row[index]]

    def frame_matrix(self, index: int) -> np.ndarray:
        """(2, 3) from the stored picture to the canonical 128 px frame."""
        stored, side = int(self.stored[index]), int(self.sides[index])
        scale = GLOBAL_SIZE / side
        shift = (GLOBAL_SIZE - 1) / 2 - scale * (stored - 1) / 2
        return np.array([[scale, 0, shift], [0, scale, shift]])

    def frame(self, index: int) -> np.ndarray:
        """(128, 128, 3) uint8: the canonical frame."""
        return warped(self.picture(index), self.frame_matrix(index), (GLOBAL_SIZE, GLOBAL_SIZE))


def warped(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: `picture` resampled by `matrix` (picture -> result), averaged first where it is reduced."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    factor = int(1 / scale) if scale <= 0.5 else 1
    if factor > 1:  # whole cells are averaged; what is left is less than an octave
        side = picture.shape[0] // factor
        picture = cv2.resize(picture[: side * factor, : side * factor], (side, side), interpolation=cv2.INTER_AREA)
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.full(2, 0.5 * factor - 0.5)
        matrix[:, :2] *= factor
        scale *= factor
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(picture, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)


# ---- labels


def small_faces(pack: Pack, maps: np.ndarray, sources: Sequence[Path], most: int) -> tuple[HrPack, np.ndarray]:
    """At most `most` faces of each set of the restorer's pack, evenly over it, with labels; and their class maps."""
    rows = {p.stem: read_columns(p) for p in sources if p.is_file()}
    usable = np.isfinite(pack.landmarks).all((1, 2))
    chosen = np.sort(np.concatenate([_evenly(np.flatnonzero(usable & (pack.sets == s)), most) for s in rows]))
    labels = np.full((len(chosen), len(ATTRIBUTES)), np.nan, np.float32)
    glasses = 2 * parsed_glasses(maps[chosen]) - 1
    for n, i in enumerate(chosen):
        name = str(pack.sets[i])
        row = {k: v for k, v in rows[name].get(str(pack.ids[i]), {}).items() if v is not None}
        labels[n] = labels_of_row(row | {"landmarks": pack.landmarks[i].ravel()}, name)
    column = ATTRIBUTES.index("eyeglasses")
    labels[:, column] = np.where(np.isfinite(labels[:, column]), labels[:, column], glasses)
    area = 3 * PACK_SIZE * PACK_SIZE
    count = len(chosen)
    small = HrPack(
        pixels=pack.images.reshape(-1), offsets=chosen.astype(np.int64) * area, stored=np.full(count, PACK_SIZE),
        sides=np.full(count, GLOBAL_SIZE), landmarks=pack.landmarks[chosen], labels=labels, ids=pack.ids[chosen],
        sets=pack.sets[chosen], validation=pack.validation[chosen],
        restored=np.zeros((0, GLOBAL_SIZE, GLOBAL_SIZE, 3), np.uint8), restored_of=np.full(count, -1),
    )  # fmt: skip
    return small, maps[chosen]


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[(np.arange(most) * (len(rows) / most)).astype(int)]


def class_maps(pack: HrPack, path: Path, parser: FaceParser) -> np.ndarray:
    """(N, 72, 72) uint8 class maps over the stored pictures of a pack, kept in `path`."""
    if path.exists():
        return np.load(path)
    made = []
    for start in range(0, len(pack), 16):
        size = (PARSED_PX, PARSED_PX)
        pictures = [cv2.resize(pack.picture(i), size, interpolation=cv2.INTER_AREA)
                    for i in range(start, min(start + 16, len(pack)))]  # fmt: skip
        made.append(parsed(parser, np.stack(pictures), PARSED_PX // MAP_SIZE)[0])
    maps = np.concatenate(made)
    with whole_file(path) as file:
        np.save(file, maps)
    return maps


def hair_labels(faces: EditFaces) -> None:
    """Fill in the hair colours of coloured pictures from the pixels that are hair; the rule is CelebAMask-HQ's."""
    columns = [ATTRIBUTES.index(c) for c in HAIR_COLOURS]
    for i in range(len(faces)):
        classes = faces.class_map(i)
        picture = cv2.resize(faces.picture(i), classes.shape[::-1], interpolation=cv2.INTER_AREA)
        if is_grey(picture):
            faces.labels[i, columns] = np.nan
        elif (colour := colour_of(picture, classes == _HAIR)) is not None:
            faces.labels[i, columns] = [1.0 if f"hair_{colour}" == c else -1.0 for c in HAIR_COLOURS]


def is_grey(picture: np.ndarray) -> bool:
    """Whether a picture (h, w, 3) uint8 has no colour."""
    return float(np.abs(picture.astype(np.float32) - picture.mean(2, keepdims=True)).mean()) < 1


@torch.inference_mode()
def taught(faces: EditFaces, teacher: TraitNet) -> np.ndarray:
    """(N, A) the classifier's answers as labels, NaN for what it does not read."""
    parameter = next(teacher.parameters())
    answers = np.full((len(faces), len(ATTRIBUTES)), np.nan, np.float32)
    for start in range(0, len(faces), 32):
        rows = range(start, min(start + 32, len(faces)))
        picture = torch.from_numpy(np.stack([faces.frame(i) for i in rows])).permute(0, 3, 1, 2)
        image = (picture.to(parameter.device).to(parameter.dtype) / 255).contiguous(memory_format=torch.channels_last)
        for name, found in teacher(image).items():
            if name in ATTRIBUTES:
                answers[list(rows), ATTRIBUTES.index(name)] = label_of_answer(name, found.float()).cpu().numpy()
    return answers


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
        where, colour: as of `prototype_edit`, (128, 128, 2) px of the frame and (128, 128, 3); None where the edit has
            none. glasses: eyeglasses to draw.
    """

    where: np.ndarray | None = None
    colour: np.ndarray | None = None
    glasses: Glasses | None = None

    def on_part(self, part: np.ndarray, place: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The edited `part` (h, w, 3) uint8 of a face at full size; `place` (2, 3) maps its pixels to the frame, by a
        scale and a shift; `points` (68, 2), the face's landmarks, in the frame."""
        if self.glasses is not None:
            return draw_glasses(part, (points - place[:, 2]) / place[0, 0], self.glasses)
        size, inverse = part.shape[1::-1], cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        out = part.astype(np.float32)
        if self.where is not None:
            y, x = np.mgrid[:GLOBAL_SIZE, :GLOBAL_SIZE].astype(np.float32)
            shift = (self.where - np.stack([x, y], -1)) / np.float32(place[0, 0])
            shift = cv2.warpAffine(shift, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE)
            y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
            out = moved(out, shift + np.stack([x, y], -1))
        if self.colour is not None:
            colour = self.colour.astype(np.float32)
            out = out + cv2.warpAffine(colour, place, size, flags=inverse, borderMode=cv2.BORDER_REPLICATE)
        return np.round(np.clip(out, 0, 255)).astype(np.uint8)


def laid_on(
    name: str, amount: float, face: np.ndarray, points: np.ndarray, hair: np.ndarray,
    prototypes: Mapping[str, Prototype], rng: np.random.Generator | None = None,
) -> LaidOn | None:  # fmt: skip
    """The edit that changes the label of attribute `name` by `amount`; None where nothing can be laid on.

    Args:
        face: (128, 128, 3) uint8 frame. points: (68, 2) in it. hair: (128, 128) float32 in [0, 1].
        rng: for eyeglasses of any kind; always the same kind without.
    """
    if name == "eyeglasses":
        return LaidOn(glasses=Glasses() if rng is None else any_glasses(rng)) if amount > 0 else None
    if name in HAIR_COLOURS:
        if amount <= 0 or hair.mean() < 0.04 or is_grey(face):
            return None
        return LaidOn(colour=recoloured(face, hair, name))
    if name not in prototypes or not np.isfinite(points).all():
        return None
    where, colour = prototype_edit(prototypes[name], points, amount * EXAGGERATION[name])
    if is_grey(face):
        colour = np.repeat(colour.mean(2, keepdims=True), 3, 2)
    return LaidOn(where, colour)


def mirrored_points(points: np.ndarray) -> np.ndarray:
    """Landmarks (68, 2) of the mirrored frame, each point again where its number says."""
    flipped = points[MIRROR].copy()
    flipped[:, 0] = GLOBAL_SIZE - 1 - flipped[:, 0]
    return flipped


def tensor_of(pictures: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """(B, 3, h, w) float32 in [0, 1] of (h, w, 3) uint8 pictures."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device).float() / 255
