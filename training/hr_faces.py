"""High-resolution faces to train on, small enough to send to another machine: canonical crops, encoded once.

    python -m training.hr_faces -c configs/train/upscale.yaml

makes the pack that a training YAML names, and prints its size. A pack is a folder with `faces.bin` (WebP pictures, one
after the other) and `index.npz`. No picture is enlarged: the side of its canonical frame is what its source resolves.
`open` unpacks it into flat pixels beside it, which the training reads at memory speed.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field

from landmarks.alignment import CANONICAL_SIZE, apply, canonical_points, similarity, warp
from landmarks.scheme import POINT_COUNT, five_points
from stages.attributes import ATTRIBUTES
from stages.consistency import average_to
from stages.networks.prouigan import INPUT_SIZE, ProUiganNet
from stages.weights import load_network
from training.attribute_labels import labels_of_row
from training.config import TrainingError, resolve_paths
from training.files import as_webp, from_webp, picture_of, whole_file
from training.sources import check_sources, held_out, record_sources

SIDE_STEP = 48  # px; sides divide by 4 and by 6 into sides that the upscaler takes
MAX_VALIDATION = 32  # faces kept of each set for measuring: a pack is for training


class PackedSet(BaseModel):
    """How many faces of a set go into a pack, and how large.

    `path` is relative to the YAML, as every path in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path  # Parquet with id, image, landmarks; identity where known
    side: int = Field(ge=SIDE_STEP)  # px, largest side of the canonical frame
    count: int = Field(default=100_000, gt=0)  # training faces at most, drawn evenly over the file


class PackConfig(BaseModel):
    """What a pack holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pack: Path  # folder of the pack
    sets: list[PackedSet] = Field(min_length=1)
    margin: float = Field(default=0.0, ge=0, le=0.25)  # of the frame's side, kept around it
    quality: int = Field(default=90, ge=50, le=100)  # of WebP
    restored_by: str | None = None  # card whose restored 16 px face is kept beside every face of 512 px and more


@dataclass(frozen=True)
class HrPack:
    """An unpacked pack.

    Attributes:
        pixels: flat uint8 of all pictures; picture i is `picture(i)`.
        offsets: (N,) first byte of each. stored: (N,) side of the stored picture, px. sides: (N,) side of its frame.
        landmarks: (N, 68, 2) float32, pixels of the stored picture; NaN where unknown.
        labels: (N, A) float32 attribute labels in [-1, 1], NaN where unknown; columns as `ATTRIBUTES`.
        ids, sets: (N,) strings. validation: (N,) bool.
        restored: (M, 128, 128, 3) uint8 restored faces; restored_of: (N,) row of it, -1 where there is none.
    """

    pixels: np.ndarray
    offsets: np.ndarray
    stored: np.ndarray
    sides: np.ndarray
    landmarks: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    sets: np.ndarray
    validation: np.ndarray
    restored: np.ndarray
    restored_of: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def picture(self, index: int) -> np.ndarray:
        """(stored, stored, 3) uint8 RGB: the canonical frame with the pack's margin, a view."""
        side, first = int(self.stored[index]), int(self.offsets[index])
        return self.pixels[first : first + 3 * side * side].reshape(side, side, 3)

    def frame(self, index: int) -> np.ndarray:
        """(side, side, 3) uint8 RGB: the canonical frame alone, a view."""
        cut = (int(self.stored[index]) - int(self.sides[index])) // 2
        return self.picture(index)[cut : cut + int(self.sides[index]), cut : cut + int(self.sides[index])]


def side_for(matrix: np.ndarray, largest: int) -> int:
    """The side of the canonical frame for a face: a multiple of `SIDE_STEP`, at most what the source resolves.

    `matrix` (2, 3) maps picture pixels to the canonical 128 px frame. 0 where the source resolves less than one step.
    """
    native = CANONICAL_SIZE / float(np.hypot(matrix[0, 0], matrix[1, 0]))
    return min(largest, int(native * 1.02)) // SIDE_STEP * SIDE_STEP  # 2 %: the landmarks are no better than that


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    wanted = [c for c in file.schema_arrow.names if c not in ("descriptor", "detector_score", "size")]
    for batch in file.iter_batches(batch_size=128, columns=wanted):
        yield from batch.to_pylist()


