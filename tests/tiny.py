"""The smallest restorer that has every part, and the card of weights nobody trained."""

from typing import Any

TINY: dict[str, Any] = {
    "widths": (16, 16, 16),
    "blocks": (1, 0, 0),
    "dilations": ((1,), (1,), (1,)),
    "landmark_width": 16,
    "landmark_dilations": ((1,), (1,), (1,)),
    "attention_width": 16,
    "heads": 2,
    "detail_width": 16,
}


def card_of(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A card for random weights of that architecture."""
    return {
        "architecture": architecture, "arguments": arguments, "input": {}, "data": {}, "recipe": {},
        "metrics": [], "licence": "none", "limits": "random",
    }  # fmt: skip
