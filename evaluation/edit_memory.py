"""How much memory and time an edit takes, by the size of the picture, in patches and in one piece.

    python -m evaluation.edit_memory --out OUT [--sides 768 1024 2048 4096 8192] [--weights coogan_768] [--repeats 3]

Each measurement is a process of its own. It loads what an edit needs and runs one warm-up of the smallest patch; what
its resident memory then grows by at most, decoding and encoding of the file included, is the figure: the whole process
less imports and weights. Sizes beyond those measured in one piece get an extrapolated figure, marked so. The picture is
a drawn face, so that the same file can be made anywhere. Without `--weights` the shipped layout is measured with random
numbers in it: memory and time do not ask for sense. Linux only.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation.commands import add_precision, command_parser, write_measured
from evaluation.restoring import REPOSITORY, AnyPrecision
from pipeline.chain import pick_device, pick_precision
from pipeline.images import Limits
from pipeline.large import edit_picture
from stages.attributes import ATTRIBUTES
from stages.coogan import Coogan, CooganConfig, CooganEditor
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.weights import load_network

SIDES = (768, 1024, 2048, 4096, 8192)
GROWTH, WHOLE_SHARE = 1.25, 1 / 8  # the bars: 4096 over 768, and patches over one piece at 4096
_POLL_SECONDS = 0.005
DEFINITIONS = {
    "mib": "most resident memory of a process while one file is read, edited and written, less that before: MiB",
    "seconds": "wall time of the same, one thread",
    "n": "processes behind each figure in patches, of which it is the median; in one piece it is one process",
    "extrapolated_mib": "side -> MiB in one piece, on the line over the area through the sides measured so",
}


@dataclass(frozen=True)
class Row:
    """One edit: side of the picture in px, whether in patches, MiB beyond imports and weights, seconds.

    `mib` is None where the machine's memory did not allow it.
    """

    side: int
    patched: bool
    mib: float | None
    seconds: float | None


def drawn_face(side: int) -> np.ndarray:
    """(side, side, 3) uint8: an oval with eyes, nose and mouth in the canonical frame, over a smooth background."""
    y, x = (v.astype(np.float32) * (128 / side) for v in np.ogrid[:side, :side])
    picture: np.ndarray = np.empty((side, side, 3), np.uint8)
    for channel, (skin, back) in enumerate(((205, 70), (160, 90), (140, 110))):
        plane = np.full((side, side), back, np.float32) + 30 * np.sin(x / 9) * np.cos(y / 11)
        plane[((x - 64) / 44) ** 2 + ((y - 68) / 60) ** 2 < 1] = skin
        for cx, cy, rx, ry, value in (
            (43, 50, 9, 4, 60), (85, 50, 9, 4, 60), (64, 72, 6, 12, skin - 25), (64, 95, 17, 5, 120 - 30 * channel),
        ):  # fmt: skip
            plane[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = value
        picture[..., channel] = plane.clip(0, 255)
    return picture


def _resident() -> float:
    """Resident memory of this process now, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