def _chosen(path: Path, count: int) -> dict[str, bool]:
    """Ids of the faces to pack, True for those held out: `count` training faces, evenly over the file, and some for
    validation."""
    import pyarrow.parquet as pq

    wanted = [c for c in ("id", "landmarks", "identity") if c in pq.read_schema(path).names]
    rows = [r for r in pq.read_table(path, columns=wanted).to_pylist() if r["landmarks"] is not None]
    ids = np.array([str(r["id"]) for r in rows], dtype=str)
    groups = np.array([str(r.get("identity") or r["id"]) for r in rows], dtype=str)
    held = held_out(groups, np.full(len(rows), path.stem))
    training = ids[~held].tolist()
    step = max(1.0, len(training) / count)
    picked = [training[int(k * step)] for k in range(min(count, len(training)))]
    return dict.fromkeys(picked, False) | dict.fromkeys(ids[held][:MAX_VALIDATION].tolist(), True)


def _encode(row: dict[str, Any], largest: int, margin: float, quality: int) -> tuple[bytes, int, np.ndarray] | None:
    """One face as WebP, the side of its frame, and its landmarks in stored pixels; None where it is unusable."""
    picture = picture_of(row["image"])
    if picture is None:
        return None
    points = np.asarray(row["landmarks"], np.float64).reshape(POINT_COUNT, 2)
    side = side_for(similarity(five_points(points), canonical_points(CANONICAL_SIZE)), largest)
    if side == 0:
        return None
    border = int(round(side * margin))
    matrix = similarity(five_points(points), canonical_points(side) + border)
    cut = warp(picture, matrix, side + 2 * border)
    return as_webp(cut, quality), side, apply(matrix, points)


