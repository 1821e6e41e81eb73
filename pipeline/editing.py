"""Attribute editing as a chain of its own: for the command `edit`, and from Python.

from pipeline.editing import edit, strength_sheet

result = edit(["face.png"], {"smiling": 1.0, "age": -0.5})[0]
picture = strength_sheet("face.png", "smiling", [-1, -0.5, 0, 0.5, 1])
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pipeline.config import ConfigError, find_config, parse_yaml
from pipeline.restorer import Restorer, Result
from stages import STAGES

SHEET_PX = 256  # side of one picture of a contact sheet


def editors() -> list[str]:
    """Names of the stages that edit attributes."""
    return sorted(name for name, stage in STAGES.items() if "attributes" in stage.Config.model_fields)


def edit_chain(editor: str, attributes: Mapping[str, float], config: str | Path | None = None) -> dict[str, Any]:
    """The plain values of a chain that edits.

    Args:
        editor: name of the stage. attributes: wanted strengths by name.
        config: a chain that holds the stage, whose attributes are then replaced by those given; None: the editor alone.

    Raises:
        ConfigError: the editor is not part of this version or of the chain, or no attribute is given.
    """
    if editor not in editors():
        raise ConfigError([f"--editor {editor}: not part of this version; here: {', '.join(editors())}"])
    if config is None:
        raw: Any = {"version": 1, "name": f"edit_{editor}", "stages": [{"stage": editor, "attributes": {}}]}
    else:
        path = find_config(config)
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    stages = raw.get("stages") if isinstance(raw, dict) else None
    found = [s for s in stages or [] if isinstance(s, dict) and s.get("stage") == editor]
    if not found:
        raise ConfigError([f"{config}: no stage {editor!r} in it; add one, or leave -c out"])
    for stage in found:
        if attributes:
            stage["attributes"] = dict(attributes)
        if not stage.get("attributes"):
            raise ConfigError(["no attribute to change; name one, for instance --set-attribute smiling=+1.0"])
    return raw


def edit(
    images: Sequence[np.ndarray | Image.Image | str | Path],
    attributes: Mapping[str, float],
    editor: str = "coogan",
    **options: Any,
) -> list[Result]:
    """Edit faces; one result per picture. `options` are those of `Restorer.from_config`.

    Raises:
        ConfigError: an unknown attribute or strength, or weights that are missing.
    """
    return Restorer.from_config(edit_chain(editor, attributes), **options).restore(images)


def strength_sheet(
    image: np.ndarray | Image.Image | str | Path,
    attribute: str,
    strengths: Sequence[float],
    editor: str = "coogan",
    **options: Any,
) -> np.ndarray:
    """One face at several strengths, side by side: (256, 256 * n, 3) uint8; grey where there is no result.

    Raises:
        ConfigError: as `edit`.
    """
    tiles = []
    for strength in strengths:
        result = edit([image], {attribute: strength}, editor, **options)[0]
        tile = Image.new("RGB", (SHEET_PX, SHEET_PX), (128, 128, 128))
        if result.image is not None:
            picture = Image.fromarray(result.image).convert("RGB")
            picture = ImageOps.contain(picture, (SHEET_PX, SHEET_PX), Image.Resampling.LANCZOS)
            tile.paste(picture, ((SHEET_PX - picture.width) // 2, (SHEET_PX - picture.height) // 2))
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, 1)
