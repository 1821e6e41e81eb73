"""Which inputs a run has and what each output will be called: decided before the first write, in a fixed order.

A plan lives in a temporary file, one line per input, so that a million inputs need 16 MB of memory, 24 while they
are planned.
"""

import glob
import hashlib
import json
import os
import re
import sys
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.images import IMAGE_ENDINGS, VIDEO_ENDINGS
from pipeline.storage import is_url, list_root, list_url

NAME_LIMIT = 255  # bytes of one file name on the usual file systems
ENDINGS = (".png", ".npz", ".json")  # of what is written for an input
LONGEST_ENDING = 4  # of the files of every run; a sidecar's is longer, and fails with a name of 251 bytes
FACE_NAME = re.compile(r"face_\d{3,}")  # of the outputs of one face, without the ending
_PLAIN = {"": "%", ".": "%2E", "..": "%2E%2E"}  # parts of a name that would mean another folder
PRODUCT_FOLDERS = ("restored", "degraded", "thumbnails", "uncertainty", "occlusion", "priors", "sidecars", "_run")


class InputError(ValueError):
    """The inputs of a run cannot be used as given: not there, or two of them would have one output name."""


@dataclass(frozen=True)
class Task:
    """One input.

    Attributes:
        name: path relative to the input root, with "/" on every system: what the journal calls it.
        source: where to read it.
        target: path of its outputs below `restored/` and the like, without the ending.
        mask: file of the occluder mask given for it.
        refused: why it must not be read (a link that leads out of the input folder), else None.
    """

    name: str
    source: str
    target: str
    mask: str | None = None
    refused: str | None = None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def name_hash(text: str) -> int:
    """64-bit hash of a name, for sets of a million names in 8 MB."""
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=8).digest(), "little")


def target_of(name: str) -> str:
    """Where an input's outputs go, without the ending: `a/b.png` -> `a/b`, `a/b.jpg` -> `a/b.jpg`.

    A name too long for the file system with its ending is cut and marked with a hash of the whole. Parts that would
    lead to another folder (`...png` without its ending, keys of an object store) are spelt out: `%2E%2E`.
    """
    *folders, file = name.split("/")
    stem = file[:-4] if file.lower().endswith(".png") and len(file) > 4 else file
    if len(_bytes(stem)) + LONGEST_ENDING > NAME_LIMIT:
        mark = "~" + hashlib.sha256(_bytes(name)).hexdigest()[:8]
        room = NAME_LIMIT - LONGEST_ENDING - len(mark)
        stem = _bytes(stem)[:room].decode("utf-8", "ignore") + mark
    return "/".join(_PLAIN.get(part, part) for part in (*folders, stem))


def face_target(target: str, face: int) -> str:
    """Where the outputs of one face of an input go, without the ending: `a/b` -> `a/b/face_003`."""
    return f"{target}/face_{face:03d}"


def record_target(record: dict[str, Any]) -> str:
    """Where the outputs of a journal line lie, without the ending."""
    target = target_of(record["input"])
    return target if record.get("face") is None else face_target(target, record["face"])


def _relative(path: Path, root: Path) -> str:
    """`path` relative to `root` with "/" between. Raises `InputError` for what would leave the output folder."""
    relative = path.relative_to(root)
    if any(part in ("..", "") or "\0" in part for part in relative.parts):
        raise InputError(f"{path}: not a plain path below {root}")
    return relative.as_posix()


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_within(path: str, folders: Iterable[str]) -> bool:
    return any(_is_inside(path, folder) for folder in folders)


