"""Faces to train on: any Parquet file or folder of pictures, cut once into a packed array that is read at memory speed.

A pack is a folder with `images.npy` (N, 168, 168, 3) uint8 RGB and `index.npz`. Each picture is the canonical 128 px
frame with a margin of 20 px all round, so that a training sample can be shifted, scaled and rolled without running out
of picture.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from landmarks.alignment import apply, canonical_points, similarity, warp
from landmarks.scheme import POINT_COUNT, five_points
from stages.luma import LUMA
from training.config import TrainingError
from training.files import picture_of, whole_file
from training.sources import check_sources, content_id, held_out, pictures_of, record_sources

PACK_SIZE, MARGIN = 168, 20  # px; 20 covers 3 px of shift, 8 % of scale and 8 degrees of roll at the corners
CHUNK = 512  # pictures in memory while a pack is built


@dataclass(frozen=True)
class Pack:
    """Packed faces in memory-mapped form.

    Attributes:
        images: (N, 168, 168, 3) uint8 RGB, canonical frame plus margin.
        landmarks: (N, 68, 2) float32, pixels of the packed picture; NaN where unknown.
        corners: (N, 4, 2) float32, the source picture's corners in packed pixels: outside, the content is reflected.
        descriptor: (N, 128) float32 identity descriptor of the original; NaN where unknown.
        ids, groups, sets: (N,) strings; `groups` is the person where known, else the id: what a split must not cut.
        validation: (N,) bool, True for the fixed part never trained on (`training.sources.held_out`).
    """

    images: np.ndarray
    landmarks: np.ndarray
    corners: np.ndarray
    descriptor: np.ndarray
    ids: np.ndarray
    groups: np.ndarray
    sets: np.ndarray
    validation: np.ndarray

    @staticmethod
    def open(folder: Path) -> "Pack":
        index = np.load(folder / "index.npz", allow_pickle=False)
        return Pack(images=np.load(folder / "images.npy", mmap_mode="r"), **{k: index[k] for k in index.files})


def varied_face(
    picture: np.ndarray, rng: np.random.Generator, blur_share: float, grey_share: float = 0.4
) -> np.ndarray:
    """The canonical frame of a packed face as a reader of faces may meet it: (3, 128, 128) float32 RGB in [0, 1].

    A little mis-framed, mirrored in half the cases, in other light; grey in `grey_share` and at 20 to 95 px in
    `blur_share` of them.
    """
    centre = ((PACK_SIZE - 1) / 2, (PACK_SIZE - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, float(rng.normal(0, 3)), float(np.exp(rng.normal(0, 0.03))))
    matrix[:, 2] = matrix[:, 2] + rng.normal(0, 1.2, 2) - MARGIN
    cut = cv2.warpAffine(picture, matrix, (128, 128), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    image: np.ndarray = cut.astype(np.float32) / 255
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = image ** float(np.exp(rng.normal(0, 0.15))) * rng.uniform(0.85, 1.1)
    if rng.random() < grey_share:
        image = np.repeat(image @ np.array(LUMA, np.float32)[:, None], 3, axis=2)
    if rng.random() < blur_share:
        small = int(rng.integers(20, 96))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (128, 128), interpolation=cv2.INTER_CUBIC
        )
    return np.ascontiguousarray(np.clip(image, 0, 1).astype(np.float32).transpose(2, 0, 1))


def _cut(row: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Cut one face; returns packed picture, landmarks and source corners, or None where nothing can be decoded."""
    picture = picture_of(row["image"])
    if picture is None:
        return None
    height, width = picture.shape[:2]
    corners = np.array([(-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)])
    if row["landmarks"] is not None:
        points = np.asarray(row["landmarks"], np.float64).reshape(POINT_COUNT, 2)
        matrix = similarity(five_points(points), canonical_points(128) + MARGIN)
    else:  # a tight crop without landmarks: taken as it stands, the picture filling the canonical frame
        points = np.full((POINT_COUNT, 2), np.nan)
        scale = 128 / max(height, width)
        shift = (PACK_SIZE - 1) / 2 - scale * np.array([(width - 1) / 2, (height - 1) / 2])
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return warp(picture, matrix, PACK_SIZE), apply(matrix, points), apply(matrix, corners)


