"""One worker: reads, restores and writes tasks, the three overlapping; memory is bounded by the batch."""

import io
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.config import MarkingConfig, SigningConfig
from pipeline.credentials import Signer
from pipeline.face import Face
from pipeline.images import (
    VIDEO_ENDINGS,
    ImageError,
    decode,
    encode_png,
    file_sha256,
    fit_mask,
    open_header,
    pad_square,
    read_bytes,
    read_mask,
    sha256,
    to_uint8,
)  # fmt: skip
from pipeline.marking import marked
from pipeline.output import OutputFolder, raise_if_lost
from pipeline.planning import ENDINGS, FACE_NAME, Task, face_target
from pipeline.provenance import png_text, sidecar
from pipeline.restorer import FAILURES, Restorer, Result, failure, judge
from pipeline.sources.boxes import BoxFile
from pipeline.sources.frames import faces_of, overall, paste_all
from pipeline.sources.video import VideoFaces
from pipeline.storage import is_url, open_output
from stages.base import Detection

# Above these a picture is no thumbnail: it is decoded and run alone, so that no queue ever holds several of them.
LARGE_BYTES, LARGE_PIXELS = 1 << 20, 1 << 16
# The same for whole frames, of which few are in hand at a time: 4096 x 4096.
LARGE_FRAME_BYTES, LARGE_FRAME_PIXELS = 1 << 25, 1 << 24
WAITING_BATCHES = 16  # faces waiting for companions of their size, in batches; then the largest group goes as it is
IO_THREADS = 2
FRAMES_AHEAD = 4  # frames and videos in hand for reading: each may be large

# What a file of priors holds, by its name there: fields of a `Result`, and of the `FaceBatch` it comes from.
PRIORS = {
    "landmarks": "landmarks", "landmark_confidence": "landmark_confidence", "heatmaps": "heatmaps",
    "parsing": "parsing", "mask": "occlusion",
}  # fmt: skip
OnExists = Literal["skip", "overwrite", "error"]
# What a worker is told of an earlier record: `key`, `status` and `files_sha256`; of an input with faces also `faces`,
# the same of each of them, None for a line that is missing.
Prior = dict[str, Any]


def never() -> bool:
    """For work that nobody stops."""
    return False


@dataclass(frozen=True)
class Job:
    """What a worker is asked to do with every task.

    Attributes:
        output: root of the output folder.
        folder: name of the folder of the pictures below it (`restored`, `degraded`).
        fingerprint: SHA-256 of all that decides the output but the input: chain, weights, arithmetic, version.
        on_exists: what to do with an output that is no proven result; `error` has been answered before the work begins.
        save_priors: also write landmarks, heatmaps, parsing and mask.
        chain_digest, weights: for the record inside the pictures.
        boxes: file of the boxes of faces, where the chain asks for one.
        marking: what is written beside the pictures: copies with the standing words burnt in, records.
        signing: certificate and key for the manifests in the pictures.
        bands: edit large pictures in bands of rows where that can be done.
        resume: earlier results stand where they are proven; else they only tell what to remove.
    """

    output: str
    folder: str
    fingerprint: str
    on_exists: OnExists
    save_priors: bool
    chain_digest: str
    weights: dict[str, str]
    boxes: str | None = None
    marking: MarkingConfig = field(default_factory=MarkingConfig)
    signing: SigningConfig | None = None
    bands: bool = True
    resume: bool = True

    @property
    def marks_files(self) -> bool:
        """Whether more than the pictures and their maps is made of a picture."""
        return self.marking.sidecar or self.marking.strip == "copies"

    def key(self, digest: str, mask_digest: str | None) -> str:
        """What must be equal for an earlier result to stand."""
        return sha256(f"{self.fingerprint}:{digest}:{mask_digest or ''}".encode())[:32]


@dataclass(frozen=True)
class Outcome:
    """What became of one task, or of one face of it, on its way to the journal.

    Attributes:
        name: of the task.
        status: final status; `skipped` for an existing file left alone.
        record: the journal line, None where the earlier one stands.
        spent: seconds of decoding, network, encoding.
        ends: whether the task has ended with it; False for the faces of an input, which come before its own outcome.
        faces: statuses of the faces of an input that has ended, with their number.
        pasted: what is to be put back into the frame; stays within the worker.
    """

    name: str
    status: str
    record: dict[str, Any] | None
    spent: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ends: bool = True
    faces: dict[str, int] = field(default_factory=dict)
    pasted: Result | None = None


