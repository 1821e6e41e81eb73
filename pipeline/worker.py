"""One worker: reads, restores and writes tasks, the three overlapping; memory is bounded by the batch."""

import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.images import (
    ImageError,
    decode,
    encode_png,
    fit_mask,
    open_header,
    pad_square,
    read_bytes,
    read_mask,
    sha256,
    to_uint8,
)  # fmt: skip
from pipeline.output import OutputFolder
from pipeline.planning import Task
from pipeline.provenance import png_text
from pipeline.restorer import Face, Restorer, Result, failure

# Above these a picture is no thumbnail: it is decoded and run alone, so that no queue ever holds several of them.
LARGE_BYTES, LARGE_PIXELS = 1 << 20, 1 << 16
WAITING_BATCHES = 16  # faces waiting for companions of their size, in batches; then the largest group goes as it is
IO_THREADS = 2

OnExists = Literal["skip", "overwrite", "error"]


@dataclass(frozen=True)
class Job:
    """What a worker is asked to do with every task.

    Attributes:
        output: root of the output folder.
        folder: name of the folder of the pictures below it (`restored`, `degraded`).
        fingerprint: SHA-256 of all that decides the output but the input: chain, weights, arithmetic, version.
        on_exists: what to do with an output that the journal does not account for.
        save_priors: also write landmarks, heatmaps, parsing and mask.
        chain_digest, weights: for the record inside the pictures.
    """

    output: str
    folder: str
    fingerprint: str
    on_exists: OnExists
    save_priors: bool
    chain_digest: str
    weights: dict[str, str]

    def key(self, digest: str, mask_digest: str | None) -> str:
        """What must be equal for an earlier result to stand."""
        return sha256(f"{self.fingerprint}:{digest}:{mask_digest or ''}".encode())[:32]


@dataclass(frozen=True)
class Outcome:
    """What became of one task, on its way to the journal.

    Attributes:
        name: of the task.
        status: final status; `skipped` for an existing file left alone.
        record: the journal line, None where the earlier one stands.
        spent: seconds of decoding, network, encoding.
    """

    name: str
    status: str
    record: dict[str, Any] | None
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass
class _Loaded:
    """A task after decoding: a face, or already an outcome, or a large picture still to be decoded."""

    task: Task
    face: Face | None = None
    outcome: Outcome | None = None
    key: str = ""
    large: bool = False
    seconds: float = 0.0


@dataclass
class _Groups:
    """Faces waiting for others of their size."""

    waiting: dict[tuple[int, int, bool], list[_Loaded]] = field(default_factory=dict)
    count: int = 0

    def add(self, item: _Loaded) -> list[_Loaded]:
        assert item.face is not None
        group = self.waiting.setdefault(item.face.group, [])
        group.append(item)
        self.count += 1
        return group

    def take(self, group: tuple[int, int, bool]) -> list[_Loaded]:
        items = self.waiting.pop(group)
        self.count -= len(items)
        return items

    def largest(self) -> tuple[int, int, bool]:
        return max(self.waiting, key=lambda g: len(self.waiting[g]))


def product_paths(folder: str, target: str) -> dict[str, str]:
    """Paths (relative to the output root) of everything that may be written for a target."""
    return {
        "image": f"{folder}/{target}.png",
        "uncertainty": f"uncertainty/{target}.png",
        "occlusion": f"occlusion/{target}.png",
        "priors": f"priors/{target}.npz",
    }


