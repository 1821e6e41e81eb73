"""Boxes from a file, as a video system exports them: CSV or JSON with image, x, y, w, h and perhaps frame and score."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.planning import InputError
from stages.base import Detection

COLUMNS = ("image", "x", "y", "w", "h")  # in any order and case; x, y: the left and top edge, px
MAX_BYTES = 1 << 30

_Row = tuple[int | None, Detection]


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} = {str(value)[:40]!r} is no number") from error
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"{key} = {str(value)[:40]!r} is no finite number")
    return number


def _parse(row: dict[str, Any], index: int) -> _Row:
    """Frame number and box of a row; what is wrong with it is noted in the box."""
    try:
        x, y, w, h = (_number(row, key) for key in COLUMNS[1:])
        if w <= 0 or h <= 0:
            raise ValueError(f"a box of {w:g} x {h:g} px has no area")
        score = None if row.get("score") in (None, "") else _number(row, "score")
        frame = None if row.get("frame") in (None, "") else int(_number(row, "frame"))
        return frame, Detection((x, y, w, h), score, None, index)
    except ValueError as error:
        return None, Detection((0.0, 0.0, 0.0, 0.0), None, None, index, f"box {index} of the boxes file: {error}")


def _plain_name(name: str) -> str:
    """A name as the journal writes it: "/" between, no leading "./"."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as dictionaries with lower-case keys.

    Raises:
        ValueError, csv.Error, UnicodeDecodeError, RecursionError: not what its ending says.
    """
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = {str(name).strip().lower() for name in reader.fieldnames or ()}
            if missing := [name for name in COLUMNS if name not in found]:
                raise ValueError(f"the first line lacks the columns {', '.join(missing)}")
            for row in reader:
                yield {str(k).strip().lower(): v for k, v in row.items() if k is not None}
        return
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".jsonl":
        entries: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        entries = json.loads(text)
    if isinstance(entries, dict):  # picture -> its boxes
        entries = [_spread(image, box) for image, boxes in entries.items() for box in _list(boxes)]
    for entry in _list(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"expected objects with {', '.join(COLUMNS)}, found {str(entry)[:40]}")
        yield {str(k).strip().lower(): v for k, v in entry.items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of boxes, found {str(value)[:40]}")
    return value


def _spread(image: str, box: Any) -> dict[str, Any]:
    """One entry of a picture's list: an object, or x, y, w, h."""
    if isinstance(box, dict):
        return {**box, "image": image}
    return {"image": image, **dict(zip(COLUMNS[1:], box if isinstance(box, list) else [box], strict=False))}


class BoxFile:
    """The boxes of a file by picture.

    Attributes:
        nameless: rows that name no picture.

    Raises:
        InputError: the file is not there or is no such file. A wrong row is no such error: it is counted on its
            picture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nameless = 0
        self._boxes: dict[str, list[_Row]] = {}
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"over {MAX_BYTES} bytes")
            for row in _rows(path):
                image = row.get("image")
                if not isinstance(image, str) or not image:
                    self.nameless += 1
                    continue
                listed = self._boxes.setdefault(_plain_name(image), [])
                listed.append(_parse(row, len(listed)))
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"--boxes {path}: expected CSV, JSON or JSON lines with {', '.join(COLUMNS)}: {reason}"
            ) from error

    def of(self, name: str, frame: int | None = None) -> list[Detection]:
        """Boxes of an input by its name below the input root; of one `frame` of a video. A row without a frame number
        belongs to frame 0."""
        return [box for at, box in self._boxes.get(name, ()) if frame is None or (at or 0) == frame]

    def digest(self, name: str) -> str:
        """Hash of the boxes of an input: another box is another result."""
        rows = [(at, d.box_xywh_px, d.score, d.error) for at, d in self._boxes.get(name, ())]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def unused(self, names: Iterable[str]) -> list[str]:
        """Pictures of the file that are not among `names`."""
        left = set(self._boxes)
        left.difference_update(names)
        return sorted(left)