class _Peak:
    """The most resident memory while the block runs, polled, MiB."""

    def __enter__(self) -> "_Peak":
        self.mib, self._done = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self.mib = max(self.mib, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.mib = max(self.mib, _resident())


def make_stage(weights: str | None, patch: int, precision: AnyPrecision) -> Coogan:
    """The stage with the weights of a card, or with the shipped layout and random numbers; CPU."""
    device = pick_device("cpu")
    chosen = pick_precision(precision, device)
    wanted = {"age": 1.0}
    if weights is not None:
        return Coogan(CooganConfig(weights=weights, attributes=wanted, patch=patch), device, chosen)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    network = CooganNet(list(ATTRIBUTES)).eval().requires_grad_(False).to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    parser, identity = (load_network(name, device, dtype) for name in ("face_parser", "identity"))
    assert isinstance(parser, FaceParser) and isinstance(identity, IdentityNet)
    stage = Coogan.__new__(Coogan)
    stage.config, stage.device, stage.precision = CooganConfig(attributes=wanted, patch=patch), device, chosen
    stage.editor = CooganEditor(network, parser, identity, wanted, patch, stage.config.overlap)
    return stage


def measure(side: int, patched: bool, weights: str | None, precision: AnyPrecision) -> Row:
    """Edit a picture of `side` px in this process, file to file."""
    patch = CooganConfig.model_fields["patch"].default
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as folder:
        # One piece: a patch as large as the picture; the same network, without its tiles.
        stage = make_stage(weights, patch if patched else -(-side // 8) * 8, precision)
        warm = Path(folder) / "warm.png"
        Image.fromarray(drawn_face(128)).save(warm)
        outputs = Path(folder) / "image.png", Path(folder) / "invented.png"
        edit_picture(warm, *outputs, stage, Limits(10**9), lambda _: PngInfo(), least_score=0.0)
        source = Path(folder) / "source.png"
        command = [sys.executable, "-m", "evaluation.edit_memory", "--draw", str(side), "--out", str(source)]
        subprocess.run(command, check=True, cwd=REPOSITORY)  # drawn elsewhere: our peak must not hold it
        before = _resident()
        started = time.perf_counter()
        with _Peak() as peak:
            done = edit_picture(source, *outputs, stage, Limits(10**9), lambda _: PngInfo(), least_score=0.0)
        seconds = time.perf_counter() - started
        assert done is not None and outputs[0].stat().st_size > 0
    return Row(side, patched, peak.mib - before, seconds)


def run_row(side: int, patched: bool, weights: str | None, precision: str) -> Row:
    """`measure` in a process of its own; without figures where that process was killed."""
    command = [
        sys.executable, "-m", "evaluation.edit_memory", "--one", str(side), "--precision", precision, "--out", "-",
        *([] if patched else ["--whole"]), *(["--weights", weights] if weights else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"{side} px {'in patches' if patched else 'in one piece'}: no figure: {reason}", file=sys.stderr)
        return Row(side, patched, None, None)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def median_row(rows: Sequence[Row]) -> Row:
    """One row for several measurements of the same; without a figure where any has none."""
    mib, seconds = [r.mib for r in rows], [r.seconds for r in rows]
    first = rows[0]
    if None in mib or None in seconds:
        return Row(first.side, first.patched, None, None)
    return Row(first.side, first.patched, float(np.median(mib)), float(np.median(seconds)))  # type: ignore[arg-type]


def extrapolated(rows: Sequence[Row]) -> dict[int, float]:
    """Side -> MiB in one piece for sides beyond those measured so; memory grows with the area. Never a bar's figure."""
    known = {r.side: r.mib for r in rows if not r.patched and r.mib is not None}
    if len(known) < 2:
        return {}
    slope, start = np.polyfit([side**2 for side in known], list(known.values()), 1)
    return {r.side: float(start + slope * r.side**2) for r in rows if r.patched and r.side > max(known)}


def findings(rows: Sequence[Row]) -> list[tuple[str, float, float, bool]]:
    """(what, value, bar, met) for the bars whose rows are there."""
    mib = {(r.side, r.patched): r.mib for r in rows if r.mib is not None}
    seconds = {r.side: r.seconds for r in rows if r.patched and r.seconds is not None}
    found = []
    if (4096, True) in mib and (768, True) in mib:
        share = mib[4096, True] / mib[768, True]
        found.append(("memory at 4096 over that at 768, in patches", share, GROWTH, share <= GROWTH))
    if (4096, True) in mib and (4096, False) in mib:
        share = mib[4096, True] / mib[4096, False]
        found.append(("memory at 4096, in patches over in one piece", share, WHOLE_SHARE, share <= WHOLE_SHARE))
    if 768 in seconds:
        found.append(("seconds at 768, one thread", seconds[768], 3.0, seconds[768] < 3.0))
    return found


def table(rows: Sequence[Row]) -> str:
    """The measurements and the bars as Markdown."""
    lines = ["| side, px | in patches, MiB | s | s a megapixel | in one piece, MiB | s |", "|---|---|---|---|---|---|"]

    def number(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    by, beyond = {(r.side, r.patched): r for r in rows}, extrapolated(rows)
    for side in sorted({r.side for r in rows}):
        part, whole = (by.get((side, p), Row(side, p, None, None)) for p in (True, False))
        one_piece = f"{number(beyond[side])} (extrapolated)" if side in beyond else number(whole.mib)
        rate = None if part.seconds is None else part.seconds / (side * side / 1e6)
        lines.append(
            f"| {side} | {number(part.mib)} | {number(part.seconds, 1)} | {number(rate, 2)} | {one_piece} | "
            f"{number(whole.seconds, 1)} |"
        )
    lines += ["", "| bar | value | at most | |", "|---|---|---|---|"]
    lines += [f"| {w} | {v:.3f} | {b:.3f} | {'pass' if met else '**FAIL**'} |" for w, v, b, met in findings(rows)]
    lines += ["", *(f"- *{name}*: {words}" for name, words in DEFINITIONS.items())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar that was measured is met, else 1."""
    parser = command_parser("edit_memory", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where edit_memory.json and edit_memory.md go")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="px (default: %(default)s)")
    parser.add_argument("--whole-up-to", type=int, default=4096, help="largest side also run in one piece, px")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each side, in patches (default 3)")
    parser.add_argument("--weights", help="card of the editor (default: the shipped layout with random numbers)")
    add_precision(parser)
    parser.add_argument("--one", type=int, metavar="SIDE", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=int, metavar="SIDE", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.draw:
        Image.fromarray(drawn_face(args.draw)).save(args.out, compress_level=1)
        return 0
    if args.one:
        print(json.dumps(asdict(measure(args.one, not args.whole, args.weights, args.precision))))
        return 0
    if not Path("/proc/self/statm").is_file():
        parser.error("needs /proc: run this on Linux")
    single = {
        side: [run_row(side, True, args.weights, args.precision) for _ in range(args.repeats)]
        for side in sorted(args.sides)
    }
    rows = [median_row(of_side) for of_side in single.values()]
    rows += [run_row(s, False, args.weights, args.precision) for s in sorted(args.sides) if s <= args.whole_up_to]
    record = {
        "definitions": DEFINITIONS,
        "n": args.repeats,
        "rows": [asdict(r) for r in rows],
        "single_mib": {side: [r.mib for r in of_side] for side, of_side in single.items()},
        "extrapolated_mib": extrapolated(rows),
        "bars": [dict(zip(("bar", "value", "at_most", "met"), found, strict=True)) for found in findings(rows)],
    }
    write_measured(record, table(rows), args.out, "edit_memory")
    return 0 if all(met for *_, met in findings(rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
