"""Run a chain over a set of inputs: plan, check, work, record. What `restore` and `degrade` do."""

import ctypes
import dataclasses
import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from PIL import Image

from pipeline import ray_engine
from pipeline.chain import Chain, pick_device, pick_precision
from pipeline.config import ChainConfig, ConfigError, load_chain, weight_hashes
from pipeline.credentials import Signer
from pipeline.images import MAX_PIXELS
from pipeline.journal import Journal, journal_sha256
from pipeline.output import OutputError, OutputFolder, OutputLock, OutputLostError
from pipeline.planning import InputSet, Plan
from pipeline.pool import Pair, Pool, context
from pipeline.progress import Progress
from pipeline.report import write_report
from pipeline.restorer import FAILURES, Restorer
from pipeline.run_record import Tally, code_sha256, core_count, package_versions, run_record
from pipeline.sources.boxes import BoxFile
from pipeline.storage import RemoteFolder, is_url
from pipeline.worker import PRIORS, Job, OnExists, Outcome, Prior, Worker, in_hand

DONE, SOME_FAILED, USAGE, NOTHING = 0, 1, 2, 4  # exit codes
TASKS_PER_WORKER = 24  # fewer inputs than this do not repay another process
FRAMES_PER_WORKER = 2  # the same for whole frames and videos
BATCH_SIZE = {"cpu": 16, "cuda": 128}  # faces; on two cores larger batches bring nothing and cost memory


@dataclass(frozen=True)
class Request:
    """A `restore` or `degrade` as asked for on the command line; see its help for the meaning of each.

    `workers`, `batch_size`: None = chosen for the machine. `remote`: URL of the output folder where that lies in an
    object store; `output` is then where the records of the run are kept meanwhile, chosen by `run`.
    """

    inputs: tuple[str, ...]
    output: Path
    config: str | dict[str, Any]
    folder: str = "restored"
    fidelity: float | None = None
    overrides: tuple[str, ...] = ()
    mask: Path | None = None
    boxes: Path | None = None
    save_priors: bool = False
    workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int | None = None
    max_pixels: int = MAX_PIXELS
    resume: bool = True
    on_exists: OnExists = "overwrite"
    fail_fast: bool = False
    engine: Literal["local", "ray"] = "local"
    remote: str | None = None


