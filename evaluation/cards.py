"""Which cards a measurement was made with, and the figures in a card."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.weights import read_card, weights_dir


def built_sha256(name: str) -> str:
    """SHA-256 of what the network of a card is built with: its architecture and the arguments."""
    card = read_card(name)
    return hashlib.sha256(json.dumps([card.architecture, card.arguments], sort_keys=True).encode()).hexdigest()


def cards_measured(names: Sequence[str]) -> dict[str, str]:
    """The part of a header that says which cards were measured: their tensors, and what they are built with."""
    return {
        "weights": ", ".join(f"{name} {read_card(name).sha256[:16]}" for name in names) or "none",
        "arguments": ", ".join(f"{name} {built_sha256(name)[:16]}" for name in names) or "none",
    }


def write_metrics(name: str, metrics: list[dict[str, Any]]) -> Path:
    """Put figures into the card of `name`, in place of those it had; returns the card's file."""
    path = weights_dir() / f"{name}.json"
    card = read_card(name).model_dump() | {"metrics": metrics}
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
