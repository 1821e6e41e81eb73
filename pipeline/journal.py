"""The journal of a run: one JSON line per input, appended and flushed as it ends, in input order at the end."""

import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.planning import name_hash

_FIRST_FIELD = re.compile(rb'^\{"input": ("(?:[^"\\]|\\.)*")')
SYNC_LINES = 256  # lines between two fsyncs: what a power cut may cost; a killed process loses nothing


def line_of(record: dict[str, Any]) -> bytes:
    """A record as its line. `input` comes first, so that an index can be built without parsing the rest."""
    ordered = {"input": record["input"], **record}
    return json.dumps(ordered, allow_nan=False).encode() + b"\n"


class Journal:
    """Append-only records with an index of 16 bytes per line. A torn last line, left by a killed run, is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        self._unsynced = 0
        self._names, self._offsets = array("Q"), array("Q")
        self._scan()
        self._sort()

    def _scan(self) -> None:
        self._file.seek(0)
        offset = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                break
            if match := _FIRST_FIELD.match(line):
                self._names.append(name_hash(json.loads(match[1])))
                self._offsets.append(offset)
            offset += len(line)
        self._file.seek(0, os.SEEK_END)

    def _sort(self) -> None:
        names = np.array(self._names, np.uint64)
        self._order = np.argsort(names, kind="stable")
        self._sorted = names[self._order]

    def find(self, name: str) -> dict[str, Any] | None:
        """The latest record of an input as of opening or compacting; None where there is none or it is damaged."""
        line = self._line_at(name_hash(name))
        try:
            record = json.loads(line) if line else None
        except json.JSONDecodeError:
            return None
        return record if isinstance(record, dict) and record.get("input") == name else None

    def _line_at(self, key: int) -> bytes | None:
        position = int(np.searchsorted(self._sorted, np.uint64(key), side="right")) - 1
        if position < 0 or int(self._sorted[position]) != key:
            return None
        with_offset = self._offsets[int(self._order[position])]
        self._file.seek(with_offset)
        line = self._file.readline()
        self._file.seek(0, os.SEEK_END)
        return line

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is in the file (not only in our memory) when this returns."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line_of(record))
        self._file.flush()
        self._names.append(name_hash(record["input"]))
        self._offsets.append(offset)
        self._unsynced += 1
        if self._unsynced >= SYNC_LINES:
            self.sync()

    def sync(self) -> None:
        """Force what was appended onto the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def compact(self, names: Sequence[int]) -> None:
        """Rewrite the journal in one step, one line per input: first those of inputs not in `names` (hashes) as they
        stand, then those of `names` in that order."""
        self._sort()
        planned = np.asarray(names, np.uint64)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        last = np.ones(len(self._sorted), bool)
        last[:-1] = self._sorted[1:] != self._sorted[:-1]
        kept = np.isin(self._sorted, planned, invert=True) & last
        with open(temporary, "wb") as out:
            for position in np.sort(self._order[kept]):
                self._file.seek(self._offsets[int(position)])
                out.write(self._file.readline())
            for key in planned.tolist():
                if line := self._line_at(key):
                    out.write(line)
            out.flush()
            os.fsync(out.fileno())
        self._file.close()
        os.replace(temporary, self.path)
        self._file = open(self.path, "a+b")
        self._names, self._offsets = array("Q"), array("Q")
        self._scan()
        self._sort()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal one after the other; torn or damaged lines are passed over."""
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                continue
            if isinstance(record, dict) and "input" in record:
                yield record
