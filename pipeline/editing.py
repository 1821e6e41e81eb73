"""Attribute editing as a chain of its own: for the command `edit`, and from Python.

from pipeline.editing import contact_sheet, edit, strength_sheet

result = edit(["face.png"], {"smiling": 1.0, "age": -0.5})[0]
picture = strength_sheet("face.png", "smiling", [-1, -0.5, 0, 0.5, 1])
picture = contact_sheet(["faces/"], ["smiling", "age"])
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pipeline.config import ConfigError, find_config, load_chain, read_mapping
from pipeline.images import ImageError, encode_png
from pipeline.large import reduced
from pipeline.marking import marked
from pipeline.output import OutputFolder
from pipeline.planning import InputSet
from pipeline.provenance import png_text
from pipeline.restorer import Restorer, Result
from pipeline.storage import is_url
from stages import STAGES
from stages.coogan import Coogan

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the columns of a contact sheet
SHEET_PX = 256  # side of one picture of a contact sheet
LARGEST_PX = 768  # longest side of what is edited for a sheet: three times what it shows
SHEET_FACES = 20  # inputs shown on the sheet of a run
SHEET_PATH = "_run/sheet.png"  # below the output folder, where no run looks for inputs
LABEL_PX, HEADER_PX, FONT_PX = 160, 24, 13

AnyImage = np.ndarray | Image.Image | str | Path


def editors() -> list[str]:
    """Names of the stages that edit attributes."""
    return sorted(name for name, stage in STAGES.items() if "attributes" in stage.Config.model_fields)


def edit_chain(
    editor: str, attributes: Mapping[str, float], config: str | Path | None = None
) -> tuple[Path | dict[str, Any], list[str]]:
    """A chain that edits, and the overrides to load it with, as `load_chain` takes them.

    Args:
        editor: name of the stage. attributes: wanted strengths by name.
        config: a chain that holds the stage, whose attributes are then replaced by those given; None: the editor alone.

    Raises:
        ConfigError: the editor is not part of this version or of the chain, or no attribute is given.
    """
    if editor not in editors():
        raise ConfigError([f"--editor {editor}: not part of this version; here: {', '.join(editors())}"])
    alone = {"version": 1, "name": f"edit_{editor}", "stages": [{"stage": editor, "attributes": {}}]}
    source = alone if config is None else find_config(config)
    raw = source if isinstance(source, dict) else read_mapping(source, "version, name and stages")
    stages = raw.get("stages")
    listed = enumerate(stages if isinstance(stages, list) else [])
    found = {i: s for i, s in listed if isinstance(s, dict) and s.get("stage") == editor}
    if not found:
        raise ConfigError([f"{config}: no stage {editor!r} in it; add one, or leave -c out"])
    if not attributes and not all(stage.get("attributes") for stage in found.values()):
        raise ConfigError(["no attribute to change; name one, for instance --set-attribute smiling=+1.0"])
    wanted = json.dumps({name: float(strength) for name, strength in attributes.items()})
    return source, [f"stages.{i}.attributes={wanted}" for i in found] if attributes else []


def _pictures(images: Iterable[AnyImage]) -> list[AnyImage]:
    """The pictures, and in place of each folder those in it, as the command line finds them; links out of the folder
    are left out. Raises `TypeError` for one picture that is not in a list."""
    if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4):
        raise TypeError("images: expected a list of arrays, PIL images, paths or folders; for one: [x]")
    nowhere = Path(os.devnull)  # no output folder whose pictures were to be passed over
    found: list[AnyImage] = []
    for image in images:
        if isinstance(image, str | Path) and os.path.isdir(image):
            found += [task.source for task in InputSet((str(image),), nowhere).tasks() if not task.refused]
        else:
            found.append(image)
    return found


def edit(
    images: Sequence[AnyImage],
    attributes: Mapping[str, float],
    editor: str = "coogan",
    **options: Any,
) -> list[Result]:
    """Edit faces; one result per picture, those of a folder in place of it. `options`: of `Restorer.from_config`.

    Raises:
        ConfigError: an unknown attribute or strength, or weights that are missing.
    """
    source, overrides = edit_chain(editor, attributes)
    overrides += options.pop("overrides", ())
    return Restorer.from_config(source, overrides=overrides, **options).restore(_pictures(images))


# ---- contact sheets


def contact_sheet(
    images: Sequence[AnyImage],
    attributes: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
    editor: str = "coogan",
    **options: Any,
) -> np.ndarray:
    """Faces at several strengths, (256 * rows, 256 * strengths, 3) uint8: a row for each face and attribute.

    Grey where there is no result. Pictures are taken as `edit` takes them; the networks are loaded once.

    Raises:
        ConfigError: as `edit`.
    """
    source, overrides = edit_chain(editor, dict.fromkeys(attributes, 0.0))
    overrides += options.pop("overrides", ())
    return _sheet(
        Restorer.from_config(source, overrides=overrides, **options), _pictures(images), attributes, strengths
    )


def strength_sheet(
    image: AnyImage,
    attribute: str,
    strengths: Sequence[float],
    editor: str = "coogan",
    **options: Any,
) -> np.ndarray:
    """One face at several strengths, side by side: (256, 256 * n, 3) uint8; see `contact_sheet`."""
    return contact_sheet([image], [attribute], strengths, editor, **options)


def check_sheet(output: str, source: Path | dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse, before its run, a contact sheet that could not be drawn after it. Raises `ConfigError`."""
    if is_url(output):
        raise ConfigError(["--sheet: needs an output folder on this machine"])
    if load_chain(source, overrides=overrides).takes_frames:
        raise ConfigError([f"--sheet: {source} takes whole frames, and a sheet shows face crops"])


