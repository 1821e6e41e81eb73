"""How much faster two workers are than one: the whole command, by the engine of this machine and by Ray.

    python -m evaluation.scaling --out OUT [--count 10000] [--workers 1 2] [--engines local ray]

Every run is a process of its own, start-up included, on the same thumbnails; their files must be the same, byte for
byte. A short run of each engine goes before and does not count: the first one waits for the disk. Have as many idle
cores as workers. Writes OUT/scaling.json and OUT/scaling.md.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.commands import add_config, add_precision, command_parser, write_measured
from evaluation.restore_command import make_thumbnails, restore_command, tree_hashes

WARM_UP = 64  # thumbnails of the run that does not count
LEAST_SPEEDUP = 1.7  # the bar: two workers over one, where the cores are there


@dataclass(frozen=True)
class Run:
    """One run: engine, workers, wall seconds, and whether its files are those of the first run."""

    engine: str
    workers: int
    seconds: float
    same: bool


def speedups(runs: Sequence[Run]) -> dict[str, float]:
    """Engine -> seconds of one worker over those of two; engines of which both were measured."""
    seconds = {(run.engine, run.workers): run.seconds for run in runs}
    engines = dict.fromkeys(run.engine for run in runs)
    return {e: seconds[e, 1] / seconds[e, 2] for e in engines if (e, 1) in seconds and (e, 2) in seconds}


def problems(runs: Sequence[Run], cores: int) -> list[str]:
    """What is short of its bar, in words; on a single core two workers need not be faster."""
    found = [f"{run.engine}, {run.workers} workers: other files" for run in runs if not run.same]
    slow = {engine: gain for engine, gain in speedups(runs).items() if gain < LEAST_SPEEDUP and cores > 1}
    return found + [f"{engine}: two workers are {gain:.2f} times one" for engine, gain in slow.items()]


def _seconds(inputs: Path, out: Path, config: Path, precision: str, engine: str, workers: int) -> float:
    command = [*restore_command(inputs, out, config, precision), "--engine", engine, "--workers", str(workers)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{engine}, {workers} workers: exit code {done.returncode}: {done.stderr[-500:]}")
    return seconds


def measure(config: Path, count: int, workers: Sequence[int], engines: Sequence[str], precision: str) -> list[Run]:
    """Every engine with every number of workers. Raises `RuntimeError` where a run fails."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        thumbnails, few, first = Path(scratch) / "in", Path(scratch) / "few", None
        make_thumbnails(thumbnails, count)
        make_thumbnails(few, min(count, WARM_UP))
        for engine in engines:
            _seconds(few, Path(scratch) / f"{engine}_warm", config, precision, engine, max(workers))
            for number in workers:
                out = Path(scratch) / f"{engine}{number}"
                seconds = _seconds(thumbnails, out, config, precision, engine, number)
                files = tree_hashes(out)
                first = files if first is None else first
                runs.append(Run(engine, number, seconds, files == first))
    return runs


def table(runs: Sequence[Run], count: int) -> str:
    """The measurements as Markdown."""
    gains = speedups(runs)
    lines = ["| engine | workers | seconds | files/s | two over one |", "|---|---|---|---|---|"]
    for run in runs:
        gain = f"{gains[run.engine]:.2f}" if run.workers == 2 and run.engine in gains else ""
        rate = count / run.seconds
        lines.append(f"| {run.engine} | {run.workers} | {run.seconds:.1f} | {rate:.1f} | {gain} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar is reached, else 1."""
    parser = command_parser("scaling", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where scaling.json and scaling.md go")
    parser.add_argument("--count", type=int, default=10000, help="thumbnails (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default 1 2)")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=("local", "ray"))
    add_config(parser)
    add_precision(parser)
    args = parser.parse_args(arguments)
    runs, cores = measure(args.config, args.count, args.workers, args.engines, args.precision), os.cpu_count() or 1
    record = {"count": args.count, "cores": cores, "runs": [asdict(r) for r in runs], "two_over_one": speedups(runs)}
    write_measured(record, table(runs, args.count), args.out, "scaling")
    for problem in problems(runs, cores):
        print(f"short: {problem}", file=sys.stderr)
    return 1 if problems(runs, cores) else 0


if __name__ == "__main__":
    sys.exit(main())
