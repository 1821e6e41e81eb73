"""The journal of a run: one JSON line per input, appended and flushed as it ends, in input order at the end.

An input in which faces were looked for has, besides its own line, one per face: that line has `face`, the number of the
face, and the input's line has `faces`, how many there are. The lines of the faces come first while a run goes on, so
that an input's line says that all of them are there; at the end they follow it.
"""

import hashlib
import json
import os
import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.images import file_sha256, sha256
from pipeline.planning import name_hash

_FIRST_FIELDS = re.compile(rb'^\{"input": ("(?:[^"\\]|\\.)*")(?:, "face": (\d+))?')
_FACES = re.compile(rb'^\{"input": "(?:[^"\\]|\\.)*", "faces": (\d+)')
SYNC_LINES = 256  # lines between two fsyncs: what a power cut may cost; a killed process loses nothing


def line_of(record: dict[str, Any]) -> bytes:
    """A record as its line. `input` comes first, then `face` or `faces` where it has them, so that an index can be
    built without parsing the rest."""
    ordered = {key: record[key] for key in ("input", "face", "faces") if key in record} | record
    return json.dumps(ordered, allow_nan=False).encode() + b"\n"


def face_key(name: int, face: int) -> int:
    """Index key of a face's line, from the hash of its input's name."""
    return int.from_bytes(hashlib.blake2b(f"{name}/{face}".encode(), digest_size=8).digest(), "little")


def _key(name: int, face: int | None) -> int:
    return name if face is None else face_key(name, face)


class Journal:
    """Append-only records with an index of 24 bytes per line. A torn last line, left by a killed run, is dropped with a
    word on stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        self._unsynced = 0
        self._begin()

    def _begin(self) -> None:
        # Sorted by key up to `_sorted` entries, lines of one key in their order; what is appended since follows.
        self._keys, self._inputs, self._offsets = array("Q"), array("Q"), array("Q")
        self._scan()
        self._sort()

    def _note(self, name: int, face: int | None, offset: int) -> None:
        self._keys.append(_key(name, face))
        self._inputs.append(name)
        self._offsets.append(offset)

    def _scan(self) -> None:
        self._file.seek(0)
        offset = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                print(
                    f"{self.path}: the last line was cut off, by a kill or a power cut; its input counts as not done",
                    file=sys.stderr,
                )
                break
            if match := _FIRST_FIELDS.match(line):
                self._note(name_hash(json.loads(match[1])), None if match[2] is None else int(match[2]), offset)
            offset += len(line)
        self._file.seek(0, os.SEEK_END)

    def _sort(self) -> None:
        order = np.argsort(np.array(self._keys, np.uint64), kind="stable")
        self._keys, self._inputs, self._offsets = (
            array("Q", np.array(values, np.uint64)[order].tobytes())
            for values in (self._keys, self._inputs, self._offsets)
        )
        self._sorted = len(order)

    def find(self, name: str, face: int | None = None) -> dict[str, Any] | None:
        """The latest record of an input, or of one of its faces, as of opening or compacting; None where there is none
        or it is damaged."""
        line = self._line_at(_key(name_hash(name), face))
        try:
            record = json.loads(line) if line else None
        except json.JSONDecodeError:
            return None
        fits = (
            isinstance(record, dict) and record.get("input") == name and record.get("face") == face
            and isinstance(record.get("faces", 0), int)
        )  # fmt: skip
        return record if fits else None

    def faces(self, record: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """The lines of the faces of an input's `record`, in order; None for one that is missing."""
        count = min(record.get("faces") or 0, len(self._keys))
        return (self.find(record["input"], face) for face in range(count))

    def _line_at(self, key: int) -> bytes | None:
        position = bisect_right(self._keys, key, 0, self._sorted) - 1
        if position < 0 or self._keys[position] != key:
            return None
        self._file.seek(self._offsets[position])
        line = self._file.readline()
        self._file.seek(0, os.SEEK_END)
        return line

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is in the file (not only in our memory) when this returns."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line_of(record))
        self._file.flush()
        self._note(name_hash(record["input"]), record.get("face"), offset)
        self._unsynced += 1
        if self._unsynced >= SYNC_LINES:
            self.sync()

    def sync(self) -> None:
        """Force what was appended onto the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def compact(self, names: Sequence[int]) -> None:
        """Rewrite the journal in one step, one line per input and one per face: first those of inputs not in `names`
        (hashes) as they stand, then those of `names` in that order, each followed by its faces. Lines of faces that the
        input's line does not count were left by an earlier chain or before a stop, and go."""
        self._sort()
        planned = np.asarray(names, np.uint64)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        keys = np.array(self._keys, np.uint64)
        last = np.ones(len(keys), bool)
        last[:-1] = keys[1:] != keys[:-1]
        kept = np.isin(np.array(self._inputs, np.uint64), planned, invert=True) & last
        with open(temporary, "wb") as out:
            for offset in np.sort(np.array(self._offsets, np.uint64)[kept]).tolist():
                self._file.seek(offset)
                out.write(self._file.readline())
            for key in planned.tolist():
                if line := self._line_at(key):
                    out.write(line)
                    match = _FACES.match(line)
                    for face in range(min(int(match[1]), len(self._keys)) if match else 0):
                        out.write(self._line_at(face_key(key, face)) or b"")
            out.flush()
            os.fsync(out.fileno())
        self._file.close()
        os.replace(temporary, self.path)
        self._file = open(self.path, "a+b")
        self._begin()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def journal_sha256(path: Path) -> str:
    """SHA-256 of a journal, which is empty where a run was stopped before any input had ended."""
    return file_sha256(path) if path.stat().st_size else sha256(b"")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal one after the other; torn or damaged lines are passed over."""
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                continue
            if isinstance(record, dict) and isinstance(record.get("input"), str):
                yield record
