"""Inputs and outputs that lie in an object store (`s3://bucket/folder`) instead of a folder. Needs the extra `cluster`.

Everything goes through fsspec, so any store it has a driver for can be named. An object is put whole or not at all,
which is what the rename does on a disk. The records of a run (`_run/`) are written on this machine and copied over:
once a minute while it runs, and at the end.
"""

import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pipeline.output import OutputError, OutputFolder, OutputLostError

COPY_INTERVAL_S = 60.0  # between two copies of the journal: what the death of this machine may cost, to be done again
LOCK_STALE_S = 600.0  # a lock not renewed for that long was left by a run that died
_COPIES = "_run/marked/"  # pictures, though below _run/

T = TypeVar("T")


class StorageError(OutputError):
    """A store cannot be used: no driver for it, no right, no connection."""


def is_url(text: str) -> bool:
    """Whether a path names an object store and not a folder."""
    return "://" in text


def _filesystem(url: str) -> tuple[Any, str]:
    """The driver for a URL, and the path as the driver writes it. Raises `StorageError`."""
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise StorageError(f'{url}: needs the extra "cluster": pip install "revisage[cluster]" ({error})') from error
    except ValueError as error:
        raise StorageError(f"{url}: {error}") from error
    return filesystem, str(path).rstrip("/")


def _told(url: str, work: Callable[[], T]) -> T:
    """What `work` returns; trouble with the store becomes a `StorageError`. A missing object stays what it is."""
    try:
        return work()
    except (FileNotFoundError, FileExistsError, StorageError):
        raise
    except Exception as error:  # each driver has errors of its own
        if isinstance(error, (KeyboardInterrupt, MemoryError)):
            raise
        raise StorageError(f"{url}: {type(error).__name__}: {str(error)[:300]}") from error


def read_url(url: str, most: int) -> bytes:
    """The content of an object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has more than `most` bytes.
        StorageError: the store cannot be read.
    """
    filesystem, path = _filesystem(url)
    size = _told(url, lambda: filesystem.info(path))["size"] or 0
    if size > most:
        raise ValueError(f"{size} bytes, over {most}")
    return bytes(_told(url, lambda: filesystem.cat_file(path)))


def list_url(url: str) -> Iterator[tuple[str, str]]:
    """Name below the root, and URL, of every object that a folder, a glob or an object's own URL names; sorted.

    Raises:
        StorageError: the store cannot be read, or there is nothing.
    """
    filesystem, path = _filesystem(url)
    root = list_root(url)
    below = _filesystem(root)[1]
    if any(c in path for c in "*?["):
        found = _told(url, lambda: filesystem.glob(path))
    else:
        found = _told(url, lambda: filesystem.find(path))
    if not found:
        raise StorageError(f"{url}: no such object, folder or glob")
    for entry in sorted(found):
        name = str(entry)[len(below) :].lstrip("/")
        if name:
            yield name, f"{root}/{name}"


def list_root(url: str) -> str:
    """The URL that the names of `list_url` are relative to."""
    filesystem, path = _filesystem(url)
    scheme = url.partition("://")[0]
    if any(c in path for c in "*?["):
        parts = path.split("/")
        fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
        path = "/".join(parts[:fixed])
    elif _told(url, lambda: filesystem.isfile(path)):
        path = path.rpartition("/")[0]
    return f"{scheme}://{path.lstrip('/') if scheme != 'file' else path}"


