"""Write the measured figures of a weights file into its card.

    python -m evaluation.card_metrics OUT/bars.json prouigan_128

Only figures that have a bar are kept, and only if they were measured with the very file that the card describes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.weights import read_card, weights_dir


def card_metrics(bars: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The barred figures of `bars` (the content of bars.json) as entries of a weight card.

    Raises:
        ValueError: the figures were measured with other weights than card `name` describes.
    """
    card = read_card(name)
    measured = str(bars["header"]["weights"])
    if card.sha256[:16] not in measured:
        raise ValueError(f"{name}: the figures are of {measured!r}, the card is of {card.sha256[:16]}; measure again")
    return [
        {
            "set": finding["subset"],
            "metric": f"{finding['section']}: {finding['metric']}",
            "n": finding["n"],
            "value": finding["value"],
            "interval": [finding["low"], finding["high"]],
            "baseline": finding["baseline"],
        }
        for finding in bars["findings"]
        if finding["bar"] is not None
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bars", type=Path, help="bars.json of evaluation.restorer_bars")
    parser.add_argument("name", help="card to write them into")
    args = parser.parse_args(arguments)
    path = weights_dir() / f"{args.name}.json"
    metrics = card_metrics(json.loads(args.bars.read_text(encoding="utf-8")), args.name)
    card = read_card(args.name).model_dump() | {"metrics": metrics}
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(metrics)} figures")


if __name__ == "__main__":
    main()