@torch.inference_mode()
def restored_faces(frames: Sequence[np.ndarray], card: str) -> np.ndarray:
    """(N, 128, 128, 3) uint8: each canonical frame averaged to 16 px and restored at fidelity 0."""
    network = load_network(card, torch.device("cpu"))
    if not isinstance(network, ProUiganNet):
        raise TrainingError(f"{card} holds a {type(network).__name__}, not a restorer")
    made = []
    for frame in frames:
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
        out = network(average_to(image, INPUT_SIZE), detail=True)
        assert out.detail is not None
        face = (out.images[-1] + out.detail).float().clamp(0, 1)
        made.append((face[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    return np.stack(made) if made else np.zeros((0, CANONICAL_SIZE, CANONICAL_SIZE, 3), np.uint8)


def build_hr_pack(config: PackConfig) -> Path:
    """Make the pack where it is not there yet; returns its folder.

    Raises:
        FileNotFoundError: a source does not exist.
        TrainingError: a source holds no face that is large enough, or the pack was made from other data.
    """
    folder, way = config.pack, [config.margin, config.quality, config.restored_by]
    sources = {s.data: [s.side, s.count, *way] for s in config.sets}
    if (folder / "index.npz").exists():
        with np.load(folder / "index.npz", allow_pickle=False) as there:
            check_sources(folder, there["sets"], sources)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("length", "sides", "landmarks", "labels", "ids", "sets", "validation")
    columns: dict[str, list[Any]] = {k: [] for k in kept}
    restored: list[np.ndarray] = []
    with whole_file(folder / "faces.bin") as file:
        for source in config.sets:
            if not source.data.exists():
                raise FileNotFoundError(f"training data: {source.data} does not exist")
            chosen, before = _chosen(source.data, source.count), len(columns["ids"])
            for row in _rows(source.data):
                if str(row["id"]) not in chosen or row["landmarks"] is None:
                    continue
                made = _encode(row, source.side, config.margin, config.quality)
                if made is None:
                    continue
                file.write(made[0])
                columns["length"].append(len(made[0]))
                columns["sides"].append(made[1])
                columns["landmarks"].append(made[2])
                columns["labels"].append(labels_of_row(row, source.data.stem))
                columns["ids"].append(str(row["id"]))
                columns["sets"].append(source.data.stem)
                columns["validation"].append(chosen[str(row["id"])])
            if len(columns["ids"]) == before:
                raise TrainingError(f"training data: {source.data} holds no face with landmarks of {SIDE_STEP} px")
    ids = np.asarray(columns["ids"], dtype=str)
    index: dict[str, Any] = {
        "length": np.asarray(columns["length"], np.int64),
        "sides": np.asarray(columns["sides"], np.int64),
        "landmarks": np.asarray(columns["landmarks"], np.float32),
        "labels": np.asarray(columns["labels"], np.float32),
        "attributes": np.asarray(ATTRIBUTES, dtype=str),
        "ids": ids,
        "sets": np.asarray(columns["sets"], dtype=str),
        "validation": np.asarray(columns["validation"], bool),
        "margin": np.float64(config.margin),
        "restored_of": np.full(len(ids), -1, np.int64),
    }
    if config.restored_by is not None:
        blob, last = (folder / "faces.bin").read_bytes(), np.cumsum(index["length"])
        large = np.flatnonzero(index["sides"] >= 512 // SIDE_STEP * SIDE_STEP)
        frames = []
        for i in large:
            picture = from_webp(blob[int(last[i] - index["length"][i]) : int(last[i])])
            border = (picture.shape[0] - int(index["sides"][i])) // 2
            frames.append(picture[border : picture.shape[0] - border, border : picture.shape[1] - border])
        restored.append(restored_faces(frames, config.restored_by))
        index["restored_of"][large] = np.arange(len(large))
    encoded = [as_webp(face, 95) for face in (restored[0] if restored else ())]
    with whole_file(folder / "restored.bin") as file:
        file.write(b"".join(encoded))
    index["restored_length"] = np.asarray([len(data) for data in encoded], np.int64)
    record_sources(folder, sources)
    with whole_file(folder / "index.npz") as file:  # last: it marks the pack as complete
        np.savez(file, **index)
    return folder


def open_hr_pack(folder: Path) -> HrPack:
    """Open a pack; the first time it is unpacked into `pixels.raw` beside it.

    Raises:
        TrainingError: it was made with another list of attributes.
    """
    index = dict(np.load(folder / "index.npz", allow_pickle=False))
    if tuple(index["attributes"]) != ATTRIBUTES:
        made_for = ", ".join(index["attributes"])
        raise TrainingError(f"{folder}: made for the attributes {made_for}; remove it, make it anew")
    sides = index["sides"]
    stored = sides + 2 * np.round(sides * float(index["margin"])).astype(np.int64)
    sizes = 3 * stored * stored
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    raw = folder / "pixels.raw"
    if not raw.exists():
        blob, ends = (folder / "faces.bin").read_bytes(), np.cumsum(index["length"])
        part = np.memmap(raw.with_suffix(".part"), np.uint8, "w+", shape=(int(sizes.sum()),))

        def unpack(i: int) -> None:
            picture = from_webp(blob[int(ends[i] - index["length"][i]) : int(ends[i])])
            part[offsets[i] : offsets[i] + sizes[i]] = picture.reshape(-1)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(unpack, range(len(sides))))
        part.flush()
        raw.with_suffix(".part").replace(raw)
    blob, ends = (folder / "restored.bin").read_bytes(), np.cumsum(index["restored_length"])
    restored = [from_webp(blob[int(e - n) : int(e)]) for e, n in zip(ends, index["restored_length"], strict=True)]
    return HrPack(
        pixels=np.memmap(raw, np.uint8, "r"),
        offsets=offsets,
        stored=stored,
        restored=np.stack(restored) if restored else np.zeros((0, CANONICAL_SIZE, CANONICAL_SIZE, 3), np.uint8),
        **{k: index[k] for k in ("sides", "landmarks", "labels", "ids", "sets", "validation", "restored_of")},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-c", "--config", type=Path, required=True, help="training YAML with a `faces` section")
    args = parser.parse_args(arguments)
    raw = resolve_paths(yaml.safe_load(args.config.read_text(encoding="utf-8")), args.config.resolve().parent)
    config = PackConfig.model_validate(raw["faces"])
    folder = build_hr_pack(config)
    size = sum((folder / n).stat().st_size for n in ("faces.bin", "restored.bin", "index.npz"))
    pack = open_hr_pack(folder)
    print(f"{folder}: {len(pack)} faces, {size / 2**20:.1f} MiB to send (without pixels.raw)")
    for name in np.unique(pack.sets):
        of = pack.sets == name
        print(f"  {name}: {int((of & ~pack.validation).sum())} to train, {int((of & pack.validation).sum())} held out")
    known = np.isfinite(pack.labels).sum(0)
    print("  labels: " + ", ".join(f"{a} {n}" for a, n in zip(ATTRIBUTES, known, strict=True)))


if __name__ == "__main__":
    main()
