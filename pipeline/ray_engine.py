"""`--engine ray`: the same work by a pool of workers on one machine or many. Needs the extra `cluster`.

Ray Data gives each worker blocks of inputs; a worker is an actor that builds the chain once, keeps it, and answers
every input with the lines for the journal, which the process that started the run writes. What is wrong with an input
is in its line. A worker that dies costs its block: Ray starts another and gives it the block again. Inputs that are
still without an answer then are given out one by one, and one that kills its worker alone has failed, as with the local
engine.
"""

import dataclasses
import itertools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.images import ImageError
from pipeline.output import OutputError, OutputLostError
from pipeline.planning import Task, name_hash
from pipeline.pool import Pair, WorkerError
from pipeline.restorer import failure
from pipeline.run_record import core_count
from pipeline.worker import Job, Outcome

if TYPE_CHECKING:
    from pipeline.engine import Prepared, Request

# A block is tried again this often when its worker dies; then its inputs are given out alone.
RETRIES = 1
_OUTCOME_FIELDS = ("name", "status", "record", "spent", "ends", "faces")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    os.environ.setdefault("RAY_worker_niceness", "0")  # the workers are the job, not its background
    try:
        import ray
        import ray.data
    except ImportError as error:
        cure = 'needs the extra "cluster": pip install "revisage[cluster]"'
        raise OutputError(f"--engine ray: {cure} ({error})") from error
    return ray


class Actor:
    """A worker: builds the chain once, then answers blocks of inputs."""

    def __init__(self, request: "Request", job: Job) -> None:
        from pipeline.engine import respawn

        self.worker = respawn(request, job)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Outcomes of a block of (task, earlier record) pairs, each as JSON. What ends the whole run is a row as well,
        for an exception would only make Ray try again."""
        pairs = [(Task(*json.loads(task)), json.loads(prior)) for task, prior in zip(*block.values(), strict=True)]
        rows = []
        try:
            for outcome in self.worker.process(pairs):
                rows.append(json.dumps({field: getattr(outcome, field) for field in _OUTCOME_FIELDS}))
        except OutputError as error:
            rows.append(json.dumps({"lost": str(error)}))
        except Exception:  # a fault of ours: reported with its trace, which ends the run
            rows.append(json.dumps({"broken": traceback.format_exc()}))
        return {"outcome": rows}


def _outcome(row: str) -> Outcome:
    """An outcome from its JSON. Raises `OutputLostError`, `WorkerError` where the row says that the run is over."""
    values = json.loads(row)
    if "lost" in values:
        raise OutputLostError(values["lost"])
    if "broken" in values:
        raise WorkerError(values["broken"])
    return Outcome(**{**values, "spent": tuple(values["spent"])})


class Cluster:
    """The connection to Ray for one run; started on this machine where none is around, and ended with the run."""

    def __init__(self, prepared: "Prepared") -> None:
        self.prepared, self.ray = prepared, _ray()
        self.settings = prepared.config.cluster
        self._ours = not self.ray.is_initialized()
        if self._ours:
            address = self.settings.address or os.environ.get("RAY_ADDRESS")
            local = {"num_cpus": self._cores(), "include_dashboard": False}
            options: dict[str, Any] = {"address": address} if address else local
            try:
                self.ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            except Exception as error:  # Ray raises many types, some of them plain
                raise WorkerError(f"Ray did not start: {error}") from error

    def _cores(self) -> int:
        """Cores that a Ray of our own offers: those of this machine, or as many as the workers asked for need."""
        wanted = self.prepared.request.workers or self.settings.min_actors
        return max(core_count(), int(-(-wanted * self.settings.cpus_per_actor // 1)))

    def close(self) -> None:
        """End a Ray that was started for this run."""
        if self._ours:
            self.ray.shutdown()

    def _pool(self, alone: bool) -> Any:
        """How many workers: as asked with --workers, else between the two numbers of the YAML.

        `alone`: none holds a second task, which would die with the first.
        """
        if self.prepared.request.workers is not None:
            sizes: dict[str, int | None] = {"size": self.prepared.request.workers}
        else:
            sizes = {"min_size": self.settings.min_actors, "max_size": self.settings.max_actors}
        return self.ray.data.ActorPoolStrategy(**sizes, max_tasks_in_flight_per_actor=1 if alone else None)

    def _request(self) -> "Request":
        """The request as a worker on any machine needs it: the chain by value, arithmetic as chosen here."""
        prepared = self.prepared
        return dataclasses.replace(
            prepared.request_of_workers, config=prepared.config.resolved(), fidelity=None, overrides=(), inputs=(),
            device="cuda" if prepared.restorer.device.type == "cuda" else "cpu", precision=prepared.restorer.precision,
        )  # fmt: skip

    def answers(self, pairs: Iterator[Pair], rows_per_task: int) -> Iterator[Outcome]:
        """Outcomes of pairs, a block at a time; those of blocks whose worker died again and again are missing."""
        import pyarrow

        blocks = []
        while rows := list(itertools.islice(pairs, rows_per_task)):
            # Kept by Ray, which moves them to disk when there are many: a million inputs are half a gigabyte.
            tasks = [json.dumps(dataclasses.astuple(task)) for task, _ in rows]
            blocks.append(self.ray.put(pyarrow.table({"task": tasks, "prior": [json.dumps(p) for _, p in rows]})))
        if not blocks:
            return
        context = self.ray.data.DataContext.get_current()
        context.max_errored_blocks = -1
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what dies is in the journal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # max_task_retries stays until Ray 2.64
            answered = self.ray.data.from_arrow_refs(blocks).map_batches(
                Actor,
                batch_size=None,
                batch_format="numpy",
                compute=self._pool(rows_per_task == 1),
                num_cpus=self.settings.cpus_per_actor,
                num_gpus=self.settings.gpus_per_actor or None,
                max_task_retries=RETRIES,
                fn_constructor_args=(self._request(), self.prepared.job),
            )
        for row in answered.iter_rows():
            yield _outcome(row["outcome"])


def outcomes(
    prepared: "Prepared", pairs: Callable[[], Iterator[Pair]], stopped: Callable[[], bool]
) -> Iterator[Outcome]:
    """Outcomes of all tasks, as they end; `pairs` gives the tasks anew each time it is called.

    Raises:
        OutputError: Ray is not installed, or the output cannot be written any more.
        WorkerError: a worker reported a fault of its own, not of an input.
    """
    cluster = Cluster(prepared)
    bury = prepared.make_worker().record_failure
    done: set[int] = set()
    try:
        rows_per_task = prepared.config.cluster.rows_per_task
        while True:
            before = len(done)
            left = (pair for pair in pairs() if name_hash(pair[0].name) not in done)
            for outcome in cluster.answers(left, rows_per_task):
                if outcome.ends:
                    done.add(name_hash(outcome.name))
                yield outcome
                if stopped():
                    return
            if len(done) == len(prepared.plan):
                return
            if rows_per_task == 1 and len(done) == before:
                break  # a worker has died of each of these alone
            rows_per_task = 1
            print(f"{len(prepared.plan) - len(done)} inputs had workers that died; again one by one", file=sys.stderr)
        error = ImageError("failed", "the worker process died on it")
        for task, prior in pairs():
            if name_hash(task.name) not in done:
                yield bury(task, prior, failure(task.name, error))
    finally:
        cluster.close()
