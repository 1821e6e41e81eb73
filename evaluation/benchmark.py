"""How fast the restorer is: the whole command on a folder, the network alone, and both against this machine's own peak.

    python -m evaluation.benchmark --out OUT [--count 2000] [--config configs/cctv_restore.yaml] [--precision bf16 fp32]

Thumbnails are made on the spot from scikit-image's own faces. Writes OUT/benchmark.json and OUT/benchmark.md.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from evaluation.commands import add_config, add_device, command_parser, write_measured
from evaluation.faces import decode
from evaluation.operations import operations
from evaluation.restore_command import journal_statuses, make_thumbnails, restore_command
from evaluation.restoring import Device, build_stage, face_batch
from stages.precision import Precision

BATCH = 32  # faces a call, for the network and for the convolution that gives the peak
PEAK_CHANNELS, PEAK_SIZE = 256, 16  # the 3x3 convolution whose rate is taken for the machine's peak
MEASURE_SECONDS = 3.0


def best_rate(call: Callable[[], object], device: torch.device, seconds: float = MEASURE_SECONDS) -> float:
    """Calls a second: the best of repeated short measurements after a warm-up, since other work can only slow them."""

    def timed(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed(1)
    times = max(1, int(0.3 / max(timed(1), 1e-6)))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until or best == 0.0:
        best = max(best, times / timed(times))
    return best


@torch.inference_mode()
def convolution_peak(dtype: torch.dtype, device: torch.device, seconds: float = MEASURE_SECONDS) -> float:
    """Floating-point operations a second of one 3x3 convolution of 256 channels at 16x16, batch 32, channels last."""
    layer = (
        nn.Conv2d(PEAK_CHANNELS, PEAK_CHANNELS, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last)
    )
    x = torch.randn(BATCH, PEAK_CHANNELS, PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    work = 2 * 9 * PEAK_CHANNELS**2 * PEAK_SIZE**2 * BATCH  # a multiplication and an addition count two
    return work * best_rate(lambda: layer(x), device, seconds)


@dataclass(frozen=True)
class Speed:
    """One precision measured.

    Attributes:
        command_seconds, command_faces_per_second: the whole command as a new process, start-up included.
        statuses: journal lines by status, so that speed is not bought with failures.
        network_faces_per_second: the stage alone, batches of `BATCH`, decoded input to result tensors.
        gflop_per_face, network_gflops: work of one face, and work done in a second by the stage alone.
        peak_gflops: the machine's own convolution peak at this precision.
        network_share_of_peak, command_share_of_peak: work done in a second over that peak.
    """

    precision: str
    files: int
    command_seconds: float
    command_faces_per_second: float
    statuses: dict[str, int]
    network_faces_per_second: float
    gflop_per_face: float
    network_gflops: float
    peak_gflops: float
    network_share_of_peak: float
    command_share_of_peak: float


@torch.inference_mode()
def measure(
    config: Path, thumbnails: Path, precision: Precision, device_name: Device = "auto", seconds: float = MEASURE_SECONDS
) -> Speed:
    """Measure one precision.

    Raises:
        RuntimeError: the command ended with another exit code than 0 or 1; its messages are included.
    """
    files = sum(1 for _ in thumbnails.iterdir())
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        done = subprocess.run(
            restore_command(thumbnails, Path(out), config, precision, device_name),
            capture_output=True,
            text=True,
            check=False,
        )
        elapsed = time.perf_counter() - start
        if done.returncode not in (0, 1):
            raise RuntimeError(f"restore ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        statuses = journal_statuses(Path(out))
    stage, device = build_stage(config, device_name, precision)
    names = sorted(thumbnails.iterdir())[:BATCH]
    batch = face_batch([decode(name.read_bytes()) for name in names], device)
    work = operations(lambda: stage(batch)) / len(batch)
    rate = best_rate(lambda: stage(batch), device, seconds) * len(batch)
    peak = convolution_peak(torch.bfloat16 if precision == "bf16" else torch.float32, device, seconds)
    return Speed(
        precision, files, elapsed, files / elapsed, statuses, rate, work / 1e9, rate * work / 1e9, peak / 1e9,
        rate * work / peak, files / elapsed * work / peak,
    )  # fmt: skip


def table(speeds: Sequence[Speed]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| precision | files | whole command, s | faces/s | network alone, faces/s | GFLOP/face | network, GFLOP/s | "
        "convolution peak, GFLOP/s | network / peak | command / peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.precision} | {s.files} | {s.command_seconds:.1f} | {s.command_faces_per_second:.1f} | "
        f"{s.network_faces_per_second:.1f} | {s.gflop_per_face:.2f} | {s.network_gflops:.0f} | {s.peak_gflops:.0f} | "
        f"{s.network_share_of_peak:.0%} | {s.command_share_of_peak:.0%} |"
        for s in speeds
    ]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "machine": platform.machine(), "cores": os.cpu_count(), "torch threads": torch.get_num_threads(),
        "cuda": device, "torch": torch.__version__, "python": platform.python_version(),
        "load before": [round(v, 2) for v in os.getloadavg()],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where everything was measured."""
    parser = command_parser("benchmark", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where benchmark.json and benchmark.md go")
    parser.add_argument("--count", type=int, default=2000, help="thumbnails in the folder (default 2000)")
    add_config(parser)
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    add_device(parser)
    args = parser.parse_args(arguments)
    host = machine()
    with tempfile.TemporaryDirectory() as folder:
        make_thumbnails(Path(folder), args.count)
        speeds = [measure(args.config, Path(folder), precision, args.device) for precision in args.precision]
    record = {"machine": host, "config": args.config.name, "batch": BATCH, "speeds": [asdict(s) for s in speeds]}
    write_measured(record, table(speeds), args.out, "benchmark")
    return 0


if __name__ == "__main__":
    sys.exit(main())
