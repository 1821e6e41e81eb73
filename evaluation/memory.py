"""How much memory the whole command takes, and that it does not grow with the number of files.

    python -m evaluation.memory --out OUT [--counts 200 20000] [--config configs/cctv_restore.yaml]

Runs `run_pipeline.py restore` on folders of thumbnails and watches it. Writes OUT/memory.json and OUT/memory.md.
Linux only: the memory of child processes is read from /proc.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.commands import add_config, add_device, add_precision, command_parser, write_measured
from evaluation.restore_command import journal_statuses, make_thumbnails, restore_command, watch

LIMIT_MIB = 2048.0  # the bar


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
    parser = command_parser("memory", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where memory.json and memory.md go")
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 20000], help="files a run (default 200 20000)")
    add_config(parser)
    add_precision(parser)
    add_device(parser)
    args = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        parser.error("needs /proc: run this on Linux")
    peaks = [measure(args.config, count, args.precision, args.device) for count in sorted(args.counts)]
    write_measured([asdict(p) for p in peaks], table(peaks), args.out, "memory")
    return 0 if all(max(p.tree_mib, p.process_mib) < LIMIT_MIB for p in peaks) else 1


if __name__ == "__main__":
    sys.exit(main())