def parquet_rows(path: Path) -> Iterator[dict]:
    """Rows of one Parquet file with at least `id` and `image`; `landmarks`, `descriptor`, `identity` where present.

    Raises:
        TrainingError: it is no Parquet file, or has no such columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise TrainingError(f"training data: {path}: neither a folder nor a Parquet file: {error}") from error
    wanted = [c for c in ("id", "image", "landmarks", "descriptor", "identity") if c in file.schema_arrow.names]
    if wanted[:2] != ["id", "image"]:
        raise TrainingError(f"training data: {path}: needs the columns id and image; has {file.schema_arrow.names}")
    for batch in file.iter_batches(batch_size=256, columns=wanted):
        for row in batch.to_pylist():
            yield {"landmarks": None, "descriptor": None, "identity": None, "set": path.stem} | row


def ages_of(path: Path) -> dict[str, float]:
    """Years by id, of the rows of a Parquet file that say so; none for a folder or a file without the column `age`."""
    import pyarrow.parquet as pq

    if not path.is_file() or "age" not in pq.ParquetFile(path).schema_arrow.names:
        return {}
    table = pq.read_table(path, columns=["id", "age"]).to_pydict()
    return {i: age for i, age in zip(table["id"], table["age"], strict=True) if age is not None}


def folder_rows(folder: Path) -> Iterator[dict]:
    """Pictures of a folder (recursive), landmarks found by the dlib back end where a face is found, else none."""
    from landmarks.backends import create

    backend = create("dlib")
    for path in pictures_of(folder):
        data = path.read_bytes()
        picture = picture_of(data)
        if picture is None:
            continue
        faces = backend.detect(picture)
        points = faces[0].landmarks if faces else None
        yield {
            "id": content_id(data),
            "image": data,
            "landmarks": points,
            "descriptor": None,
            "identity": None,
            "set": folder.name,
        }


def _write_header(file: BinaryIO, count: int) -> None:
    """The first 128 bytes of an `images.npy` of `count` pictures; numpy pads them, so that any count fits."""
    shape = (count, PACK_SIZE, PACK_SIZE, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def build_pack(sources: Sequence[Path], folder: Path, workers: int = 2, more: bool = False) -> Pack:
    """Cut every face of `sources` (Parquet files or folders) into `folder`; reuse the pack if it is already there.

    With `more`, a pack that is there may hold further sets.

    Raises:
        FileNotFoundError: a source does not exist.
        TrainingError: a source holds no face, or the pack was made from other data.
    """
    if (folder / "index.npz").exists():
        pack = Pack.open(folder)
        check_sources(folder, pack.sets, dict.fromkeys(sources), more)
        return pack
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list] = {k: [] for k in ("landmarks", "corners", "descriptor", "ids", "groups", "sets")}
    cv2.setNumThreads(1)
    with whole_file(folder / "images.npy") as file, ProcessPoolExecutor(workers) as pool:
        _write_header(file, 0)  # as long as the last one
        for source in sources:
            if not source.exists():
                raise FileNotFoundError(f"training data: {source} does not exist")
            rows, before = folder_rows(source) if source.is_dir() else parquet_rows(source), len(columns["ids"])
            while chunk := list(islice(rows, CHUNK)):
                for row, made in zip(chunk, pool.map(_cut, chunk, chunksize=64), strict=True):
                    if made is None:
                        continue
                    file.write(made[0].tobytes())
                    columns["landmarks"].append(made[1].astype(np.float32))
                    columns["corners"].append(made[2].astype(np.float32))
                    known = row["descriptor"] is not None
                    descriptor = row["descriptor"] if known else np.full(128, np.nan)
                    columns["descriptor"].append(np.asarray(descriptor, np.float32))
                    columns["ids"].append(str(row["id"]))
                    columns["groups"].append(str(row["identity"] or row["id"]))
                    columns["sets"].append(row["set"])
            if len(columns["ids"]) == before:
                raise TrainingError(f"training data: {source} holds no picture that can be read")
        file.seek(0)
        _write_header(file, len(columns["ids"]))
    floats = {k: np.asarray(columns.pop(k), np.float32) for k in ("landmarks", "corners", "descriptor")}
    strings = {k: np.asarray(v, dtype=str) for k, v in columns.items()}
    validation = held_out(strings["groups"], strings["sets"])
    columns_of_arrays: dict[str, Any] = {**floats, **strings, "validation": validation}
    record_sources(folder, dict.fromkeys(sources))
    with whole_file(folder / "index.npz") as file:  # last: it marks the pack as complete
        np.savez(file, **columns_of_arrays)
    return Pack.open(folder)
