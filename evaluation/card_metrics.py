"""Write the measured figures of a weights file into its card.

    python -m evaluation.card_metrics OUT/restorer/tables.json prouigan_128

The tables are those of `evaluate`, or of another measurement that names the weights of each figure. The figures of the
card that have a bar are kept, or all over whole sets where none has one, and only if they were measured with the very
file that the card describes, in a network built with the arguments that it gives.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.cards import cards_measured, write_metrics


def _place(finding: dict[str, Any]) -> tuple[str, ...]:
    """What a figure is of, whatever its row."""
    return tuple(finding[k] for k in ("section", "subset", "condition", "group", "metric"))


def card_metrics(tables: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The figures in `tables` (the content of tables.json) as entries of card `name`; the baseline is bicubic's.

    Raises:
        ValueError: they were measured with other weights or arguments than the card describes, or do not say with
            which, or none of them is of this card.
    """
    header = tables["header"]
    if "arguments" not in header:
        raise ValueError(f"{name}: the tables, of an older version, do not say which arguments the card had; measure "
                         "again")  # fmt: skip
    for key, described in cards_measured([name]).items():
        if described not in str(header[key]).split(", "):
            raise ValueError(f"{name}: the {key} measured are {header[key]!r}, the card's are {described!r}; measure "
                             "again")  # fmt: skip
    own = [f for f in tables["findings"] if f["weights"] == name]
    bicubic = {_place(f): f["value"] for f in tables["findings"] if f["row"] == "bicubic"}
    barred = [f for f in own if f["bar"] is not None]
    chosen = barred or [f for f in own if not f["group"]]
    if not chosen:
        raise ValueError(f"{name}: no figure in these tables is of this card")
    once: dict[tuple[Any, ...], dict[str, Any]] = {}  # originals are the same in every condition and gallery
    for f in chosen:
        figure = tuple(f[k] for k in ("section", "metric", "n", "value", "low", "high"))
        once.setdefault(figure if f["row"] == "original" else (*_place(f), f["row"]), f)
    return [
        {
            "set": ", ".join(v for v in (f["subset"], f["condition"], f["group"]) if v),
            "metric": ", ".join(v for v in (f"{f['section']}: {f['metric']}", f["row"]) if v),
            "n": f["n"],
            "value": f["value"],
            "interval": [f["low"], f["high"]],
            "baseline": bicubic.get(_place(f)),
        }
        for f in once.values()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, help="tables.json of `evaluate`")
    parser.add_argument("name", help="card to write them into")
    args = parser.parse_args(arguments)
    metrics = card_metrics(json.loads(args.tables.read_text(encoding="utf-8")), args.name)
    print(f"{write_metrics(args.name, metrics)}: {len(metrics)} figures")


if __name__ == "__main__":
    main()
