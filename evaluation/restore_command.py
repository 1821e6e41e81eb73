"""The command `restore` as a user types it: thumbnails to give it, a watch on its memory, and what it left behind."""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.faces import example_faces
from evaluation.restoring import REPOSITORY
from pipeline.images import to_uint8
from stages.degradation import DegradationConfig, degrade_face

POLL_SECONDS = 0.2


def make_thumbnails(folder: Path, count: int, seed: int = 0) -> None:
    """Write `count` different 16x16 PNG thumbnails, degraded from `example_faces`, into `folder`; every one seeded."""
    faces, config = example_faces(), DegradationConfig()
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        made = degrade_face(faces[i % len(faces)], None, np.random.default_rng((seed, i)), config)
        Image.fromarray(to_uint8(made.lq)).save(folder / f"{i:06d}.png")


def restore_command(inputs: Path, out: Path, config: Path, precision: str, device: str = "auto") -> list[str]:
    """The command a user types."""
    return [
        sys.executable, str(REPOSITORY / "run_pipeline.py"), "restore", "-i", str(inputs), "-o", str(out),
        "-c", str(config), "--precision", precision, "--device", device,
    ]  # fmt: skip


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


def journal_statuses(out: Path) -> dict[str, int]:
    """How many inputs of a finished run ended with which status."""
    lines = (out / "_run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return dict(Counter(json.loads(line)["status"] for line in lines if line))


def tree_hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file a run made but its records, by relative path."""
    files = (p for p in out.rglob("*") if p.is_file() and p.relative_to(out).parts[0] != "_run")
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
