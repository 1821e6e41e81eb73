"""Whether a large batch holds: memory, speed and journal of a long run, and the tree of one that was killed.

    python -m evaluation.endurance --out OUT [--count 100000] [--killed 2000] [--kills 10]

Runs `run_pipeline.py restore` on degraded thumbnails: on 1,000, on `--count`, and on `--killed` of them twice, once
undisturbed and once killed (SIGKILL, the whole process group) at random moments and started again each time. The files
of those two must be the same, byte for byte; the undisturbed one, as long as the benchmark's, says how fast the long
run should be. The report of the long run is opened in headless Chromium where there is one. Writes OUT/endurance.json
and OUT/endurance.md. Linux only.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evaluation.commands import add_config, add_precision, command_parser, write_measured
from evaluation.restore_command import journal_statuses, make_thumbnails, restore_command, tree_hashes, watch

SMALL = 1000  # files of the run whose memory the large one is held against
GROWTH = 1.10  # the bar: memory of the large run over that of the small one
OPEN_SECONDS = 5.0  # the bar: to read the whole journal, and to open the report
LEAST_RATE = 0.85  # the bar: files a second of the long run over those of the benchmark's length
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Endurance:
    """What was measured.

    Attributes:
        files, seconds, rate: of the large run, start-up and report included; rate in files a second.
        short_rate: the same of the run of `killed` files that was not killed.
        small_mib, large_mib: peak resident memory of all processes together.
        statuses: journal lines by status; inputs: different inputs in the journal. journal_seconds: to parse all of it.
        first_page_mib, pages: of the report; report_seconds: to open its first page, None without a browser.
        kills: how often the other run was killed; lines: its journal's length at each; same: whether its files equal
            those of the undisturbed run.
    """

    files: int
    seconds: float
    rate: float
    short_rate: float
    small_mib: float
    large_mib: float
    statuses: dict[str, int]
    inputs: int
    journal_seconds: float
    first_page_mib: float
    report_seconds: float | None
    pages: int
    killed: int
    kills: int
    same: bool
    lines: list[int] = field(default_factory=list)

    def problems(self) -> list[str]:
        """The bars that were missed, in words."""
        found = []
        if self.inputs != self.files or sum(self.statuses.values()) != self.files:
            found.append(f"the journal has {self.inputs} of {self.files} inputs in {sum(self.statuses.values())} lines")
        if self.large_mib > GROWTH * self.small_mib:
            found.append(f"memory grew from {self.small_mib:.0f} to {self.large_mib:.0f} MiB")
        if self.journal_seconds > OPEN_SECONDS:
            found.append(f"reading the journal took {self.journal_seconds:.1f} s")
        if self.report_seconds is not None and self.report_seconds > OPEN_SECONDS:
            found.append(f"opening the report took {self.report_seconds:.1f} s")
        if self.rate < LEAST_RATE * self.short_rate:
            found.append(f"{self.rate:.1f} files a second, {self.short_rate:.1f} in a run of {self.killed}")
        if not self.same:
            found.append("the killed run ended with other files")
        return found


def journal_lines(out: Path) -> int:
    """Lines of a run's journal so far; 0 without one."""
    journal = out / "_run" / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def seconds_to_open(page: Path) -> float | None:
    """Wall seconds in which headless Chromium, start-up included, has built an HTML page; None without a browser.

    Raises `subprocess.CalledProcessError` where it fails.
    """
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        return None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as profile:
        options = "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"
        command = [browser, *options, "--dump-dom", page.absolute().as_uri()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    return time.perf_counter() - start


def run_killed(command: Sequence[str], out: Path, kills: int, within: float, seed: int = 0) -> list[int]:
    """Start `command` and kill its process group after a random time, `kills` times, then let it end.

    Args:
        within: seconds, the longest time that it is left alone; the moments are spread evenly over it, at random.

    Returns:
        Length of the journal at each kill, shorter than `kills` where a run ended by itself before.

    Raises:
        RuntimeError: the last run ended with another exit code than 0 or 1.
    """
    rng, lines = random.Random(seed), []
    for _ in range(kills):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0, within))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            lines.append(journal_lines(out))
    code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    if code not in (0, 1):
        raise RuntimeError(f"the last run ended with exit code {code}")
    return lines


