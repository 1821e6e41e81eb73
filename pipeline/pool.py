"""Worker processes: each works through tasks on its own; the parent hands out chunks and collects outcomes.

The parent has one thread and talks over plain pipes. A worker that dies (killed for memory, or by a picture that
crashes a decoder) is replaced; its tasks are given out again one by one, and one that kills its worker has failed.
"""

import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from pipeline.images import ImageError
from pipeline.output import OutputError
from pipeline.planning import Task
from pipeline.restorer import Result, failure
from pipeline.worker import Outcome, Prior, Worker

Pair = tuple[Task, Prior | None]
ORPHAN_CHECK_S = 1.0


class WorkerError(RuntimeError):
    """A worker process reported an error of its own, not of an input."""


def context(device: str) -> BaseContext:
    """How workers start: as copies of the parent on Linux without CUDA (the networks are loaded once), else afresh."""
    return multiprocessing.get_context("fork" if sys.platform.startswith("linux") and device == "cpu" else "spawn")


def end_without(parent: int) -> None:
    """End this process where its parent is gone."""
    if os.getppid() != parent:
        os._exit(1)


def watch(parent: int) -> None:
    """From now on, end this process within `ORPHAN_CHECK_S` seconds of its parent."""

    def look() -> None:
        while True:
            end_without(parent)
            time.sleep(ORPHAN_CHECK_S)

    threading.Thread(target=look, daemon=True).start()


def _received(connection: Connection, parent: int) -> Iterator[Pair]:
    """Tasks as they come, until told that there are no more; ends the process when the parent is gone.

    A thread empties the pipe at all times, or parent and worker could each wait for the other to read.
    """
    chunks: queue.SimpleQueue[list[Pair] | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                chunks.put(chunk := connection.recv())
                if chunk is None:
                    return
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            chunk = chunks.get(timeout=ORPHAN_CHECK_S)
        except queue.Empty:
            chunk = []
        if chunk is None:
            return
        for pair in chunk:
            end_without(parent)
            yield pair
        end_without(parent)


def serve(
    connection: Connection,
    parent: int,
    prepare: Callable[[], Worker],
    stopped: Callable[[], bool],
    inherited: list[Connection],
) -> None:
    """Main function of a worker process. The terminal's Ctrl-C is for the parent, and reaches it as `stopped`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    try:
        for outcome in prepare().process(_received(connection, parent), stopped):
            connection.send(outcome)
        connection.send(None)
    except OutputError as error:
        connection.send(error)
    except (BrokenPipeError, EOFError):
        os._exit(1)
    except Exception:  # reported to the parent with its trace, which ends the run
        connection.send(WorkerError(traceback.format_exc()))


@dataclass
class _Member:
    process: BaseProcess
    connection: Connection
    held: dict[str, Pair] = field(default_factory=dict)
    closed: bool = False  # told that there are no more tasks
    alone: bool = False  # has one task, on which another worker may have died


class Pool:
    """`count` workers, made by `prepare` in each process; tasks are given out `chunk` at a time, up to `most` to one
    worker; `bury` turns the failure of a task that killed its worker into an outcome. Once `stopped()`, which every
    process sees at once, no task is given out, and what workers only hold has no outcome."""

    def __init__(
        self,
        count: int,
        prepare: Callable[[], Worker],
        bury: Callable[[Task, Prior | None, Result], Outcome],
        device: str,
        chunk: int,
        most: int,
        stopped: Callable[[], bool],
    ) -> None:
        self._context, self._prepare, self._bury = context(device), prepare, bury
        self._chunk, self._most, self._stopped = chunk, most, stopped
        self._members: list[_Member] = []
        for _ in range(count):
            self._members.append(self._start())

    def _start(self) -> _Member:
        ours, theirs = self._context.Pipe()
        forked = self._context.get_start_method() == "fork"
        inherited = [ours, *(m.connection for m in self._members)] if forked else []
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, os.getpid(), self._prepare, self._stopped, inherited), daemon=True
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads; those of the linear algebra library are idle and start anew.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        return _Member(process, ours)

    def process(self, pairs: Iterator[Pair]) -> Iterator[Outcome]:
        """Outcomes of all tasks, as they end.

        Raises:
            OutputError, WorkerError: as reported by a worker.
        """
        again: deque[Pair] = deque()  # tasks of workers that died, given out one at a time
        more = True
        while True:
            more = self._feed(pairs, again, more)
            if not self._members:
                return
            ready = wait([m.connection for m in self._members])
            for member in [m for m in self._members if m.connection in ready]:
                yield from self._collect(member, again)

    def _feed(self, pairs: Iterator[Pair], again: deque[Pair], more: bool) -> bool:
        """Give out tasks, a chunk to each in turn, as far as workers may hold them; returns whether there are more."""
        if self._stopped():
            more = False
            again.clear()
        if again and not any(m.alone for m in self._members):
            self._members.append(member := self._start())
            member.alone = member.closed = True
            self._send(member, [again.popleft()])
            self._send(member, None)
        if more and all(m.closed for m in self._members):
            self._members.append(self._start())  # the others have died
        while more and (able := [m for m in self._members if not m.closed and len(m.held) + self._chunk <= self._most]):
            chunk = list(itertools.islice(pairs, self._chunk))
            more = len(chunk) == self._chunk
            self._send(min(able, key=lambda m: len(m.held)), chunk)
        for member in self._members:
            if not more and not member.closed:
                member.closed = True
                self._send(member, None)
        return more

    def _send(self, member: _Member, chunk: list[Pair] | None) -> None:
        for pair in chunk or ():
            member.held[pair[0].name] = pair
        try:
            member.connection.send(chunk)
        except (BrokenPipeError, ConnectionResetError):
            return  # it died; its end of the pipe will say so when it is read

    def _collect(self, member: _Member, again: deque[Pair]) -> Iterator[Outcome]:
        """Read what a worker sent; handle its end and its death."""
        try:
            message = member.connection.recv()
        except (EOFError, ConnectionResetError):
            self._members.remove(member)
            member.connection.close()
            member.process.join()
            if member.alone:
                error = ImageError("failed", f"the worker process died on it (exit code {member.process.exitcode})")
                for task, prior in member.held.values():
                    yield self._bury(task, prior, failure(task.name, error))
            else:
                again.extend(member.held.values())
            return
        if isinstance(message, (OutputError, WorkerError)):
            raise message
        if message is None:
            self._members.remove(member)
            member.process.join()
        else:
            if message.ends:
                member.held.pop(message.name, None)
            yield message

    def stop(self) -> None:
        """End all workers at once; used when the run cannot go on."""
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            member.process.join()
