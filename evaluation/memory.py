"""How much memory the whole command takes, and that it does not grow with the number of files.

    python -m evaluation.memory --out OUT [--counts 200 20000] [--config configs/cctv_restore.yaml]

Runs `run_pipeline.py restore` on folders of thumbnails and watches it. Writes OUT/memory.json and OUT/memory.md.
Linux only: the memory of child processes is read from /proc.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.benchmark import journal_statuses, make_thumbnails, restore_command
from evaluation.restoring import REPOSITORY

LIMIT_MIB = 2048.0  # the bar
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Peak:
    """One run watched.

    Attributes:
        tree_mib: largest sum of resident memory over the command and all its children at one moment, polled.
        process_mib: largest resident memory of any single process, by the kernel's own record: no peak is missed.
        statuses: journal lines by status.
    """

    files: int
    seconds: float
    tree_mib: float
    process_mib: float
    statuses: dict[str, int]


def tree_resident_mib(root: int) -> float:
    """Resident memory of a process and all its descendants now, in MiB; 0 once gone. Shared pages count for each."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except (OSError, ValueError):  # ended meanwhile
            continue
        parents[int(status.parent.name)] = int(fields["PPid"])
        resident[int(status.parent.name)] = int(fields.get("VmRSS", "0 kB").split()[0])
    tree, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    return sum(resident.get(process, 0) for process in tree) / 1024


def watch(command: Sequence[str]) -> tuple[int, float, float, float]:
    """Run a command; returns exit code, seconds, peak of the tree and peak of any one process in MiB.

    The single-process peak is the largest of all children this interpreter has waited for: run the smallest job first.
    """
    start, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, tree_resident_mib(process.pid))
            time.sleep(POLL_SECONDS)
    single = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # KiB on Linux
    return process.returncode, time.perf_counter() - start, peak, single


def measure(config: Path, count: int, precision: str, device: str = "auto") -> Peak:
    """Watch the command on `count` thumbnails.

    Raises:
        RuntimeError: it ended with another exit code than 0 or 1.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        make_thumbnails(Path(folder), count)
        code, seconds, tree, single = watch(restore_command(Path(folder), Path(out), config, precision, device))
        if code not in (0, 1):
            raise RuntimeError(f"restore of {count} files ended with exit code {code}")
        return Peak(count, seconds, tree, single, journal_statuses(Path(out)))


def table(peaks: Sequence[Peak]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| files | seconds | peak of all processes, MiB | peak of one process, MiB | under 2 GiB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.files} | {p.seconds:.0f} | {p.tree_mib:.0f} | {p.process_mib:.0f} | "
        f"{'pass' if max(p.tree_mib, p.process_mib) < LIMIT_MIB else '**FAIL**'} |"
        for p in peaks
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every run stays under the bar, else 1."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where memory.json and memory.md go")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 20000], help="files a run (default 200 20000)")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "cctv_restore.yaml", help="the chain")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        parser.error("needs /proc: run this on Linux")
    peaks = [measure(args.config, count, args.precision, args.device) for count in sorted(args.counts)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "memory.json").write_text(json.dumps([asdict(p) for p in peaks], indent=1) + "\n", encoding="utf-8")
    (args.out / "memory.md").write_text(table(peaks), encoding="utf-8")
    print(table(peaks), end="")
    return 0 if all(max(p.tree_mib, p.process_mib) < LIMIT_MIB for p in peaks) else 1


if __name__ == "__main__":
    sys.exit(main())
