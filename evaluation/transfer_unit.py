"""The light transfer unit beside that of STGAN: parameters, multiplications, and what each can reconstruct.

    python -m evaluation.transfer_unit --out OUT [--cards coogan_768 coogan_stgan] [--data OMI.parquet]

Both units are built and counted at every width of the shipped editor, upsampling of the state included. With `--cards`,
two editors that differ in nothing but their unit (configs/train/coogan.yaml with `unit: stgan`) are asked for no change
on unseen faces at 768 px, without a region and without the exact answer "leave it": their PSNR stands beside. Writes
transfer_unit.json and transfer_unit.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from evaluation.commands import command_parser, write_measured
from evaluation.editing import FACE_PX, reconstruction_db
from evaluation.faces import large_faces
from evaluation.operations import operations
from evaluation.statistics import Estimate, bootstrap
from stages.networks.coogan import CooganNet
from stages.networks.transfer_unit import LightUnit, StganUnit
from stages.weights import load_network

PARAMETERS_BAR, MULTIPLY_ADDS_BAR = 0.6, 0.4
# Channels, state channels, size in px of the units of coogan_768: three of the global path, two of the local one, whose
# sizes are those in a patch of 512 px.
WIDTHS = ((128, 192, 16), (64, 128, 32), (32, 64, 64), (64, 96, 128), (32, 64, 256))
DEFINITIONS = {
    "parameters": "of one unit, upsampling of the state included; counted, so without an interval",
    "macs": "multiplications of its convolutions for one picture of that size; counted on the layers as they run",
    "reconstruction_db": f"PSNR, RGB, of unseen faces at {FACE_PX} px when no change is asked: mean, 95 % bootstrap "
    "interval, n = faces",
}


@dataclass(frozen=True)
class Count:
    """A pair of units at one width: parameters, and multiplications for one picture of `size` px."""

    channels: int
    state: int
    size: int
    stgan_parameters: int
    light_parameters: int
    stgan_macs: int
    light_macs: int


def count(channels: int, state: int, size: int) -> Count:
    """Build both units at one width and count them."""
    figures = []
    inputs = torch.zeros(1, channels, size, size), torch.zeros(1, state, size // 2, size // 2)
    for kind in (StganUnit, LightUnit):
        unit = kind(channels, state)
        figures.append((sum(p.numel() for p in unit.parameters()), operations(partial(unit, *inputs)) // 2))
    (p_stgan, m_stgan), (p_light, m_light) = figures
    return Count(channels, state, size, p_stgan, p_light, m_stgan, m_light)


def table(counts: Sequence[Count], found: dict[str, Estimate]) -> str:
    """Counts, bars and reconstruction as Markdown."""
    lines = [
        "| channels | size | STGAN parameters | light | share | STGAN MMAC | light | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in counts:
        p, m = c.light_parameters / c.stgan_parameters, c.light_macs / c.stgan_macs
        lines.append(
            f"| {c.channels} | {c.size} | {c.stgan_parameters} | {c.light_parameters} | {p:.3f} | "
            f"{c.stgan_macs / 1e6:.1f} | {c.light_macs / 1e6:.1f} | {m:.3f} |"
        )
    lines += ["", f"Bars: parameters at most {PARAMETERS_BAR}, multiplications at most {MULTIPLY_ADDS_BAR}: "
              f"{'pass' if passes(counts) else '**FAIL**'}"]  # fmt: skip
    lines += [
        f"\nReconstruction of {card}: {e.value:.2f} dB [{e.low:.2f}, {e.high:.2f}] n={e.n}" for card, e in found.items()
    ]
    lines += ["", *(f"- *{name}*: {words}" for name, words in DEFINITIONS.items())]
    return "\n".join(lines) + "\n"


def passes(counts: Sequence[Count]) -> bool:
    """Whether every width meets both bars."""
    return all(
        c.light_parameters <= PARAMETERS_BAR * c.stgan_parameters and c.light_macs <= MULTIPLY_ADDS_BAR * c.stgan_macs
        for c in counts
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where the bars are met."""
    parser = command_parser("transfer_unit", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="where transfer_unit.json and .md go")
    parser.add_argument("--cards", nargs="*", default=[], help="editors to reconstruct with")
    parser.add_argument("--data", type=Path, help="Parquet of faces for the reconstruction")
    parser.add_argument("--limit", type=int, default=24, help="faces (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.cards and args.data is None:
        parser.error("--cards needs --data")
    counts, found = [count(*width) for width in WIDTHS], {}
    faces = large_faces(args.data, FACE_PX, args.limit, enlarged=True) if args.cards else []
    if args.cards and not faces:
        parser.error(f"{args.data}: none of its faces is held out")
    for card in args.cards:
        network = load_network(card, torch.device("cpu"))
        if not isinstance(network, CooganNet):
            parser.error(f"{card} holds a {type(network).__name__}, not an editor")
        found[card] = bootstrap(np.array([reconstruction_db(network, [face]) for face in faces]))
    record = {
        "definitions": DEFINITIONS,
        "counts": [asdict(c) for c in counts],
        "reconstruction_db": {card: asdict(estimate) for card, estimate in found.items()},
    }
    write_measured(record, table(counts, found), args.out, "transfer_unit")
    return 0 if passes(counts) else 1


if __name__ == "__main__":
    sys.exit(main())