class _Stop:
    """Asked for by Ctrl-C, SIGTERM or `--fail-fast`, and seen at once by every worker process: no batch is begun any
    more, and what is in the network or being written is finished. A second Ctrl-C ends at once."""

    def __init__(self) -> None:
        # A bare byte: the lock of an Event could be held by a worker that died, or by what the signal interrupts.
        self._asked = RawValue(ctypes.c_bool, False)

    def asked(self) -> bool:
        return self._asked.value

    def ask(self) -> None:
        self._asked.value = True

    def __call__(self, number: int, _frame: object) -> None:
        self.ask()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        print("\nstopping after the batch at work; once more to stop at once", file=sys.stderr, flush=True)


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever called us keeps the signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fingerprint(
    config: ChainConfig,
    weights: dict[str, str],
    device: str,
    precision: str,
    save_priors: bool,
    certificate: str | None = None,
) -> str:
    """SHA-256 of everything but the input that decides an output; `certificate` is the hash of the signer's."""
    parts = {
        "chain": config.resolved(), "weights": weights, "device": device, "precision": precision,
        "priors": save_priors, "marked": config.marking.strip == "copies", "sidecar": config.marking.sidecar,
        "certificate": certificate,
        "code": code_sha256(), "packages": package_versions(),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """A request after everything that can be checked before the first input was checked."""

    request: Request
    config: ChainConfig
    weights: dict[str, str]
    restorer: Restorer
    plan: Plan
    job: Job
    seconds: float  # spent on it

    @property
    def workers(self) -> int:
        """Worker processes: as asked, else one per core as far as the inputs repay it; one on a GPU."""
        if self.request.workers is not None:
            return self.request.workers
        if self.restorer.device.type != "cpu":
            return 1
        return max(1, min(core_count(), len(self.plan) // self._least))

    @property
    def _least(self) -> int:
        return FRAMES_PER_WORKER if self.config.takes_frames else TASKS_PER_WORKER

    @property
    def chunk(self) -> int:
        """Inputs given to a worker at a time: frames and videos one by one, as each may take long."""
        return 1 if self.config.takes_frames else self.restorer.batch_size

    @property
    def forks(self) -> bool:
        """Whether worker processes are copies of this one."""
        return context(self.restorer.device.type).get_start_method() == "fork"

    @property
    def request_of_workers(self) -> Request:
        """The request for workers that build their chain themselves: with the batch size that was chosen here."""
        return dataclasses.replace(self.request, batch_size=self.restorer.batch_size)

    @property
    def drawers(self) -> int:
        """Processes that draw the report: as many as workers, but one where a connection to a store would be copied."""
        stored = any(is_url(place) for place in (self.job.output, *self.request.inputs))
        return self.workers if self.forks and not stored else 1

    def make_worker(self) -> Worker:
        """A worker of this process, with the networks that are loaded already."""
        return Worker(self.restorer, self.job)


def settle_process() -> None:
    """What holds in every process that restores: one thread, and no limit of Pillow's, for our own is checked before
    any decoding and can be raised by the user.

    One thread on the CPU, whatever the number of workers: sums split over threads may round differently, and the same
    input must give the same bytes. Cores are used by workers, which also scale better on small pictures.
    """
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = None


def prepare(request: Request) -> Prepared:
    """Check configuration, weights, device and inputs; build the chain; plan every name. Writes nothing.

    Raises:
        ConfigError, InputError, OutputError: nothing was touched.
    """
    started = time.perf_counter()
    settle_process()
    config = load_chain(request.config, fidelity=request.fidelity, overrides=request.overrides)
    device = pick_device(request.device)
    precision = pick_precision(request.precision, device)
    batch_size = request.batch_size or BATCH_SIZE.get(device.type, 16)
    restorer = Restorer(config, device, precision, batch_size, request.max_pixels)
    weights = weight_hashes(config)
    if request.output.exists() and not request.output.is_dir():
        raise OutputError(f"{request.output} is a file; expected a folder to write to")
    _check_options(request, config, restorer.chain)
    certificate = None
    if config.signing is not None:
        signer = Signer(config.signing)
        signer.check()
        certificate = signer.certificate_sha256
    _refuse_other_profile(request, config)
    remote = None if request.remote is None else request.remote.rstrip("/")
    plan = Plan(InputSet(request.inputs, request.output, request.mask, config.takes_frames, remote))
    job = Job(
        output=request.remote or str(request.output),
        folder=request.folder,
        fingerprint=fingerprint(config, weights, device.type, precision, request.save_priors, certificate),
        on_exists=request.on_exists,
        save_priors=request.save_priors,
        chain_digest=config.digest(),
        weights=weights,
        boxes=None if request.boxes is None else str(request.boxes),
        marking=config.marking,
        signing=config.signing,
        resume=request.resume,
    )
    return Prepared(request, config, weights, restorer, plan, job, time.perf_counter() - started)


def _refuse_other_profile(request: Request, config: ChainConfig) -> None:
    """One output folder holds measured pictures or generated ones, never both. Raises `OutputError`."""
    try:
        earlier = yaml.safe_load((request.output / "_run" / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    profile = earlier.get("profile") if isinstance(earlier, dict) else None
    if profile != config.profile and "forensic" in (profile, config.profile):
        raise OutputError(
            f"{request.output} holds results of the profile {profile or '(none)'}, this chain is "
            f"{config.profile or 'without a profile'}: they must not be mixed; choose another output folder"
        )


def _check_options(request: Request, config: ChainConfig, chain: Chain) -> None:
    """Options that the chain cannot follow, or that it needs. Raises `ConfigError` with all of them."""
    problems, opening = [], chain.opening
    if request.mask is not None and opening is not None:
        problems.append(f"--mask: {config.origin} takes whole frames, and a mask belongs to one face crop")
    elif request.mask is not None and not chain.reads_mask:
        problems.append(f"--mask {request.mask}: no stage of {config.origin} reads a mask")
    written = {field for _, _, stage in chain.stages for field in stage.writes}
    if request.save_priors and written.isdisjoint(PRIORS.values()):
        problems.append(f"--save-priors: no stage of {config.origin} writes any of {', '.join(PRIORS)}")
    wanted = opening is not None and opening.reads_boxes
    if wanted and request.boxes is None:
        problems.append(f"{config.origin}: stages[0].backend = 'boxes': name their file with --boxes FILE")
    if request.boxes is not None and not wanted:
        cure = "take a chain with --set stages.0.backend=boxes" if opening else "take configs/frames_restore.yaml"
        problems.append(f"--boxes {request.boxes}: {config.origin} does not read boxes; {cure}")
    if problems:
        raise ConfigError(problems)
    if request.boxes is not None:
        BoxFile(request.boxes)


def _unused_boxes(prepared: Prepared) -> int | None:
    """Rows' pictures that are no input of the run, named on stderr; None where there is no file of boxes."""
    if prepared.request.boxes is None:
        return None
    boxes = BoxFile(prepared.request.boxes)
    unused = boxes.unused(task.name for task in prepared.plan)
    if unused or boxes.nameless:
        named = "".join(f"\n  {name}" for name in unused[:5]) + ("\n  ..." if len(unused) > 5 else "")
        print(
            f"--boxes: {len(unused)} picture(s) are not among the inputs, {boxes.nameless} row(s) name none{named}",
            file=sys.stderr,
        )
    return len(unused) + boxes.nameless


def describe(prepared: Prepared) -> Iterator[str]:
    """What `--dry-run` prints: the chain, then every planned name."""
    restorer = prepared.restorer
    yield f"chain {prepared.config.name} from {prepared.config.origin}, {restorer.device.type}, {restorer.precision}"
    for index, entry in enumerate(prepared.config.stages):
        options = ", ".join(f"{k}={v}" for k, v in entry.config.model_dump(mode="json").items())
        yield f"  stages[{index}] {entry.name}: {options}"
    for name, digest in prepared.weights.items():
        yield f"  weights {name} sha256 {digest}"
    yield f"{len(prepared.plan)} inputs, {prepared.workers} worker(s)"
    for task in prepared.plan:
        ending = "/face_000.png, ..." if prepared.config.takes_frames else ".png"
        yield f"{task.source} -> {prepared.job.output.rstrip('/')}/{prepared.request.folder}/{task.target}{ending}"


def respawn(request: Request, job: Job) -> Worker:
    """A worker in a fresh process (CUDA, or systems that cannot fork), for a request that names the batch size."""
    assert request.batch_size is not None
    settle_process()
    restorer = Restorer.from_config(
        request.config, fidelity=request.fidelity, overrides=request.overrides, device=request.device,
        precision=request.precision, batch_size=request.batch_size, max_pixels=request.max_pixels,
    )  # fmt: skip
    return Worker(restorer, job)


def _forked(prepared: Prepared, lock: OutputLock) -> Worker:
    lock.forget()  # or a killed run would stay locked until the last of its workers has noticed
    return prepared.make_worker()


def _refuse_existing(prepared: Prepared, journal: Journal) -> None:
    """`--on-exists error`: an output is there that is no proven result of this very chain and of the input as it is
    now. Costs the reading of those inputs and outputs. Raises `OutputError`."""
    worker, found = prepared.make_worker(), []
    for task in prepared.plan:
        if worker.unproven(task, _prior(journal, task.name) if prepared.request.resume else None):
            found.append(f"{prepared.job.folder}/{task.target}")
            if len(found) == 10:
                break
    if found:
        raise OutputError("these outputs exist already (--on-exists error):\n  " + "\n  ".join(found))


def execute(prepared: Prepared, output: OutputFolder | None = None) -> int:
    """Do the work; returns the exit code. `output`: where it does not lie in the folder of the request.

    Raises:
        OutputError: the output folder is locked, read-only or full. What was finished stays; a second run keeps it.
    """
    request = prepared.request
    if not len(prepared.plan):
        print("nothing to do: no pictures among the inputs", file=sys.stderr)
        return NOTHING
    output = output or OutputFolder(request.output)
    lock = OutputLock(output.root / "_run" / "lock")
    if lock.unclean:
        output.sweep()
    try:
        with Journal(output.root / "_run" / "journal.jsonl") as journal:
            if request.on_exists == "error":
                _refuse_existing(prepared, journal)
            code = _work(prepared, output, journal, lock)
        output.publish(final=True)
        if lock.unclean or request.engine == "ray":
            output.sweep()  # a worker that outlived the killed run by a moment, or was killed, may have left one more
    except BaseException as error:
        with suppress(OSError):
            output.sweep()  # a worker may have been stopped in the middle of a write
        lock.forget()  # it stays marked as not properly ended
        if isinstance(error, OSError):
            raise OutputLostError(f"{request.output}: {error.strerror or error}") from error
        raise
    lock.release()
    return code


def _essence(record: dict[str, Any] | None) -> Prior | None:
    """What a worker needs to know of an earlier record."""
    return None if record is None else {k: record.get(k) for k in ("key", "status", "files_sha256")}


def _prior(journal: Journal, name: str) -> Prior | None:
    """What a worker needs to know of an earlier run's records of an input and its faces."""
    record = journal.find(name)
    essence = _essence(record)
    if record is None or essence is None or not record.get("faces"):
        return essence
    return essence | {"faces": [_essence(face) for face in journal.faces(record)]}


def _outcomes(
    prepared: Prepared, pairs: Callable[[], Iterator[Pair]], lock: OutputLock, stop: _Stop
) -> tuple[Iterable[Outcome], Pool | None]:
    """What becomes of each task, from this process, a pool of workers or a cluster; and the pool, to be stopped."""
    if prepared.request.engine == "ray":
        return ray_engine.outcomes(prepared, pairs, stop.asked), None
    if prepared.workers == 1:
        return prepared.make_worker().process(pairs(), stop.asked), None
    make: Callable[[], Worker] = (
        partial(_forked, prepared, lock)
        if prepared.forks
        else partial(respawn, prepared.request_of_workers, prepared.job)
    )
    pool = Pool(
        prepared.workers, make, prepared.make_worker().record_failure, prepared.restorer.device.type,
        prepared.chunk, in_hand(prepared.restorer.batch_size), stop.asked,
    )  # fmt: skip
    return pool.process(pairs()), pool


def _work(prepared: Prepared, output: OutputFolder, journal: Journal, lock: OutputLock) -> int:
    request, begun, started = prepared.request, datetime.now(timezone.utc), time.perf_counter()
    output.write("_run/config.yaml", yaml.safe_dump(prepared.config.resolved(), sort_keys=False).encode())
    tally = Tally()
    unused_boxes = _unused_boxes(prepared)
    with _stoppable() as stop:

        def pairs() -> Iterator[Pair]:
            for task in prepared.plan:
                if stop.asked():
                    return
                yield task, _prior(journal, task.name)

        outcomes, pool = _outcomes(prepared, pairs, lock, stop)
        progress = Progress(len(prepared.plan), request.folder)
        try:
            for outcome in outcomes:
                output.publish()
                if outcome.record is not None:
                    journal.append(outcome.record)
                    tally.made += not (outcome.ends and prepared.config.takes_frames)
                else:
                    tally.kept += outcome.status != "skipped"
                tally.spent = [a + b for a, b in zip(tally.spent, outcome.spent, strict=True)]
                if not outcome.ends:
                    continue
                tally.faces.update(outcome.faces)
                progress.add(outcome.status)
                if request.fail_fast and outcome.status in FAILURES:
                    stop.ask()
        except BaseException:
            if pool is not None:
                pool.stop()
            raise
        finally:
            progress.close()
            journal.sync()
        tally.seconds = time.perf_counter() - started
        tally.inputs, tally.interrupted = progress.counts, stop.asked() and not request.fail_fast
        journal.compact(prepared.plan.name_hashes)
        record = run_record(prepared, begun, tally) | {
            "earlier_input_roots": _earlier_roots(output, prepared.plan.roots),
            "journal_sha256": journal_sha256(journal.path), "boxes_without_input": unused_boxes,
        }  # fmt: skip
        output.write("_run/run.json", json.dumps(record, indent=1).encode() + b"\n")
        report = write_report(output, prepared.plan, journal, record, request.max_pixels, prepared.drawers, lock.forget)
    place = report if request.remote is None else f"{request.remote.rstrip('/')}/_run/{report.name}"
    print(f"{request.folder}: {progress.state()}; report: {place}", file=sys.stderr, flush=True)
    left = record["not_reached"]
    if left:
        command = "the same command" if request.resume else "the same command without --no-resume"
        print(f"{left} of {len(prepared.plan)} inputs not reached; {command} goes on from here", file=sys.stderr)
    return SOME_FAILED if left or FAILURES & progress.counts.keys() else DONE


def _earlier_roots(output: OutputFolder, roots: list[str]) -> list[str]:
    """Folders that the lines of earlier runs into this output are relative to, the latest first."""
    try:
        run = json.loads(output.read("_run/run.json") or b"{}")
        known = [*run.get("input_roots", []), *run.get("earlier_input_roots", [])]
    except (ValueError, AttributeError, TypeError):  # damaged: it tells nothing
        return []
    return [root for root in dict.fromkeys(known) if isinstance(root, str) and root not in roots]


def run(request: Request, dry_run: bool = False) -> int:
    """Carry out a request; returns the exit code.

    Raises:
        ConfigError, InputError, OutputError, WorkerError: see `prepare` and `execute`.
    """
    if request.remote is not None:
        return _run_remote(request, dry_run)
    prepared = prepare(request)
    if dry_run:
        for line in describe(prepared):
            print(line)
        return DONE if len(prepared.plan) else NOTHING
    return execute(prepared)


def _run_remote(request: Request, dry_run: bool) -> int:
    """The same with the output in an object store, the records of the run on this machine until they are copied."""
    assert request.remote is not None
    with tempfile.TemporaryDirectory(prefix="revisage-run-") as folder:
        staged = dataclasses.replace(request, output=Path(folder))
        remote = RemoteFolder(request.remote, staged.output)
        remote.fetch_records()
        prepared = prepare(staged)
        if dry_run or not len(prepared.plan):
            for line in describe(prepared):
                print(line)
            return DONE if len(prepared.plan) else NOTHING
        remote.lock()
        try:
            return execute(prepared, remote)
        finally:
            remote.unlock()
