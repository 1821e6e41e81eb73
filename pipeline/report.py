"""`report.html`: the pictures of a run, original first and at the same size; needs no network, now or in ten years."""

import base64
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from pipeline.images import ImageError, Limits, as_unit, encode_png, read_bytes, read_picture, to_uint8
from pipeline.journal import Journal
from pipeline.output import OutputFolder
from pipeline.planning import Plan, Task
from pipeline.provenance import notice

PAGE_ITEMS = 200  # pictures of 200 faces are about 8 MB of HTML
MOST_ITEMS = 1000  # of a larger run the report shows a part and says so; the journal has all
ORIGINAL_LIMIT_PX = 256  # an original larger than this is shown smaller; the file itself is named beside it
TEMPLATE = Path(__file__).with_name("report.html.j2")


def _data_uri(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()


def _original(task: Task, limits: Limits) -> bytes | None:
    """The input as a small PNG, as the chain saw it; None where it cannot be read."""
    try:
        pixels = to_uint8(as_unit(read_picture(read_bytes(task.source, limits), task.source, limits).pixels))
    except ImageError:
        return None
    if max(pixels.shape[:2]) > ORIGINAL_LIMIT_PX:
        small = Image.fromarray(pixels)
        small.thumbnail((ORIGINAL_LIMIT_PX, ORIGINAL_LIMIT_PX))
        pixels = np.asarray(small)
    return encode_png(pixels)


def _printable(text: str) -> str:
    """A name with bytes that are no Unicode shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _item(task: Task, record: dict[str, Any], output: OutputFolder, limits: Limits) -> dict[str, Any]:
    path = record.get("output")
    files = record.get("files_sha256", {})
    rest = path.partition("/")[2] if path else ""
    maps = {kind: _data_uri(output.read(f"{kind}/{rest}")) for kind in ("uncertainty", "occlusion") if kind in files}
    return {
        "name": _printable(task.name),
        "status": record["status"],
        "original": _data_uri(_original(task, limits))
        if record["status"] not in ("corrupt", "unsupported", "failed")
        else None,
        "restored": _data_uri(output.read(path)) if path else None,
        "maps": maps,
        "link": quote(os.fsencode("../" + path)) if path else None,
        **{
            k: record.get(k)
            for k in ("verdict", "reason", "error", "occluded_fraction", "lr_consistency_db", "face_score")
        },
        "sha256": record.get("input_sha256"),
    }


def _chosen(plan: Plan, journal: Journal, counts: dict[str, int]) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Up to MOST_ITEMS tasks with records, in plan order; of a larger run, half the room is kept for what is not ok."""
    not_ok = sum(count for status, count in counts.items() if status != "ok")
    room = {False: min(not_ok, max(MOST_ITEMS // 2, MOST_ITEMS - counts.get("ok", 0)))}
    room[True] = MOST_ITEMS - room[False]
    for task in plan:
        if not any(room.values()):
            return
        record = journal.find(task.name)
        if record is not None and room[record["status"] == "ok"] > 0:
            room[record["status"] == "ok"] -= 1
            yield task, record


def page_name(number: int) -> str:
    """File name of page 1, 2, ..."""
    return "report.html" if number == 1 else f"report_{number:04d}.html"


def write_report(output: OutputFolder, plan: Plan, journal: Journal, run: dict[str, Any], max_pixels: int) -> Path:
    """Draw the report of a finished run from its journal; pages of PAGE_ITEMS. Returns the path of the first page."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    limits = Limits(max_pixels)
    shown = min(sum(run["counts"].values()), MOST_ITEMS)
    pages = max(1, math.ceil(shown / PAGE_ITEMS))
    for old in output.path("_run").glob("report_*.html"):
        old.unlink()
    chosen = _chosen(plan, journal, run["counts"])
    for number in range(1, pages + 1):
        items = (_item(task, record, output, limits) for task, record in itertools.islice(chosen, PAGE_ITEMS))
        html = template.render(
            run=run, items=items, notice=notice(run["generative"]), number=number, pages=pages, page_name=page_name,
            shown=shown, statuses=sorted(run["counts"]),
        )  # fmt: skip
        output.write(f"_run/{page_name(number)}", html.encode())
    return output.path("_run/report.html")