@dataclass
class _Open:
    """An input of which several faces are under way.

    Attributes:
        prior: what is known of its earlier record.
        found: faces that have a number. waiting: those of them that have not ended.
        closed: no further faces will come. error: why there could be no more.
        statuses, pasted: of the faces that have ended. made: the files of each of them, hashes by kind.
        dropped: findings that were not taken. spent: seconds, as in `Outcome`.
    """

    task: Task
    prior: Prior | None = None
    key: str = ""
    digest: str | None = None
    found: int = 0
    waiting: int = 0
    closed: bool = False
    error: ImageError | None = None
    damage: str | None = None
    statuses: Counter[str] = field(default_factory=Counter)
    pasted: list[Result] = field(default_factory=list)
    made: dict[int, dict[str, str]] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    spent: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def take(self, outcome: Outcome) -> None:
        """One of the faces has ended."""
        self.waiting -= 1
        self.statuses[outcome.status] += 1
        assert outcome.record is not None
        self.made[outcome.record["face"]] = outcome.record["files_sha256"]
        self.spent = [a + b for a, b in zip(self.spent, outcome.spent, strict=True)]
        if outcome.pasted is not None:
            self.pasted.append(outcome.pasted)

    def verdict(self) -> tuple[str, str | None, str | None]:
        """Status, reason and error of the input as a whole, once all its faces have ended."""
        if self.error is not None:
            return self.error.status, self.error.status, str(self.error)
        status, reason, error = overall(self.statuses, len(self.dropped))
        if status in ("ok", "no_face") and self.damage is not None and self.found:
            return "review", self.damage, None
        return status, reason, error


@dataclass
class _Loaded:
    """A task after decoding: a face, or already an outcome, or a large picture or video still to be decoded; or one
    face of an input that has several."""

    task: Task
    prior: Prior | None = None
    face: Face | None = None
    outcome: Outcome | None = None
    key: str = ""
    large: bool = False
    seconds: float = 0.0
    owner: _Open | None = None
    faces: list[Face] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)


@dataclass
class _Groups:
    """Faces waiting for others of their size."""

    waiting: dict[tuple[int, int, bool, int], list[_Loaded]] = field(default_factory=dict)
    count: int = 0

    def add(self, item: _Loaded) -> list[_Loaded]:
        assert item.face is not None
        group = self.waiting.setdefault(item.face.group, [])
        group.append(item)
        self.count += 1
        return group

    def take(self, group: tuple[int, int, bool, int]) -> list[_Loaded]:
        items = self.waiting.pop(group)
        self.count -= len(items)
        return items

    def largest(self) -> tuple[int, int, bool, int]:
        return max(self.waiting, key=lambda g: len(self.waiting[g]))


def product_paths(folder: str, target: str) -> dict[str, str]:
    """Paths (relative to the output root) of everything that may be written for a target."""
    return {
        "image": f"{folder}/{target}.png",
        "thumbnail": f"thumbnails/{target}.png",
        "marked": f"_run/marked/{target}.png",
        "uncertainty": f"uncertainty/{target}.png",
        "occlusion": f"occlusion/{target}.png",
        "priors": f"priors/{target}.npz",
        "sidecar": f"sidecars/{target}.json",
    }


def render(result: Result, restorer: Restorer, job: Job) -> dict[str, bytes]:
    """The files of a result by kind (`image`, `uncertainty`, `occlusion`, `thumbnail`, `marked`, `priors`, `sidecar`),
    unsigned; equal results give equal bytes."""
    if result.image is None:
        return {}
    record = short_record(result, restorer, job)
    text = png_text(record, restorer.chain.generative)
    files = {"image": encode_png(result.image, text)}
    if job.marking.sidecar:
        files["sidecar"] = sidecar(record, restorer.chain.generative, sha256(files["image"]))
    if job.marking.strip == "copies" and restorer.chain.generative:
        files["marked"] = encode_png(marked(result.image), text)
    for kind, values in (("uncertainty", result.uncertainty), ("occlusion", result.occlusion)):
        if values is not None:
            files[kind] = encode_png(to_uint8(values), text)
    if result.thumbnail is not None:
        files["thumbnail"] = encode_png(result.thumbnail)
    if job.save_priors:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {k: v for k, f in PRIORS.items() if (v := getattr(result, f)) is not None}
        np.savez_compressed(buffer, **arrays)
        files["priors"] = buffer.getvalue()
    return files