@dataclass(frozen=True)
class InputSet:
    """What one run was asked to read.

    Attributes:
        inputs: files, folders, globs and `.txt` lists as given.
        output: the output folder; what the run itself writes there is never read.
        mask: a mask for all, or a folder of masks mirroring the inputs.
        videos: whether video files in folders and globs are inputs as well.
        remote: URL of the output folder where it lies in an object store.
    """

    inputs: tuple[str, ...]
    output: Path
    mask: Path | None = None
    videos: bool = False
    remote: str | None = None

    @property
    def endings(self) -> frozenset[str]:
        """Endings of the files that are taken from folders and globs."""
        return IMAGE_ENDINGS | VIDEO_ENDINGS if self.videos else IMAGE_ENDINGS

    def tasks(self) -> Iterator[Task]:
        """Every input, in a fixed order. Raises `InputError`."""
        own = {os.path.realpath(self.output / name) for name in PRODUCT_FOLDERS}
        if self.mask is not None:
            self._refuse_own(f"--mask {self.mask}", self.mask, own)
        for given in self.inputs:
            yield from self._remote_tasks(given) if is_url(given) else self._expand(given, own)

    def roots(self) -> list[str]:
        """Absolute folders the names in the journal are relative to, one per INPUT. Raises `InputError`."""
        return [list_root(given) if is_url(given) else str(self._root(given)) for given in self.inputs]

    def _remote_tasks(self, given: str) -> Iterator[Task]:
        """Pictures of an object store without what the run itself wrote; videos there are refused."""
        if given.rstrip("/") == self.remote:
            raise InputError(f"{given}: the output folder is the input folder; choose another one")
        for name, url in list_url(given):
            ending = os.path.splitext(name)[1].lower()
            if ending not in self.endings or name.rpartition("/")[2].startswith("._"):
                continue
            if self.remote is None or not _is_within(url, (f"{self.remote}/{own}" for own in PRODUCT_FOLDERS)):
                target = target_of(name)
                refused = "a video in an object store: copy it to this machine" if ending in VIDEO_ENDINGS else None
                yield Task(name, url, target, self.mask_of(name, target), refused)

    def _root(self, given: str) -> Path:
        path = Path(os.path.abspath(given))
        if path.is_dir():
            return path
        if path.suffix.lower() == ".txt" and path.is_file():
            return self._list_root(path)
        if os.path.lexists(path):
            return path.parent
        if glob.has_magic(given):
            fixed = []
            for part in path.parts:
                if glob.has_magic(part):
                    break
                fixed.append(part)
            return Path(*fixed)
        raise InputError(f"{given}: no such file, folder or glob")

    def _expand(self, given: str, own: set[str]) -> Iterator[Task]:
        path, root = Path(os.path.abspath(given)), self._root(given)
        if path.is_dir():
            if os.path.realpath(path) == os.path.realpath(self.output):
                raise InputError(f"{given}: the output folder is the input folder; choose another one")
            self._refuse_own(given, path, own)
            yield from self._walk(path, own)
        elif path.suffix.lower() == ".txt" and path.is_file():
            for entry in self._list_entries(path):
                self._refuse_own(f"{given}: {entry}", entry, own)
                yield self._task(entry, root)
        elif os.path.lexists(path):
            self._refuse_own(given, path, own)
            yield self._task(path, root)
        else:
            for match in sorted(glob.iglob(str(path), recursive=True), key=_bytes):
                real = os.path.realpath(match)
                ending = os.path.splitext(match)[1].lower()
                if ending in self.endings and not os.path.isdir(match) and not _is_within(real, own):
                    yield self._task(Path(match), root)

    def _refuse_own(self, said: str, path: Path, own: set[str]) -> None:
        """A run that read from the folders it writes to would overwrite what it reads."""
        if _is_within(os.path.realpath(path), own):
            raise InputError(f"{said}: this is part of the output {self.output}; choose another output folder")

    @staticmethod
    def _list_entries(path: Path) -> Iterator[Path]:
        """Paths of a list, one a line, relative to the list's folder."""
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if text := line.rstrip("\r\n"):
                    if "\0" in text:
                        raise InputError(f"{path}: holds a NUL byte; expected one path a line")
                    yield Path(os.path.normpath(path.parent / text))

    def _list_root(self, path: Path) -> Path:
        """The list's own folder where all entries lie in it, else the folder they have in common."""
        common: str | None = None
        for entry in self._list_entries(path):
            folder = str(entry.parent)
            common = folder if common is None else os.path.commonpath([common, folder])
        if common is None or _is_inside(common, str(path.parent)):
            return path.parent
        return Path(common)

    def _walk(self, root: Path, own: set[str]) -> Iterator[Task]:
        """Pictures below a folder. Linked folders are not entered: what lies in the root is reached anyway, what lies
        outside is not ours to read, and no loop can catch us. A folder that cannot be read is an input of its own,
        refused. Raises `InputError` where that is the root."""
        real_root = os.path.realpath(root)
        closed: list[OSError] = []
        for folder, folders, files in os.walk(root, onerror=closed.append, followlinks=False):
            folders[:] = sorted(
                (
                    f
                    for f in folders
                    if not os.path.islink(p := os.path.join(folder, f)) and os.path.realpath(p) not in own
                ),
                key=_bytes,
            )
            for file in sorted(files, key=_bytes):
                if file.startswith("._") or os.path.splitext(file)[1].lower() not in self.endings:
                    continue  # "._x.jpg" are resource forks of macOS, no pictures
                path = os.path.join(folder, file)
                outside = (
                    os.path.islink(path) and os.path.exists(path) and not _is_inside(os.path.realpath(path), real_root)
                )
                yield self._task(
                    Path(path), root, "a symbolic link that leads out of the input folder" if outside else None
                )
        for error in closed:
            if Path(error.filename) == root:
                raise InputError(f"{root}: {error.strerror}")
            yield self._task(Path(error.filename), root, f"a folder that cannot be read: {error.strerror}")

    def _task(self, path: Path, root: Path, refused: str | None = None) -> Task:
        name = _relative(path, root)
        target = target_of(name)
        return Task(name, str(path), target, self.mask_of(name, target), refused)

    def mask_of(self, name: str, target: str) -> str | None:
        """File of the mask given for an input, None where there is none."""
        if self.mask is None or self.mask.is_file():
            return None if self.mask is None else str(self.mask)
        candidates = [self.mask / (target + ".png")]
        if not _PLAIN.keys() & set(name.split("/")):
            candidates = [self.mask / name, *candidates, (self.mask / name).with_suffix(".png")]
        return next((str(c) for c in candidates if c.is_file()), None)