def render(result: Result, restorer: Restorer, job: Job) -> dict[str, bytes]:
    """The files of a result by kind (`image`, `uncertainty`, `occlusion`, `priors`); equal results give equal bytes."""
    if result.image is None:
        return {}
    short = {
        "software": "revisage",
        "chain": restorer.config.name,
        "chain_sha256": job.chain_digest,
        "weights_sha256": job.weights,
        "seed": restorer.seed_of(result.input_sha256 or ""),
        "precision": restorer.precision,
        "input_sha256": result.input_sha256,
        "status": result.status,
        "verdict": result.verdict,
        "reason": result.reason,
    }
    text = png_text(short, restorer.chain.generative)
    files = {"image": encode_png(result.image, text)}
    for kind, values in (("uncertainty", result.uncertainty), ("occlusion", result.occlusion)):
        if values is not None:
            files[kind] = encode_png(to_uint8(values), text)
    if job.save_priors:
        priors = {
            "landmarks": result.landmarks, "landmark_confidence": result.landmark_confidence,
            "heatmaps": result.heatmaps, "parsing": result.parsing, "mask": result.occlusion,
        }  # fmt: skip
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {k: v for k, v in priors.items() if v is not None}
        np.savez_compressed(buffer, **arrays)
        files["priors"] = buffer.getvalue()
    return files


def _rounded(values: np.ndarray | float | None, digits: int) -> Any:
    return None if values is None else np.round(np.asarray(values, np.float64), digits).tolist()


