"""What was computed, kept by content and configuration, so that an interrupted evaluation goes on where it stopped."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cards import cards_measured

Arrays = dict[str, np.ndarray]


def fingerprint(*parts: Any) -> str:
    """SHA-256 of arrays (type, shape and content) and of plain JSON values, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def card_key(name: str) -> str:
    """What the results of a card's network depend on: its tensors, and what it is built with."""
    return fingerprint(cards_measured([name]))


class Cache:
    """Arrays by key in a folder, one NPZ file an entry, written whole or not at all; a damaged file counts as missing.

    Attributes:
        hits, misses: how often an entry was found, and how often it was made.
    """

    def __init__(self, folder: Path, read: bool = True) -> None:
        self.folder, self.read = folder, read
        self.hits = self.misses = 0

    def get(self, kind: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The entry of `key`, made and kept where it is not there; `kind` only begins the file's name."""
        path = self.folder / kind / f"{key}.npz"
        if self.read and (found := _load(path)) is not None:
            self.hits += 1
            return found
        self.misses += 1
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **made)  # type: ignore[arg-type]  # the stub takes **kwds for its own options
        part.replace(path)
        return made


def _load(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as entry:
            return {name: entry[name] for name in entry.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