def short_record(result: Result, restorer: Restorer, job: Job) -> dict[str, Any]:
    """What a picture says of itself: how it was made, from what, and what came of it."""
    return {
        "software": "revisage",
        "chain": restorer.config.name,
        "chain_sha256": job.chain_digest,
        "weights_sha256": job.weights,
        "seed": restorer.seed_of(result.input_sha256 or ""),
        "precision": restorer.precision,
        "input_sha256": result.input_sha256,
        "input_side_px": result.side_px,
        "status": result.status,
        "verdict": result.verdict,
        "reason": result.reason,
    }


def reproducible(record: dict[str, Any]) -> dict[str, str]:
    """Hashes by kind of the files that the same chain gives again; a signed picture counts as it was before signing,
    for a signature holds the time."""
    hashes: dict[str, str] = record.get("files_sha256") or {}
    return hashes | {"image": record["unsigned_sha256"]} if "unsigned_sha256" in record else hashes


def _rounded(values: np.ndarray | float | None, digits: int) -> Any:
    return None if values is None else np.round(np.asarray(values, np.float64), digits).tolist()


class Worker:
    """Holds a restorer and an output folder."""

    def __init__(self, restorer: Restorer, job: Job) -> None:
        self.restorer, self.job = restorer, job
        self.output = open_output(job.output)
        self._groups = _Groups()
        self._writing: deque[Future[Outcome]] = deque()
        self._open: dict[str, _Open] = {}
        self._stopped: Callable[[], bool] = never

    @cached_property
    def boxes(self) -> BoxFile | None:
        """The boxes given for the inputs."""
        return BoxFile(Path(self.job.boxes)) if self.job.boxes else None

    # Reading

    def _load(self, task: Task, prior: Prior | None, alone: bool = False) -> _Loaded:
        """Read one task's bytes, see whether its earlier result stands, decode it. `alone` allows large pictures."""
        started = time.perf_counter()
        digest: str | None = None
        try:
            if task.refused:
                raise ImageError("unsupported", task.refused)
            if self.restorer.chain.opening is not None:
                return self._load_frame(task, prior, alone)
            if not alone and _size_of(task.source) > LARGE_BYTES:
                return _Loaded(task, prior, large=True)
            if alone and (outcome := self._in_bands(task, prior)) is not None:
                return _Loaded(task, prior, outcome=outcome)
            data = read_bytes(task.source, self.restorer.limits)
            digest = sha256(data)
            mask_data = read_bytes(task.mask, self.restorer.limits) if task.mask else None
            key = self.job.key(digest, sha256(mask_data) if mask_data else None)
            if (standing := self._standing(task, prior, key)) is not None:
                return _Loaded(task, prior, outcome=standing)
            image = open_header(data, task.source, self.restorer.limits)
            if not alone and image.width * image.height > LARGE_PIXELS:
                return _Loaded(task, prior, large=True)
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
            return _Loaded(task, prior, face, key=key, seconds=time.perf_counter() - started)
        except ImageError as error:
            result = failure(task.name, error, digest, time.perf_counter() - started)
        except MemoryError:
            result = failure(task.name, ImageError("failed", "not enough memory to decode it"), digest)
        return _Loaded(task, prior, outcome=self._write(task, prior, result, "", time.perf_counter() - started))

    def _in_bands(self, task: Task, prior: Prior | None) -> Outcome | None:
        """A large picture for an editor and nothing else: edited and written in bands of rows, so that its size costs
        no memory. None where it has to go the ordinary way: the pixels are the same, the encoding and the note are not.
        Raises `ImageError`."""
        from pipeline.large import LargeEdit, edit_picture, editor_of

        stage = editor_of(self.restorer.chain) if self.job.bands else None
        plain = not (self.job.marks_files or self.job.signing or is_url(task.source))
        if stage is None or not plain or type(self.output) is not OutputFolder:
            return None
        started, digest = time.perf_counter(), file_sha256(task.source)
        key = self.job.key(digest, None)
        if (standing := self._standing(task, prior, key)) is not None:
            return standing
        paths = {k: p for k, p in product_paths(self.job.folder, task.target).items() if k in ("image", "uncertainty")}
        files: dict[str, Path] = {}
        made: dict[str, str] = {}
        verdict = self.restorer.config.verdict

        def judged(edit: LargeEdit) -> Result:
            status, reason = judge(
                verdict, min(edit.size), edit.brightness, edit.face_score, uncertainty=edit.uncertainty,
                unedited=edit.unedited, likeness=edit.likeness,
            )  # fmt: skip
            return Result(
                task.name, status, verdict="restored" if reason is None else "not_decidable", reason=reason,
                face_score=edit.face_score, side_px=min(edit.size), notes=edit.notes, seconds=edit.seconds,
                input_sha256=digest,
            )  # fmt: skip

        def text_of(edit: LargeEdit) -> PngInfo:
            return png_text(short_record(judged(edit), self.restorer, self.job), self.restorer.chain.generative)

        try:
            files = {kind: self.output.reserve(path) for kind, path in paths.items()}
            edit = edit_picture(
                Path(task.source), files["image"], files["uncertainty"], stage, self.restorer.limits, text_of,
                verdict.min_face_score,
            )  # fmt: skip
            if edit is None:
                return None
            done = judged(edit)
            for kind, path in files.items() if done.status != "no_face" else ():
                file_digest = file_sha256(path)
                self.output.settle(path, paths[kind])
                made[kind] = file_digest
        except ImageError as error:
            return self._write(task, prior, failure(task.name, error, digest, time.perf_counter() - started), "", 0.0)
        except OSError as error:
            for kind in made:
                self._removed(paths[kind])
            place = self.output.path(paths["image"])
            raise_if_lost(error, place)
            raise ImageError("failed", f"cannot be written: {place}: {error.strerror or error}") from error
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)
        return self._write(task, prior, done, key, time.perf_counter() - started - edit.seconds, made)

    def _load_frame(self, task: Task, prior: Prior | None, alone: bool) -> _Loaded:
        """A whole picture: see whether its earlier result stands, else find its faces and cut them out."""
        started, opening = time.perf_counter(), self.restorer.chain.opening
        assert opening is not None
        owner = _Open(task, prior)
        try:
            if is_video(task) or (not alone and _size_of(task.source) > LARGE_FRAME_BYTES):
                return _Loaded(task, prior, large=True)
            data = read_bytes(task.source, self.restorer.limits)
            owner.digest = sha256(data)
            owner.key = self._frame_key(task, owner.digest)
            if (standing := self._standing(task, prior, owner.key)) is not None:
                return _Loaded(task, prior, outcome=standing)
            image = open_header(data, task.source, self.restorer.limits)
            if not alone and image.width * image.height > LARGE_FRAME_PIXELS:
                return _Loaded(task, prior, large=True)
            found = faces_of(opening, decode(image), task.name, owner.digest, self._boxes_of(task))
            owner.found = owner.waiting = len(found.faces) + len(found.failed)
            owner.dropped = found.dropped
            item = _Loaded(task, prior, key=owner.key, owner=owner, faces=found.faces, failed=found.failed)
        except ImageError as error:
            owner.error = error
        except MemoryError:
            owner.error = ImageError("failed", "not enough memory to look for faces in it")
        owner.closed = True
        owner.spent[0] += time.perf_counter() - started
        return item if owner.error is None else _Loaded(task, prior, outcome=self._end(owner))

    def _frame_key(self, task: Task, digest: str) -> str:
        return self.job.key(digest, f"boxes {self.boxes.digest(task.name)}" if self.boxes else None)

    def _boxes_of(self, task: Task, frame: int | None = None) -> list[Detection] | None:
        return None if self.boxes is None else self.boxes.of(task.name, frame)

    def _standing(self, task: Task, prior: Prior | None, key: str) -> Outcome | None:
        """The outcome of an input that needs no work: its earlier result stands, or its existing file is to be left."""
        stands = self.job.resume and prior is not None and prior.get("key") == key
        if stands and prior is not None and prior["status"] in ("ok", "review", "no_face"):
            faces = prior.get("faces") or []
            if self._proven(prior, task.target, key) and all(
                face is not None and self._proven(face, face_target(task.target, index), key)
                for index, face in enumerate(faces)
            ):
                return Outcome(task.name, prior["status"], None, faces=Counter(face["status"] for face in faces))
        if self.job.on_exists == "skip" and self._existing(task):
            return Outcome(task.name, "skipped", None)
        return None

    def unproven(self, task: Task, prior: Prior | None) -> bool:
        """Whether an output of an input is there that is no proven result of this very chain and of the input as it is
        now."""
        if not (there := self._existing(task)):
            return False
        try:
            key = self._key_now(task)
        except ImageError:
            return True
        known = _known(prior, task.target)
        return not all(
            target in known and "image" in _hashes(known[target]) and self._proven(known[target], target, key)
            for target in there
        )

    def _key_now(self, task: Task) -> str:
        """The key of an input as it lies there. Raises `ImageError` where it cannot be read."""
        if task.refused:
            raise ImageError("unsupported", task.refused)
        limits = self.restorer.limits
        digest = sha256(read_bytes(task.source, limits)) if is_url(task.source) else file_sha256(task.source)
        if self.restorer.chain.opening is not None:
            return self._frame_key(task, digest)
        return self.job.key(digest, sha256(read_bytes(task.mask, limits)) if task.mask else None)

    def _existing(self, task: Task) -> list[str]:
        """Targets of the outputs of an input that are there: of its picture, and of its faces where they are looked
        for."""
        found = [task.target] if self.output.exists(f"{self.job.folder}/{task.target}.png") else []
        if self.restorer.chain.opening is not None:
            parts = map(os.path.splitext, self.output.names(f"{self.job.folder}/{task.target}"))
            found += [f"{task.target}/{stem}" for stem, end in parts if end == ".png" and FACE_NAME.fullmatch(stem)]
        return found

    def _proven(self, record: Prior, target: str, key: str) -> bool:
        """Whether the files of an earlier record are there as they were written, by this very chain."""
        paths = product_paths(self.job.folder, target)
        return record.get("key") == key and all(
            (data := self.output.read(paths[kind])) is not None and sha256(data) == h
            for kind, h in _hashes(record).items()
        )

    # Writing

    def _write(
        self,
        task: Task,
        prior: Prior | None,
        result: Result,
        key: str,
        decoding: float,
        made: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """Write a result's files, remove what an earlier run left under its name, and make its record.

        `prior` is the input's; `made` holds the hashes of files that are in their places already."""
        started, origin = time.perf_counter(), result.origin
        target = task.target if origin is None else face_target(task.target, origin.index)
        paths = product_paths(self.job.folder, target)
        files: dict[str, bytes] = {}
        written: dict[str, str] = {}
        try:
            files = render(result, self.restorer, self.job)
            plain = self._sign(files, task, result)
            written = {kind: sha256(data) for kind, data in files.items()}
            for kind, data in files.items():
                self.output.write(paths[kind], data)
        except (OSError, ImageError) as error:
            result = failure(task.name, ImageError("failed", f"cannot be written: {_said(error)}"), result.input_sha256)
            files, plain = {}, {}
        encoding = time.perf_counter() - started
        hashes = (written if files else {}) | dict(made)
        stuck = self._remove_old(target, hashes, _hashes(_known(prior, task.target).get(target)), written)
        if stuck is not None:  # a result beside what is left of another would be half of each
            for kind in hashes:
                self._removed(paths[kind])
            problem = ImageError("failed", f"{result.error}; {stuck}" if result.error else stuck)
            result = failure(task.name, problem, result.input_sha256)
            files, plain, hashes = {}, {}, {}
        elif origin is None and "image" not in hashes and self._spared(task):
            return Outcome(task.name, "skipped", None)
        record: dict[str, Any] = {
            "input": task.name,
            **({} if origin is None else {"face": origin.index}),
            "input_sha256": result.input_sha256,
            "status": result.status,
            "output": paths["image"] if "image" in hashes else None,
            "output_sha256": hashes.get("image"),
            "files_sha256": hashes,
            **plain,
            "landmarks_px": _rounded(result.landmarks, 2),
            "landmark_confidence": _rounded(
                None if result.landmark_confidence is None else result.landmark_confidence.mean(), 3
            ),
            "face_score": _rounded(result.face_score, 4),
            "side_px": result.side_px,
            "occluded_fraction": _rounded(result.occluded_fraction, 4),
            "lr_consistency_db": _rounded(result.lr_consistency_db, 2),
            "verdict": result.verdict,
            "reason": result.reason,
            "seconds": round(decoding + result.seconds + encoding, 4),
            "error": result.error,
            "notes": result.notes,
            "key": key,
        }
        spent = (decoding, result.seconds, encoding)
        if origin is None:
            return Outcome(task.name, result.status, record, spent)
        record |= origin.record() | {"to_source": _rounded(result.to_source, 6)}
        pasted = result if "image" in files and result.paste_mask is not None else None
        return Outcome(task.name, result.status, record, spent, ends=False, pasted=pasted)

    @cached_property
    def signer(self) -> Signer | None:
        """Signs the pictures, where the chain asks for it."""
        return None if self.job.signing is None else Signer(self.job.signing)

    def _sign(self, files: dict[str, bytes], task: Task, result: Result) -> dict[str, str]:
        """Sign the image among `files`, in place; returns what the record says of it. The parent is the input, or the
        thumbnail that was cut out of it. Raises `ImageError` where the input is not what it was, `OSError`."""
        if self.signer is None or "image" not in files:
            return {}
        plain = files["image"]
        if result.origin is not None and "thumbnail" in files:
            parent, name, kind = files["thumbnail"], f"{task.name}, face {result.origin.index}", "image/png"
        else:
            parent, name = read_bytes(task.source, self.restorer.limits), task.name
            if sha256(parent) != result.input_sha256:
                raise ImageError("failed", "the input was changed during the run")
            header = open_header(parent, task.source, replace(self.restorer.limits, accepts_px=None))
            kind = Image.MIME[header.format or "PNG"]
        record = short_record(result, self.restorer, self.job)
        files["image"] = self.signer.sign(plain, parent, name, kind, record, self.restorer.chain.generative)
        return {"unsigned_sha256": sha256(plain)}

    def _end(self, owner: _Open) -> Outcome:
        """The outcome of an input whose faces have all ended: its frame with the faces in it, and its own line."""
        started, task = time.perf_counter(), owner.task
        status, reason, error = owner.verdict()
        files: dict[str, bytes] = {}
        plain: dict[str, str] = {}
        written: dict[str, str] = {}
        paths = product_paths(self.job.folder, task.target)
        path = paths["image"]
        if owner.pasted and status not in FAILURES:
            try:
                files, plain = self._put_back(owner, status)
                written = {kind: sha256(data) for kind, data in files.items()}
                for kind, data in files.items():
                    self.output.write(paths[kind], data)
            except (ImageError, OSError) as problem:
                status = reason = "failed"
                error, files, plain = f"the faces cannot be put back: {problem}", {}, {}
        if (stuck := self._clear(owner, files, written)) is not None:
            for kind in files:
                self._removed(paths[kind])
            status = reason = "failed"
            error, files, plain = f"{error}; {stuck}" if error else stuck, {}, {}
        elif owner.error is not None and not owner.found and self._spared(task):
            return Outcome(task.name, "skipped", None)
        owner.spent[2] += time.perf_counter() - started
        record = {
            "input": task.name,
            "faces": owner.found,
            "input_sha256": owner.digest,
            "status": status,
            "output": path if files else None,
            "output_sha256": written["image"] if files else None,
            "files_sha256": written if files else {},
            **plain,
            "landmarks_px": None,
            "landmark_confidence": None,
            "face_score": None,
            "side_px": None,
            "occluded_fraction": None,
            "lr_consistency_db": None,
            "verdict": "restored" if status == "ok" else "not_decidable",
            "reason": reason,
            "seconds": round(sum(owner.spent), 4),
            "error": error,
            "face_statuses": dict(sorted(owner.statuses.items())),
            "dropped": owner.dropped,
            "notes": owner.notes,
            "key": owner.key,
        }
        spent = (owner.spent[0], 0.0, time.perf_counter() - started)
        return Outcome(task.name, status, record, spent, faces=dict(owner.statuses))

    def _put_back(self, owner: _Open, status: str) -> tuple[dict[str, bytes], dict[str, str]]:
        """The frame with its faces as files, and what the record says of its signature. It is read again: keeping every
        frame until its faces are done would take more memory than reading takes time. Raises `ImageError`."""
        closing = self.restorer.chain.closing
        assert closing is not None and owner.digest is not None
        data = read_bytes(owner.task.source, self.restorer.limits)
        if sha256(data) != owner.digest:
            raise ImageError("failed", "the file was changed during the run")
        picture = decode(open_header(data, owner.task.source, self.restorer.limits))
        image = paste_all(closing, picture, owner.pasted)
        verdict: Literal["restored", "not_decidable"] = "restored" if status == "ok" else "not_decidable"
        frame = Result(owner.task.name, "ok", image, verdict=verdict, input_sha256=owner.digest)
        frame = replace(frame, status="review") if status == "review" else frame
        files = render(frame, self.restorer, self.job)
        return files, self._sign(files, owner.task, frame)

    def _removed(self, path: str) -> str | None:
        """Remove a file; what to say where that cannot be done."""
        try:
            self.output.remove(path)
        except OSError as error:
            return f"cannot be removed: {_said(error)}"
        return None

    def _remove_old(self, target: str, kept: Collection[str], *ours: Mapping[str, str]) -> str | None:
        """Remove what lies under a target, but for the kinds `kept`: what the hashes `ours` prove to be ours, those of
        an earlier record and of what was not written to the end; and, where outputs are to be overwritten, any picture
        that could pass for one. Returns what to say of a file that cannot be removed."""
        stuck = None
        for kind, path in product_paths(self.job.folder, target).items():
            proofs = {hashes[kind] for hashes in ours if kind in hashes}
            if kind not in kept and (
                (self.job.on_exists == "overwrite" and kind in ("image", "uncertainty", "occlusion"))
                or (proofs and (data := self.output.read(path)) is not None and sha256(data) in proofs)
            ):
                stuck = self._removed(path) or stuck
        return stuck

    def _spared(self, task: Task) -> bool:
        """Whether an output is there that no record accounts for and that must not be overwritten."""
        return self.job.on_exists != "overwrite" and bool(self._existing(task))

    def _clear(self, owner: _Open, files: Collection[str], written: Mapping[str, str]) -> str | None:
        """Remove what earlier runs left of an input that it does not have any more; it has the kinds `files` itself.
        Returns what to say of a file that cannot be removed."""
        target = owner.task.target
        known = _known(owner.prior, target)
        stuck = self._remove_old(target, files, _hashes(known.get(target)), written)
        kept = {face_target(target, index) for index in range(owner.found)}
        if self.job.on_exists != "overwrite":
            for old in known.keys() - kept - {target}:
                stuck = self._remove_old(old, (), _hashes(known[old])) or stuck
            return stuck
        for path in product_paths(self.job.folder, target).values():
            folder = os.path.splitext(path)[0]
            for name in self.output.names(folder):
                stem, ending = os.path.splitext(name)
                if FACE_NAME.fullmatch(stem) and ending in ENDINGS and f"{target}/{stem}" not in kept:
                    stuck = self._removed(f"{folder}/{name}") or stuck
        return stuck

    def record_failure(self, task: Task, prior: Prior | None, result: Result) -> Outcome:
        """The outcome of a task that failed elsewhere."""
        if self.restorer.chain.opening is None:
            return self._write(task, prior, result, "", 0.0)
        return self._end(_Open(task, prior, error=ImageError("failed", result.error or "")))

    # Running

    def process(
        self, tasks: Iterable[tuple[Task, Prior | None]], stopped: Callable[[], bool] = never
    ) -> Iterator[Outcome]:
        """Outcomes of (task, earlier record) pairs, in the order in which they end.

        Decoding and encoding run in threads beside the network. At most `WAITING_BATCHES` + 4 batches are in hand.
        Once `stopped()` is true, no task and no batch is begun any more: what is in the network or being written is
        finished, and what only waits has no outcome.

        Raises:
            OutputError: the output folder cannot be written any more.
        """
        size = self.restorer.batch_size
        ahead = size if self.restorer.chain.opening is None else FRAMES_AHEAD
        self._groups, self._writing, self._open, self._stopped = _Groups(), deque(), {}, stopped
        reading: deque[tuple[Task, Prior | None, Future[_Loaded]]] = deque()
        source = iter(tasks)
        with ThreadPoolExecutor(IO_THREADS, "decode") as readers, ThreadPoolExecutor(IO_THREADS, "encode") as writers:
            more = True
            while more or reading:
                while more and len(reading) < ahead:
                    if stopped() or (pair := next(source, None)) is None:
                        more = False
                    else:
                        reading.append((*pair, readers.submit(self._load, *pair)))
                if reading:
                    task, prior, future = reading.popleft()
                    if stopped() and (future.cancel() or future.result().large):
                        continue  # not begun
                    item = future.result()
                    if item.large and is_video(task) and self.restorer.chain.opening is not None:
                        yield from self._video(task, prior, writers)
                    elif item.large:
                        yield from self._accept(self._load(task, prior, alone=True), writers, at_once=True)
                    else:
                        yield from self._accept(item, writers)
                yield from self._written(2 * size)
            while self._groups.waiting:
                self._restore(self._groups.take(self._groups.largest()), writers)
                yield from self._written(len(self._writing))
            yield from self._written(0)
        for owner in self._open.values():
            self._abandon(owner)

    def _accept(self, item: _Loaded, writers: ThreadPoolExecutor, at_once: bool = False) -> Iterator[Outcome]:
        """Take what was loaded: pass its outcome on, or queue its faces."""
        if item.outcome is not None:
            yield item.outcome
        elif item.owner is None and at_once:
            self._restore([item], writers)
            yield from self._written(0)
        elif item.owner is None:
            self._queue(item, writers)
        else:
            self._open[item.task.name] = item.owner
            share = item.owner.spent[0] / max(1, item.owner.found)
            for result in item.failed:
                self._writing.append(writers.submit(self._write, item.task, item.prior, result, item.key, share))
            for face in item.faces:
                self._queue(_Loaded(item.task, item.prior, face, key=item.key, owner=item.owner), writers)
            yield from self._ended(item.owner)

    def _video(self, task: Task, prior: Prior | None, writers: ThreadPoolExecutor) -> Iterator[Outcome]:
        """Follow the faces of a video; each goes into the queue when it has left the picture."""
        started, owner, opening = time.perf_counter(), _Open(task, prior), self.restorer.chain.opening
        assert opening is not None
        try:
            owner.digest = file_sha256(task.source)
            owner.key = self._frame_key(task, owner.digest)
            if (standing := self._standing(task, prior, owner.key)) is not None:
                yield standing
                return
            if self.restorer.chain.closing is not None:
                raise ImageError("unsupported", 'a video: faces are put back into pictures only; leave out "paste"')
            self._open[task.name] = owner
            video = VideoFaces(
                opening, self.restorer.config.video, self.restorer.chain.moments, task.source, task.name, owner.digest,
                self.restorer.limits, None if self.boxes is None else partial(self.boxes.of, task.name), self._stopped,
            )  # fmt: skip
            for found in video:
                owner.found += 1
                owner.waiting += 1
                if isinstance(found, Result):
                    self._writing.append(writers.submit(self._write, task, prior, found, owner.key, 0.0))
                else:
                    self._queue(_Loaded(task, prior, found, key=owner.key, owner=owner), writers)
                yield from self._written(2 * self.restorer.batch_size)
            if self._stopped():
                return
            owner.dropped, owner.notes, owner.damage = video.dropped, video.notes, video.damage
        except ImageError as error:
            owner.error = error
        owner.closed = True
        owner.spent[0] += time.perf_counter() - started
        self._open[task.name] = owner
        yield from self._ended(owner)

    def _ended(self, owner: _Open) -> Iterator[Outcome]:
        """The outcome of an input once all its faces have ended."""
        if owner.closed and owner.waiting == 0:
            del self._open[owner.task.name]
            yield self._end(owner)

    def _queue(self, item: _Loaded, writers: ThreadPoolExecutor) -> None:
        """Let a face wait for others of its size; a full batch is restored."""
        size = self.restorer.batch_size
        assert item.face is not None
        if len(self._groups.add(item)) >= size:
            self._restore(self._groups.take(item.face.group), writers)
        elif self._groups.count > WAITING_BATCHES * size:
            self._restore(self._groups.take(self._groups.largest()), writers)

    def _written(self, most: int) -> Iterator[Outcome]:
        """Outcomes of what has been written, waiting until at most `most` are still being written."""
        while self._writing and (self._writing[0].done() or len(self._writing) > most):
            outcome = self._writing.popleft().result()
            yield replace(outcome, pasted=None)
            if not outcome.ends:
                owner = self._open[outcome.name]
                owner.take(outcome)
                yield from self._ended(owner)

    def _abandon(self, owner: _Open) -> None:
        """Remove the faces that were made of an input before the stop: without its line nothing would account for
        them. Those that its earlier line counts have taken the place of earlier ones, and stay."""
        counted = len((owner.prior or {}).get("faces") or ())
        for index, hashes in owner.made.items():
            if index >= counted:
                self._remove_old(face_target(owner.task.target, index), (), hashes)

    def _restore(self, items: list[_Loaded], writers: ThreadPoolExecutor) -> None:
        """Run a batch and have it written; after a stop it is dropped."""
        if self._stopped():
            return
        faces = [item.face for item in items if item.face is not None]
        results = self.restorer.run(faces, priors=self.job.save_priors)
        for item, result in zip(items, results, strict=True):
            self._writing.append(writers.submit(self._write, item.task, item.prior, result, item.key, item.seconds))


def is_video(task: Task) -> bool:
    """Whether an input is a video, going by its ending."""
    return os.path.splitext(task.source)[1].lower() in VIDEO_ENDINGS


def _hashes(record: Prior | None) -> dict[str, str]:
    """Hashes by kind of the files of an earlier record."""
    return (record or {}).get("files_sha256") or {}


def _known(prior: Prior | None, target: str) -> dict[str, Prior]:
    """Earlier records of an input and of its faces, by the target of their outputs."""
    if prior is None:
        return {}
    faces = enumerate(prior.get("faces") or ())
    return {target: prior} | {face_target(target, index): face for index, face in faces if face is not None}


def in_hand(batch_size: int) -> int:
    """The most tasks a worker can hold before it must give an outcome: what its feeder has to allow for."""
    return (WAITING_BATCHES + 5) * batch_size


def _said(error: Exception) -> str:
    """What went wrong with a file, and with which."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
