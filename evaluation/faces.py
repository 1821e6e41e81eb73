"""Faces to measure with: the validation part of Parquet sets, in the canonical frame, and thumbnails of them."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from landmarks.alignment import CANONICAL_SIZE, apply, to_canonical, warp
from landmarks.scheme import POINT_COUNT
from pipeline.images import ImageError, Limits, as_unit, open_header, pixels_of, to_uint8

VALIDATION_LIST = Path(__file__).resolve().parent.parent / "training" / "validation_ids.txt"
THUMBNAIL_SIZE = 16
PERSON_COLUMN = "identity"  # where a set has it, a split goes by person
# Eye centres, nose tip, mouth corners of scikit-image's astronaut, (x, y) px of the 512 px picture, by eye.
ASTRONAUT_FIVE = np.array([(203, 101), (247, 103), (225, 127), (205, 142), (243, 142)], np.float64)

_T = TypeVar("_T")


@dataclass(frozen=True)
class EvaluationFace:
    """One face in the canonical frame.

    Attributes:
        id: of the picture. group: the person where known, else the id. set: name of its Parquet file.
        image: (128, 128, 3) uint8 RGB; what lies outside the source picture is reflected.
        landmarks: (68, 2) float64 px of `image`, by dlib on the original; None for pictures without.
        labels: further columns of the set (age, gender, ...), None left out.
        parsing: (128, 128) uint8 class map in CelebAMask-HQ order, where the set has masks.
    """

    id: str
    group: str
    set: str
    image: np.ndarray
    landmarks: np.ndarray | None
    labels: dict[str, Any]
    parsing: np.ndarray | None = None

    @property
    def rng(self) -> np.random.Generator:
        """A generator that depends on nothing but the id, so that order and selection change no degradation."""
        return np.random.default_rng(int(_digest(self.id)[:16], 16))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def decode(data: bytes) -> np.ndarray:
    """Encoded picture -> (H, W, 3) uint8 RGB, EXIF rotation applied; every mode and depth as the pipeline reads it.

    A near-grey picture is not made grey, as the pipeline makes its inputs: this is the truth they are held against.

    Raises:
        ValueError: damaged, or no picture that the pipeline takes.
    """
    try:
        pixels, _ = pixels_of(open_header(data, "", Limits(min_side_px=1)))
    except ImageError as error:
        raise ValueError(f"unreadable picture: {error}") from error
    return to_uint8(as_unit(pixels))


def canonical_face(picture: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the canonical frame from a picture with (68, 2) landmarks; returns the 128 px crop and the points in it."""
    matrix = to_canonical(landmarks)
    return warp(picture, matrix, CANONICAL_SIZE), apply(matrix, landmarks)


def canonical_classes(data: bytes, size: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """Encoded class map of a picture of `size` (height, width) -> (128, 128) uint8 canonical, classes never mixed."""
    classes = cv2.resize(np.asarray(Image.open(io.BytesIO(data))), size[::-1], interpolation=cv2.INTER_NEAREST)
    matrix, side = to_canonical(landmarks), (CANONICAL_SIZE, CANONICAL_SIZE)
    return cv2.warpAffine(classes, matrix, side, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)


def central_square(picture: np.ndarray, size: int = CANONICAL_SIZE) -> np.ndarray:
    """The picture as it was found: its largest central square at `size` px. Nothing is reflected into it."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    shift = (size - 1) / 2 - scale * np.array([(width - 1) / 2, (height - 1) / 2])
    return warp(picture, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), size)


def read_validation_list(path: Path = VALIDATION_LIST) -> frozenset[str]:
    """Ids and people never trained on, one a line."""
    return frozenset(path.read_text(encoding="utf-8").split())


def load_faces(
    path: Path, listed: frozenset[str], validation: bool = True, limit: int | None = None, as_found: bool = False,
    by_person: bool = False,
) -> list[EvaluationFace]:  # fmt: skip
    """Faces of one Parquet file, the same ones whatever the order of its rows: those whose id hashes lowest.

    Args:
        path: columns `id`, `image` (encoded bytes), `landmarks` (136 floats or null), optional `identity` and labels.
        listed: the validation list. validation: take what is in it, else what is not.
        limit: at most this many.
        as_found: the central square of the picture instead of the canonical crop; landmarks are then None.
        by_person: the people whose name hashes lowest, with all their faces, so that a limit leaves second pictures.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the canonical crop is asked for and a row has no landmarks; or its picture is unreadable.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"evaluation data: {path} does not exist")
    names = pq.ParquetFile(path).schema_arrow.names
    person = PERSON_COLUMN if PERSON_COLUMN in names else "id"
    keys = pq.read_table(path, columns=["id", person]).to_pydict()
    rows = [i for i, group in enumerate(keys[person]) if (str(group) in listed) == validation]
    order = [(_digest(str(keys[person][i])) if by_person else "", _digest(str(keys["id"][i])), i) for i in rows]
    rows = [i for _, _, i in sorted(sorted(order)[:limit], key=lambda entry: entry[1])]
    small = [n for n in names if n not in ("descriptor", "detector_score", "size", *(["mask"] if as_found else []))]
    table = pq.read_table(path, columns=small).take(rows)
    return [_face(row, path.stem, str(row[person]), as_found) for row in table.to_pylist()]


