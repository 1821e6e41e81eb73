"""What packs are made of: which of the faces are held out, and a record beside each pack of its sources.

A pack is read instead of its sources, here and on machines that do not have them; the record keeps a pack of other data
from being trained on unseen.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.config import TrainingError

PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
VALIDATION_LIST = Path(__file__).with_name("validation_ids.txt")
KNOWN_SHARE = 0.01  # of a set, named by the validation list: less is chance, more means that the list splits it
HELD_ONE_IN = 20  # people of a set that the list does not know
LEARNED_WHOLE = ("omi_pairs",)  # sets that it does not know either: the shipped weights learned from all of their faces
RECORD = "sources.json"
END_BYTES = 65536  # of a Parquet file: its footer, with row counts, sizes and statistics of the columns


def content_id(data: bytes) -> str:
    """Name of a picture that has none: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder (recursive), sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS)


def held_out(groups: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """(N,) bool, True for the faces never trained on: those of the validation list; of a set that it does not know, one
    person in twenty, told by a hash, but none of `LEARNED_WHOLE`. `groups` (N,) is the person or the id, `sets` (N,)
    the name of the set."""
    held = np.isin(groups, VALIDATION_LIST.read_text(encoding="utf-8").split())
    for name in np.unique(sets):
        rows = np.flatnonzero(sets == name)
        if name not in LEARNED_WHOLE and held[rows].mean() < KNOWN_SHARE:
            drawn = np.array([int(content_id(str(g).encode()), 16) % HELD_ONE_IN == 0 for g in groups[rows]])
            held[rows] |= drawn & ~drawn.all()  # a set of one face is for training
    return held


def source_id(source: Path, packing: Any) -> str:
    """A source told cheaply: names and sizes of a folder's pictures, or size and end of a Parquet file; with the
    validation list, and how it is packed (plain values)."""
    if source.is_dir():
        held: list[Any] = [(p.relative_to(source).as_posix(), p.stat().st_size) for p in pictures_of(source)]
    else:
        size = source.stat().st_size
        with source.open("rb") as file:
            file.seek(max(0, size - END_BYTES))
            held = [size, content_id(file.read())]
    return content_id(json.dumps([source.name, held, packing, content_id(VALIDATION_LIST.read_bytes())]).encode())


def record_sources(folder: Path, sources: Mapping[Path, Any]) -> None:
    """Note beside a pack what it is made of: `sources` with the way each is packed."""
    record = {source_id(source, packing): source.name for source, packing in sources.items()}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def check_sources(folder: Path, sets: np.ndarray, sources: Mapping[Path, Any], more: bool = False) -> None:
    """Refuse a pack that was made from other data than `sources`.

    Sources that are not on this machine are compared by name alone. A pack without a record gets one.

    Args:
        sets: names of the sets in the pack. more: it may hold further ones.

    Raises:
        TrainingError: what differs.
    """
    packed, path = {str(s) for s in np.unique(sets)}, folder / RECORD
    differs = [f"{s} is not in it" for s in sources if not packed & {s.name, s.stem}]
    if not more:
        differs += [f"it also holds {s}" for s in sorted(packed - {n for s in sources for n in (s.name, s.stem)})]
    if not differs and path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        present = {s: packing for s, packing in sources.items() if s.exists()}
        differs = [f"{s} has changed, or is packed in another way" for s, p in present.items()
                   if source_id(s, p) not in record]  # fmt: skip
    if differs:
        raise TrainingError(
            f"{folder} was made from other data: {'; '.join(differs)}. Name another pack, or remove this one"
        )
    if not path.exists() and not more and all(s.exists() for s in sources):
        record_sources(folder, sources)
