"""The output folder: one run at a time, whole files only, nothing outside it."""

import errno
import fcntl
import itertools
import os
from contextlib import suppress
from pathlib import Path

_TEMPORARY = ".revisage-"  # start of the names of files being written
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class OutputError(RuntimeError):
    """The output folder cannot be used: read-only, a file, or another run is at work in it."""

    exit_code = 2


class OutputLostError(OutputError):
    """The output folder can no longer be written: the disk is full or has become read-only. The run cannot go on."""

    exit_code = 1


class OutputFolder:
    """Writes below one root. Safe to use from several threads; several processes may hold one each."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._known: set[str] = set()
        self._counter = itertools.count()

    def path(self, relative: str) -> Path:
        """Where `relative` (with "/") lies. Raises `OutputError` for a path that is not plainly below the root."""
        parts = relative.split("/")
        if any(p in ("", ".", "..") or "\0" in p or os.path.isabs(p) or (os.sep in p) for p in parts):
            raise OutputError(f"refused to write {relative!r}: not a plain path below {self.root}")
        return self.root.joinpath(*parts)

    def _prepare(self, folder: Path) -> None:
        """Create a folder and make sure that no link leads it out of the root."""
        if str(folder) in self._known:
            return
        folder.mkdir(parents=True, exist_ok=True)
        real, root = os.path.realpath(folder), os.path.realpath(self.root)
        if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
            raise OutputError(f"refused to write into {folder}: a symbolic link leads out of {self.root}")
        self._known.add(str(folder))

    def write(self, relative: str, data: bytes) -> None:
        """Write a file whole or not at all: a temporary file in the same folder, then a rename over the name.

        There is no fsync: after a power cut the hash in the journal finds what was lost, and resume makes it again.

        Raises:
            OutputLostError: the disk is full or read-only; the run cannot go on.
            OutputError: the path leads out of the root.
            OSError: this one file cannot be written; `filename` is its own, or that of the folder it should lie in.
        """
        target, temporary = self.path(relative), self.reserve(relative)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._told(error, target) from error
            raise

    def reserve(self, relative: str) -> Path:
        """Where to write a file in parts that `settle` then puts in its place. Raises as `write`."""
        target = self.path(relative)
        try:
            self._prepare(target.parent)
        except OSError as error:
            raise self._told(error, Path(error.filename or target.parent)) from error
        return target.with_name(f"{_TEMPORARY}{os.getpid()}-{next(self._counter)}")

    def settle(self, temporary: Path, relative: str) -> None:
        """Put a finished file of `reserve` in its place. Raises as `write`."""
        target = self.path(relative)
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise self._told(error, target) from error

    def remove(self, relative: str) -> None:
        """Remove a file where it exists; a folder in its place is not ours and stays. Raises as `write`."""
        target = self.path(relative)
        try:
            if not target.is_dir():
                target.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise self._told(error, target) from error

    @staticmethod
    def _told(error: OSError, target: Path) -> OSError:
        """The same error with the name that a user knows. Raises `OutputLostError` where it ends the whole run."""
        raise_if_lost(error, target)
        return OSError(error.errno, error.strerror or str(error), str(target))

    def read(self, relative: str) -> bytes | None:
        """The content of a file, None where it cannot be read."""
        try:
            return self.path(relative).read_bytes()
        except (OSError, OutputError):
            return None

    def exists(self, relative: str) -> bool:
        """Whether a file is there."""
        return os.path.exists(self.path(relative))

    def publish(self, final: bool = False) -> None:
        """Make what is recorded so far visible to others: here it is, as soon as it is written."""

    def names(self, relative: str) -> list[str]:
        """Names in a folder, sorted; none where it does not exist."""
        try:
            return sorted(os.listdir(self.path(relative)))
        except OSError:
            return []

    def sweep(self) -> int:
        """Remove temporary files that a killed run left; returns their number."""
        count = 0
        for folder, _, files in os.walk(self.root):
            for name in files:
                if name.startswith(_TEMPORARY):
                    Path(folder, name).unlink(missing_ok=True)
                    count += 1
        return count


def raise_if_lost(error: OSError, target: Path) -> None:
    """Raise `OutputLostError` where `error`, met in writing `target`, ends the whole run."""
    if error.errno in _FATAL:
        raise OutputLostError(f"{target}: {error.strerror}; mend that and run the same command again") from error


class OutputLock:
    """Held while a run works in an output folder. The operating system frees it when the holder dies.

    Attributes:
        unclean: the run before this one did not end properly.

    Raises:
        OutputError: another run holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be written: {error.strerror or error}") from error
        holder = os.pread(self._descriptor, 64, 0).decode("ascii", "replace")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            where = path.parent.parent
            raise OutputError(f"another run is at work in {where} (process {holder or 'unknown'})") from error
        self.unclean = bool(holder)
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def forget(self) -> None:
        """Close a copy inherited by a child process; the parent keeps the lock."""
        os.close(self._descriptor)

    def release(self) -> None:
        """Mark the run as properly ended and let go."""
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)