def _face(row: dict[str, Any], set_name: str, group: str, as_found: bool) -> EvaluationFace:
    try:
        picture = decode(row["image"])
    except ValueError as error:
        raise ValueError(f"{set_name}: face {row['id']}: {error}") from error
    labels = {k: v for k, v in row.items() if k not in ("id", "image", "landmarks", "mask") and v is not None}
    points: np.ndarray | None = None
    parsing: np.ndarray | None = None
    if as_found:
        crop = central_square(picture)
    elif row["landmarks"] is None:
        raise ValueError(
            f"{set_name}: face {row['id']} has no landmarks, so it has no canonical frame; load it as found"
        )
    else:
        given = np.asarray(row["landmarks"], np.float64).reshape(POINT_COUNT, 2)
        crop, points = canonical_face(picture, given)
        parsing = canonical_classes(row["mask"], picture.shape[:2], given) if row.get("mask") is not None else None
    return EvaluationFace(str(row["id"]), group, set_name, crop, points, labels, parsing)


def example_faces() -> list[np.ndarray]:
    """Faces anyone may use, uint8 RGB 128x128 canonical: the astronaut and the hundred of scikit-image's LFW subset."""
    from skimage import data

    small = data.lfw_subset()[:100]  # (100, 25, 25) in [0, 1]; the other hundred are no faces
    return [warp(data.astronaut(), to_canonical(ASTRONAUT_FIVE), CANONICAL_SIZE)] + [
        bicubic(to_uint8(face)) for face in small
    ]


def large_faces(path: Path, size: int, limit: int, enlarged: bool = False) -> list[np.ndarray]:
    """Canonical crops of `size` px, (size, size, 3) uint8, of the first held-out faces of a Parquet file.

    Args:
        limit: at most this many. enlarged: also those whose picture does not resolve `size`, which have no truth there.

    Raises:
        ValueError: a picture is unreadable.
    """
    import pyarrow.parquet as pq

    listed, faces = read_validation_list(), []
    for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=["id", "image", "landmarks"]):
        for row in batch.to_pylist():
            if str(row["id"]) not in listed or row["landmarks"] is None:
                continue
            matrix = to_canonical(np.asarray(row["landmarks"], np.float64).reshape(POINT_COUNT, 2), size)
            if not enlarged and np.hypot(matrix[0, 0], matrix[1, 0]) > 1:
                continue
            faces.append(warp(decode(row["image"]), matrix, size))
            if len(faces) == limit:
                return faces
    return faces


def thumbnail(image: np.ndarray, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Shrink a uint8 picture to (size, size[, 3]) uint8 by the mean of each cell."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def bicubic(image: np.ndarray, size: int = CANONICAL_SIZE) -> np.ndarray:
    """The plain baseline: Pillow's bicubic enlargement of a uint8 picture, grey or RGB, to (size, size, 3) uint8."""
    return np.asarray(Image.fromarray(image).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def to_grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 luma, as Pillow's mode "L"."""
    return np.asarray(Image.fromarray(image).convert("L"))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) -> (H, W, 3)."""
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def chunks(items: Sequence[_T], size: int) -> Iterator[list[_T]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