class Worker:
    """Holds a restorer and an output folder."""

    def __init__(self, restorer: Restorer, job: Job) -> None:
        self.restorer, self.job = restorer, job
        self.output = OutputFolder(Path(job.output))

    # Reading

    def _load(self, task: Task, prior: dict[str, Any] | None, alone: bool = False) -> _Loaded:
        """Read one task's bytes, see whether its earlier result stands, decode it. `alone` allows large pictures."""
        started = time.perf_counter()
        digest: str | None = None
        try:
            if task.refused:
                raise ImageError("unsupported", task.refused)
            if not alone and _size_of(task.source) > LARGE_BYTES:
                return _Loaded(task, large=True)
            data = read_bytes(task.source, self.restorer.limits)
            digest = sha256(data)
            mask_data = read_bytes(task.mask, self.restorer.limits) if task.mask else None
            key = self.job.key(digest, sha256(mask_data) if mask_data else None)
            if (standing := self._standing(task, prior, key)) is not None:
                return _Loaded(task, outcome=standing)
            image = open_header(data, task.source, self.restorer.limits)
            if not alone and image.width * image.height > LARGE_PIXELS:
                return _Loaded(task, large=True)
            picture = decode(image)
            size = picture.pixels.shape[:2]
            square = self.restorer.limits.accepts_px is not None
            mask = None
            if mask_data is not None:
                try:
                    mask = fit_mask(read_mask(mask_data), (size[0], size[1]), square)
                except ImageError as error:
                    raise ImageError("failed", f"the mask {os.path.basename(task.mask or '')}: {error}") from error
            face = Face(task.name, pad_square(picture) if square else picture, digest, mask)
            return _Loaded(task, face=face, key=key, seconds=time.perf_counter() - started)
        except ImageError as error:
            result = failure(task.name, error, digest, time.perf_counter() - started)
        except MemoryError:
            result = failure(task.name, ImageError("failed", "not enough memory to decode it"), digest)
        return _Loaded(task, outcome=self._write(task, result, "", time.perf_counter() - started))

    def _standing(self, task: Task, prior: dict[str, Any] | None, key: str) -> Outcome | None:
        """The outcome of an input that needs no work: its earlier result stands, or its existing file is to be left."""
        paths = product_paths(self.job.folder, task.target)
        if prior is not None and prior.get("key") == key and prior["status"] in ("ok", "review", "no_face"):
            hashes = prior["files_sha256"] or {}
            if all(
                (data := self.output.read(paths[kind])) is not None and sha256(data) == h for kind, h in hashes.items()
            ):
                return Outcome(task.name, prior["status"], None)
        if self.job.on_exists == "skip" and os.path.exists(self.output.path(paths["image"])):
            return Outcome(task.name, "skipped", None)
        return None

    # Writing

    def _write(self, task: Task, result: Result, key: str, decoding: float) -> Outcome:
        """Write a result's files, remove what an earlier run left under its name, and make its record."""
        started = time.perf_counter()
        paths = product_paths(self.job.folder, task.target)
        files: dict[str, bytes] = {}
        try:
            files = render(result, self.restorer, self.job)
            for kind, data in files.items():
                self.output.write(paths[kind], data)
        except OSError as error:
            result = failure(
                task.name, ImageError("failed", f"cannot be written: {error.strerror or error}"), result.input_sha256
            )
            files = {}
        if self.job.on_exists == "overwrite":
            for kind in paths.keys() - files.keys():
                self.output.remove(paths[kind])
        encoding = time.perf_counter() - started
        hashes = {kind: sha256(data) for kind, data in files.items()}
        record = {
            "input": task.name,
            "input_sha256": result.input_sha256,
            "status": result.status,
            "output": paths["image"] if "image" in files else None,
            "output_sha256": hashes.get("image"),
            "files_sha256": hashes,
            "landmarks_px": _rounded(result.landmarks, 2),
            "landmark_confidence": _rounded(
                None if result.landmark_confidence is None else result.landmark_confidence.mean(), 3
            ),
            "face_score": _rounded(result.face_score, 4),
            "occluded_fraction": _rounded(result.occluded_fraction, 4),
            "lr_consistency_db": _rounded(result.lr_consistency_db, 2),
            "verdict": result.verdict,
            "reason": result.reason,
            "seconds": round(decoding + result.seconds + encoding, 4),
            "error": result.error,
            "notes": result.notes,
            "key": key,
        }
        return Outcome(task.name, result.status, record, (decoding, result.seconds, encoding))

    def record_failure(self, task: Task, result: Result) -> Outcome:
        """The outcome of a task that failed elsewhere."""
        return self._write(task, result, "", 0.0)

    # Running

    def process(self, tasks: Iterable[tuple[Task, dict[str, Any] | None]]) -> Iterator[Outcome]:
        """Outcomes of (task, earlier record) pairs, in the order in which they end.

        Decoding and encoding run in threads beside the network. At most `WAITING_BATCHES` + 4 batches are in hand.

        Raises:
            OutputError: the output folder cannot be written any more.
        """
        size = self.restorer.batch_size
        groups = _Groups()
        reading: deque[tuple[Task, dict[str, Any] | None, Future[_Loaded]]] = deque()
        writing: deque[Future[Outcome]] = deque()
        source = iter(tasks)
        with ThreadPoolExecutor(IO_THREADS, "decode") as readers, ThreadPoolExecutor(IO_THREADS, "encode") as writers:
            more = True
            while more or reading:
                while more and len(reading) < size:
                    if (pair := next(source, None)) is None:
                        more = False
                    else:
                        reading.append((*pair, readers.submit(self._load, *pair)))
                if reading:
                    task, prior, future = reading.popleft()
                    item = future.result()
                    if item.large:
                        item = self._load(task, prior, alone=True)
                        if item.face is not None:
                            yield from (f.result() for f in self._restore([item], writers))
                    elif item.face is not None:
                        if len(groups.add(item)) >= size:
                            writing.extend(self._restore(groups.take(item.face.group), writers))
                    if item.outcome is not None:
                        yield item.outcome
                if groups.count > WAITING_BATCHES * size:
                    writing.extend(self._restore(groups.take(groups.largest()), writers))
                while writing and (writing[0].done() or len(writing) > 2 * size):
                    yield writing.popleft().result()
            while groups.waiting:
                writing.extend(self._restore(groups.take(groups.largest()), writers))
                while writing and writing[0].done():
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()

    def _restore(self, items: list[_Loaded], writers: ThreadPoolExecutor) -> list[Future[Outcome]]:
        faces = [item.face for item in items if item.face is not None]
        results = self.restorer.run(faces, priors=self.job.save_priors)
        return [
            writers.submit(self._write, item.task, result, item.key, item.seconds)
            for item, result in zip(items, results, strict=True)
        ]


def in_hand(batch_size: int) -> int:
    """The most tasks a worker can hold before it must give an outcome: what its feeder has to allow for."""
    return (WAITING_BATCHES + 5) * batch_size


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