class RemoteFolder(OutputFolder):
    """An output folder in a store. `staging` is the folder on this machine for the records of the run; workers, which
    write none, have no use for one."""

    def __init__(self, url: str, staging: Path | None = None) -> None:
        super().__init__(staging or Path())
        self.url, self._staged = url.rstrip("/"), staging is not None
        self.filesystem, self._base = _filesystem(url)
        self._copied: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def _is_record(self, relative: str) -> bool:
        return self._staged and relative.startswith("_run/") and not relative.startswith(_COPIES)

    def key(self, relative: str) -> str:
        """Path of an object as the driver writes it. Raises `OutputError` for what would leave the folder."""
        self.path(relative)
        return f"{self._base}/{relative}"

    def write(self, relative: str, data: bytes) -> None:
        """Put an object whole. Raises `OutputLostError` where the store does not take it any more."""
        if self._is_record(relative):
            return super().write(relative, data)
        key = self.key(relative)
        try:
            _told(self.url, lambda: self.filesystem.pipe_file(key, data))
        except (StorageError, FileNotFoundError) as error:
            raise OutputLostError(f"{error}; mend that and run the same command again") from error

    def read(self, relative: str) -> bytes | None:
        """The content of an object, None where it cannot be read."""
        if self._is_record(relative):
            return super().read(relative)
        try:
            return bytes(self.filesystem.cat_file(self.key(relative)))
        except Exception:  # gone, or no connection: for the caller both mean that it is not there
            return None

    def exists(self, relative: str) -> bool:
        """Whether an object is there."""
        key = self.key(relative)
        return bool(_told(self.url, lambda: self.filesystem.exists(key)))

    def remove(self, relative: str) -> None:
        """Remove an object where it exists."""
        key = self.key(relative)
        try:
            if _told(self.url, lambda: self.filesystem.exists(key)):
                _told(self.url, lambda: self.filesystem.rm_file(key))
        except FileNotFoundError:
            return

    def names(self, relative: str) -> list[str]:
        """Names in a folder, sorted; none where it does not exist."""
        key = self.key(relative)
        try:
            found = _told(self.url, lambda: self.filesystem.ls(key, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(entry).rpartition("/")[2] for entry in found)

    def sweep(self) -> int:
        """Nothing to do: an object is there whole or not at all."""
        return 0

    def fetch_records(self) -> None:
        """Bring the records of an earlier run onto this machine."""
        for name in ("_run/journal.jsonl", "_run/config.yaml", "_run/run.json"):
            try:
                data = _told(self.url, functools.partial(self.filesystem.cat_file, self.key(name)))
            except FileNotFoundError:
                continue
            super().write(name, bytes(data))

    def publish(self, final: bool = False) -> None:
        """Copy the records that have changed, if it is time or `final`. Raises `OutputLostError`."""
        if not final and time.monotonic() - self._last < COPY_INTERVAL_S:
            return
        self._last = time.monotonic()
        try:
            self._renew()
            for folder, _, files in os.walk(self.root / "_run"):
                for file in files:
                    path = Path(folder, file)
                    relative = path.relative_to(self.root).as_posix()
                    state = path.stat()
                    if relative != "_run/lock" and self._copied.get(relative) != (state.st_mtime_ns, state.st_size):
                        put = functools.partial(self.filesystem.put_file, str(path), self.key(relative))
                        _told(self.url, put)
                        self._copied[relative] = (state.st_mtime_ns, state.st_size)
        except (StorageError, FileNotFoundError) as error:
            raise OutputLostError(f"{error}; mend that and run the same command again") from error
        if final:
            self._remove_old_pages()

    def _remove_old_pages(self) -> None:
        kept = {p.name for p in (self.root / "_run" / "report").glob("*.html")}
        for name in self.names("_run/report"):
            if name not in kept:
                self.remove(f"_run/report/{name}")

    # The lock

    @functools.cached_property
    def _owner(self) -> str:
        mark = hashlib.sha256(f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}".encode()).hexdigest()[:12]
        return f"{socket.gethostname()}, process {os.getpid()}, {mark}"

    def _lock_content(self) -> bytes:
        return json.dumps({"owner": self._owner, "renewed": time.time()}).encode()

    def lock(self) -> None:
        """Take the folder for this run. Raises `OutputError` where another run has it."""
        key = f"{self._base}/_run/lock"
        for _ in range(2):
            try:
                _told(self.url, lambda: self.filesystem.pipe_file(key, self._lock_content(), mode="create"))
                return
            except FileNotFoundError as error:
                raise StorageError(f"{self.url}: {error}") from error
            except FileExistsError as error:
                holder = self._holder()
                if holder is not None and time.time() - holder["renewed"] < LOCK_STALE_S:
                    raise OutputError(f"another run is at work in {self.url} ({holder['owner']})") from error
                self.remove("_run/lock")
        raise OutputError(f"another run has just begun in {self.url}")

    def _holder(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.filesystem.cat_file(f"{self._base}/_run/lock"))
            return {"owner": str(found["owner"]), "renewed": float(found["renewed"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _renew(self) -> None:
        holder = self._holder()
        if holder is not None and holder["owner"] != self._owner:
            raise StorageError(f"{self.url}: another run has taken over ({holder['owner']})")
        key = f"{self._base}/_run/lock"
        _told(self.url, lambda: self.filesystem.pipe_file(key, self._lock_content()))

    def unlock(self) -> None:
        """Give the folder back."""
        holder = self._holder()
        if holder is None or holder["owner"] == self._owner:
            self.remove("_run/lock")


def open_output(output: str) -> OutputFolder:
    """The folder that workers write to, on a disk or in a store. Raises `StorageError`."""
    return RemoteFolder(output) if is_url(output) else OutputFolder(Path(output))
