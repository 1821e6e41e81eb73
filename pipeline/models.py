"""`models list | verify | licences`: what the shipped weights are, whether they are whole, and on what terms."""

import json
from collections.abc import Iterator, Sequence

from stages.weights import WeightCard, WeightsError, card_names, read_card, read_checked, weights_dir, weights_file


def _readable(names: Sequence[str]) -> Iterator[WeightCard]:
    """The cards that can be read; of the others, what is wrong is printed."""
    for name in names:
        try:
            yield read_card(name)
        except WeightsError as error:
            print(f"{name}: {error}")


def list_models() -> int:
    """Print a line per card; returns the exit code."""
    names = card_names()
    for card in _readable(names):
        path = weights_file(card.name)
        size = f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "file missing"
        print(f"{card.name}: {card.architecture}, {size}, sha256 {card.sha256[:16]}..., input {json.dumps(card.input)}")
        print(f"    limits: {card.limits}")
    if not names:
        print(f"no weight cards in {weights_dir()}")
    return 0 if names else 4


def verify_models() -> int:
    """Compare every weights file with its card; returns the exit code."""
    names, bad = card_names(), 0
    for name in names:
        try:
            read_checked(name)
            print(f"{name}: ok")
        except WeightsError as error:
            bad += 1
            print(f"{name}: {error}")
    if not names:
        print(f"no weight cards in {weights_dir()}")
    return 1 if bad else 0 if names else 4


def print_licences() -> int:
    """Print the terms of every card and the data behind it; returns the exit code."""
    names = card_names()
    for card in _readable(names):
        print(f"{card.name}\n    weights: {card.licence}")
        for key, value in card.data.items():
            print(f"    data, {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    print("code: Apache-2.0; every model's and package's terms: LICENCES.md")
    return 0 if names else 4
