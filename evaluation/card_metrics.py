"""Write the measured figures of a weights file into its card.

    python -m evaluation.card_metrics OUT/restorer/tables.json prouigan_128      # of `evaluate`
    python -m evaluation.card_metrics OUT/bars.json prouigan_128                 # of evaluation.restorer_bars

The figures of the card that have a bar are kept, or all over whole sets where none has one, and only if they were
measured with the very file that the card describes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.weights import read_card, weights_dir


def card_metrics(tables: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The figures in `tables` (the content of tables.json or bars.json) as entries of card `name`.

    Raises:
        ValueError: they were measured with other weights than the card describes, or none of them is of this card.
    """
    card = read_card(name)
    measured = str(tables["header"]["weights"])
    if card.sha256[:16] not in measured:
        raise ValueError(f"{name}: the figures are of {measured!r}, the card is of {card.sha256[:16]}; measure again")
    named = any(finding.get("weights") for finding in tables["findings"])  # bars.json judges one chain as a whole
    own = [f for f in tables["findings"] if not named or f["weights"] == name]
    barred = [f for f in own if f["bar"] is not None]
    chosen = barred or [f for f in own if named and not f["group"]]
    if not chosen:
        raise ValueError(f"{name}: no figure in these tables is of this card")
    return [
        {
            "set": ", ".join(v for v in (f["subset"], f.get("condition"), f.get("group")) if v),
            "metric": ", ".join(v for v in (f"{f['section']}: {f['metric']}", f.get("row")) if v),
            "n": f["n"],
            "value": f["value"],
            "interval": [f["low"], f["high"]],
            "baseline": f["baseline"],
        }
        for f in chosen
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bars", type=Path, help="tables.json of `evaluate`, or bars.json")
    parser.add_argument("name", help="card to write them into")
    args = parser.parse_args(arguments)
    path = weights_dir() / f"{args.name}.json"
    metrics = card_metrics(json.loads(args.bars.read_text(encoding="utf-8")), args.name)
    card = read_card(args.name).model_dump() | {"metrics": metrics}
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(metrics)} figures")


if __name__ == "__main__":
    main()