def write_sheet(
    inputs: Sequence[str], output: Path, source: Path | dict[str, Any], overrides: Sequence[str], **options: Any
) -> Path:
    """Draw the contact sheet of a run below its output folder, with labels and the standing words; returns its path.

    Args:
        inputs: as on the command line; the first `SHEET_FACES` are shown, for every attribute that the chain edits.
        source, overrides, options: of `Restorer.from_config`.

    Raises:
        ConfigError, InputError, OutputError: as the run itself.
    """
    restorer = Restorer.from_config(source, overrides=overrides, **options)
    asked = [getattr(entry.config, "attributes", {}) for entry in restorer.config.stages]
    attributes = list(dict.fromkeys(name for wanted in asked for name in wanted))
    tasks = list(islice((task for task in InputSet(tuple(inputs), output).tasks() if not task.refused), SHEET_FACES))
    pixels = _sheet(restorer, [task.source for task in tasks], attributes, STRENGTHS)
    labels = [f"{attribute}\n{task.name}" for task in tasks for attribute in attributes]
    record = {"software": "revisage", "chain": restorer.config.name, "attributes": attributes, "strengths": STRENGTHS}
    folder = OutputFolder(output)
    folder.write(SHEET_PATH, encode_png(marked(_labelled(pixels, labels)), png_text(record, True)))
    return folder.path(SHEET_PATH)


def _sheet(
    restorer: Restorer, images: Sequence[AnyImage], attributes: Sequence[str], strengths: Sequence[float]
) -> np.ndarray:
    """The pictures of `contact_sheet`, for a restorer whose chain edits."""
    shown = np.full((len(images), len(attributes), SHEET_PX, len(strengths), SHEET_PX, 3), 128, np.uint8)
    smaller = [_reduced(restorer, image) for image in images]
    for row, attribute in enumerate(attributes):
        for column, strength in enumerate(strengths):
            for i, result in enumerate(_asking(restorer, {attribute: strength}).restore(smaller)):
                if result.image is not None:
                    shown[i, row, :, column] = _tile(result.image)
    return shown.reshape(len(images) * len(attributes) * SHEET_PX, len(strengths) * SHEET_PX, 3)


def _asking(restorer: Restorer, attributes: dict[str, float]) -> Restorer:
    """The same restorer, with the same networks, for other attributes."""
    other, other_chain = copy(restorer), copy(restorer.chain)
    entries = [
        replace(e, config=e.config.model_copy(update={"attributes": attributes})) if e.name in editors() else e
        for e in restorer.config.stages
    ]
    other.config = other_chain.config = replace(restorer.config, stages=tuple(entries))
    other_chain.stages = [
        (i, name, stage.asking(attributes) if isinstance(stage, Coogan) else stage)
        for i, name, stage in restorer.chain.stages
    ]
    other.chain = other_chain
    return other


def _reduced(restorer: Restorer, image: AnyImage) -> AnyImage:
    """A file on this machine, for a chain that takes pictures of any size, at `LARGEST_PX` or less; others as they
    are, and so what cannot be read: the chain says why."""
    if restorer.limits.accepts_px is not None or not isinstance(image, str | Path) or is_url(str(image)):
        return image
    try:
        pixels = reduced(Path(image), restorer.limits, LARGEST_PX)
    except ImageError:
        return image
    return image if pixels is None else pixels


def _tile(pixels: np.ndarray) -> np.ndarray:
    """A result in the middle of a grey square, (256, 256, 3) uint8."""
    tile = Image.new("RGB", (SHEET_PX, SHEET_PX), (128, 128, 128))
    picture = ImageOps.contain(Image.fromarray(pixels).convert("RGB"), tile.size, Image.Resampling.LANCZOS)
    tile.paste(picture, ((SHEET_PX - picture.width) // 2, (SHEET_PX - picture.height) // 2))
    return np.asarray(tile)


def _labelled(pixels: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """A sheet with the strengths above its columns and a label beside each row."""
    sheet = Image.new("RGB", (LABEL_PX + pixels.shape[1], HEADER_PX + pixels.shape[0]), "white")
    sheet.paste(Image.fromarray(pixels), (LABEL_PX, HEADER_PX))
    draw = ImageDraw.Draw(sheet)
    for column, strength in enumerate(STRENGTHS):
        place = (LABEL_PX + (column + 0.5) * SHEET_PX, HEADER_PX / 2)
        draw.text(place, f"{strength:+g}" if strength else "0", fill="black", font_size=FONT_PX, anchor="mm")
    for row, label in enumerate(labels):
        plain = label.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files may be no text
        cut = "\n".join(line if len(line) <= 20 else f"...{line[-17:]}" for line in plain.split("\n"))
        draw.text((4, HEADER_PX + (row + 0.5) * SHEET_PX - FONT_PX), cut, fill="black", font_size=FONT_PX)
    return np.asarray(sheet)
