"""The faces that the editor is trained on: pictures of several packs, with class maps and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from stages.attributes import ATTRIBUTES, HAIR_COLOURS
from stages.networks.classifier import TraitNet
from stages.networks.coogan import GLOBAL_SIZE
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.trait_labels import read_columns
from training.attribute_labels import colour_of, label_of_answer, labels_of_row
from training.faces import PACK_SIZE, Pack
from training.files import whole_file
from training.hr_faces import HrPack
from training.parsing_labels import parsed, parsed_glasses

MAP_SIZE, PARSED_PX = 72, 144  # px, side of a class map of a large face, and of the picture it is made from
_HAIR = PARSING_CLASSES.index("hair")


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

    def map_matrix(self, index: int, matrix: np.ndarray) -> np.ndarray:
        """(2, 3) from the class map to wherever `matrix` (2, 3) takes the stored picture."""
        step = int(self.stored[index]) / self.class_map(index).shape[0]
        found = matrix.copy()
        found[:, 2] += found[:, :2] @ np.full(2, 0.5 * step - 0.5)
        found[:, :2] *= step
        return found

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