def measure(config: Path, count: int, killed: int, kills: int, precision: str = "auto") -> Endurance:
    """Everything; see the module's text."""
    with tempfile.TemporaryDirectory() as scratch:
        thumbnails, outs = Path(scratch) / "in", {n: Path(scratch) / n for n in ("small", "large", "whole", "killed")}
        make_thumbnails(thumbnails, count)
        parts = {}
        for name, size in (("small", min(SMALL, count)), ("killed", min(killed, count))):
            parts[name] = Path(scratch) / f"{name}.txt"
            parts[name].write_text("".join(f"{thumbnails / f'{i:06d}.png'}\n" for i in range(size)))

        def command(inputs: Path, out: Path) -> list[str]:
            return restore_command(inputs, out, config, precision)

        def watched(inputs: Path, out: Path) -> tuple[float, float]:
            code, seconds, tree, _ = watch(command(inputs, out))
            if code not in (0, 1):
                raise RuntimeError(f"restore into {out.name} ended with exit code {code}")
            return seconds, tree

        _, small_mib = watched(parts["small"], outs["small"])
        seconds, large_mib = watched(thumbnails, outs["large"])
        run = outs["large"] / "_run"
        start = time.perf_counter()
        with (run / "journal.jsonl").open(encoding="utf-8") as lines:
            inputs = Counter(json.loads(line)["input"] for line in lines)
        journal_seconds = time.perf_counter() - start
        whole_seconds, _ = watched(parts["killed"], outs["whole"])
        report_seconds = seconds_to_open(run / "report.html")
        killed = len(parts["killed"].read_text().split())
        at = run_killed(command(parts["killed"], outs["killed"]), outs["killed"], kills, 2 * whole_seconds / kills)
        return Endurance(
            count, seconds, count / seconds, killed / whole_seconds, small_mib, large_mib,
            journal_statuses(outs["large"]), len(inputs), journal_seconds,
            (run / "report.html").stat().st_size / 2**20, report_seconds, 1 + len(list(run.glob("report/*.html"))),
            killed, len(at), tree_hashes(outs["killed"]) == tree_hashes(outs["whole"]), at,
        )  # fmt: skip


def table(found: Endurance) -> str:
    """The measurements as Markdown."""
    f = found
    opened = "" if f.report_seconds is None else f", opened in {f.report_seconds:.1f} s"
    rows = [
        (f"{f.files} files", f"{f.seconds:.0f} s, {f.rate:.1f} files/s, report included"),
        (f"{f.killed} files, undisturbed", f"{f.short_rate:.1f} files/s"),
        (f"peak memory, all processes, {SMALL} and {f.files} files", f"{f.small_mib:.0f} and {f.large_mib:.0f} MiB"),
        ("journal", f"{f.inputs} inputs, {f.statuses}, parsed in {f.journal_seconds:.1f} s"),
        ("report", f"{f.pages} pages, the first of {f.first_page_mib:.1f} MiB{opened}"),
        (f"{f.killed} files, killed {f.kills} times", "the same files" if f.same else "**other files**"),
    ]
    return "| what | measured |\n|---|---|\n" + "".join(f"| {what} | {value} |\n" for what, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar is reached, else 1."""
    parser = command_parser("endurance", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where endurance.json and endurance.md go")
    parser.add_argument("--count", type=int, default=100_000, help="files of the long run (default 100000)")
    parser.add_argument("--killed", type=int, default=2000, help="files of the run that is killed (default 2000)")
    parser.add_argument("--kills", type=int, default=10, help="how often it is killed (default 10)")
    add_config(parser)
    add_precision(parser)
    args = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        parser.error("needs /proc: run this on Linux")
    found = measure(args.config, args.count, args.killed, args.kills, args.precision)
    write_measured(asdict(found), table(found), args.out, "endurance")
    for problem in found.problems():
        print(f"short: {problem}", file=sys.stderr)
    return 1 if found.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