class Plan:
    """The tasks of a run, on disk.

    Raises:
        InputError: no such input, or outputs that would overwrite each other.
    """

    def __init__(self, inputs: InputSet) -> None:
        if inputs.mask is not None and not inputs.mask.exists():
            raise InputError(f"--mask {inputs.mask}: no such file or folder")
        self.roots = inputs.roots()
        self._file = tempfile.TemporaryFile(prefix="revisage-plan-")
        places = array("Q")
        targets, parents, unmasked = self._index(self._written(inputs.tasks(), places), inputs.videos)
        if self._drop_repeated(places):
            targets, parents, unmasked = self._index(self, inputs.videos)
        self._refuse_collisions(targets, parents)
        if inputs.mask is not None and unmasked:
            if unmasked == len(self):
                raise InputError(
                    f"--mask {inputs.mask}: holds no mask of any input; expected the inputs' own names and folders"
                )
            print(f"--mask: {unmasked} of {len(self)} inputs have no mask; their cover is looked for", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.name_hashes)

    def __iter__(self) -> Iterator[Task]:
        """Every task in order; one iteration at a time."""
        self._file.seek(0)
        for line in self._file:
            yield Task(*json.loads(line))

    def _written(self, tasks: Iterable[Task], places: "array[int]") -> Iterator[Task]:
        """The tasks, each put on disk and the hash of where its file lies, whatever links to folders it was reached by,
        into `places`; a linked file lies where its link does."""
        last = real = ""
        for task in tasks:
            row = [task.name, task.source, task.target, task.mask, task.refused]
            self._file.write(json.dumps(row).encode() + b"\n")
            folder, file = ("", task.source) if is_url(task.source) else os.path.split(task.source)
            if folder != last:
                last, real = folder, os.path.realpath(folder) if folder else ""
            places.append(name_hash(f"{real}/{file}"))
            yield task

    def _index(self, tasks: Iterable[Task], videos: bool) -> tuple["array[int]", "array[int]", int]:
        """Note the names of the tasks; hashes of their targets, and of those that others are named as the faces of; how
        many have no mask."""
        self.name_hashes, targets, parents, unmasked = array("Q"), array("Q"), array("Q"), 0
        for task in tasks:
            self.name_hashes.append(name_hash(task.name))
            targets.append(name_hash(self._folded(task.target)))
            if videos and (parent := self._face_of(task.target)) is not None:
                parents.append(name_hash(parent))
            unmasked += task.mask is None
        return targets, parents, unmasked

    def _drop_repeated(self, places: Sequence[int]) -> bool:
        """Keep the first of the tasks of one file; `places`: of all tasks, in order. Whether any was dropped."""
        _, first = np.unique(np.asarray(places, np.uint64), return_index=True)
        if repeated := len(places) - len(first):
            kept, whole = np.zeros(len(places), bool), self._file
            kept[first] = True
            self._file = tempfile.TemporaryFile(prefix="revisage-plan-")
            whole.seek(0)
            self._file.writelines(line for line, stays in zip(whole, kept, strict=True) if stays)
            whole.close()
            print(f"{repeated} inputs were named more than once, and are taken once each", file=sys.stderr)
        return repeated > 0

    @staticmethod
    def _folded(target: str) -> str:
        """The name as a file system sees it that ignores case or normalises Unicode."""
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", target).casefold())

    @classmethod
    def _face_of(cls, target: str) -> str | None:
        """The target, folded, of an input whose faces would have such a name; None where it is not that of a face."""
        folder, _, file = cls._folded(target).rpartition("/")
        return folder if folder and FACE_NAME.fullmatch(file) else None

    def _refuse_collisions(self, targets: Sequence[int], parents: Sequence[int]) -> None:
        """`parents`: targets of the inputs that others are named as the faces of."""
        hashes = np.sort(np.asarray(targets, np.uint64))
        doubled = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        owners = set(np.intersect1d(hashes, np.asarray(parents, np.uint64)).tolist())
        if not doubled and not owners:
            return
        groups: dict[str, list[str]] = {}
        for task in self:
            folded, parent = self._folded(task.target), self._face_of(task.target)
            if parent is not None and name_hash(parent) in owners:
                groups.setdefault(parent, []).append(task.source)
            elif name_hash(folded) in doubled | owners:
                groups.setdefault(folded, []).append(task.source)
        lines = [f"  {' and '.join(sources)}" for sources in list(groups.values())[:10]]
        more = f"\n  and {len(groups) - 10} more" if len(groups) > 10 else ""
        raise InputError(
            "inputs would overwrite each other's outputs (names are compared without case):\n" + "\n".join(lines) + more
            + "\nrename one of each, or restore them into different output folders"
        )  # fmt: skip
