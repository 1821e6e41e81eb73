"""`report.html`: the pictures of a run, original first and at the same size; needs no network, now or in ten years.

A run of up to `PAGE_ITEMS` inputs is one page with the very files in it. A larger one is a page per `PAGE_ITEMS` inputs
of one status, so that choosing a status is choosing pages, with previews that link to the files. Time and size grow
with the inputs (2.3 ms of one core and 12 kB each), memory and the time to open a page do not.
"""

import base64
import io
import multiprocessing
import os
import signal
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from pipeline.images import VIDEO_ENDINGS, ImageError, Limits, as_unit, encode_png, read_bytes, read_picture, to_uint8
from pipeline.journal import Journal
from pipeline.output import OutputFolder
from pipeline.planning import Plan, Task, record_target
from pipeline.pool import watch
from pipeline.provenance import STRIP, notice, yardstick

PAGE_ITEMS = 200  # 2.5 MB of previews, or at most 10 MB of the files themselves
LARGEST_PX = 256  # longer side of a picture on a page; what is larger is shown smaller, and linked
JPEG_QUALITY = 92  # of previews: 3 kB for 128x128, and no difference to be seen from the file
THREADS = 2  # of a process; reading and drawing overlap
PAGES_PER_PROCESS = 4  # fewer than this do not repay another process
# What wants attention comes first; a status that is not named here comes before `ok`.
ORDER = ("review", "failed", "corrupt", "unsupported", "no_face")
MIXED = "all"  # the status of a page that holds every status
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass
class Page:
    """One page: its items are those of `status`, `count` of them, from input `first` to input `last`."""

    status: str
    first: str
    last: str = ""
    count: int = 0
    number: int = 1

    @property
    def path(self) -> str:
        """Where it lies, relative to `_run/`."""
        return "report.html" if self.number == 1 else f"report/page_{self.number:05d}.html"

    def link_to(self, path: str) -> str:
        """How this page names a file that is given relative to `_run/`."""
        return path if self.number == 1 else f"../{path}"


def _data_uri(data: bytes | None, kind: str = "png") -> Markup | None:
    return None if data is None else Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _shown(png: bytes | None, exact: bool) -> Markup | None:
    """A written picture for a page: the file itself where `exact` and small enough, else a JPEG preview."""
    if png is None:
        return None
    try:
        image = Image.open(io.BytesIO(png), formats=("PNG",))
        if exact and max(image.size) <= LARGEST_PX:
            return _data_uri(png)
        image.thumbnail((LARGEST_PX, LARGEST_PX))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    except (OSError, SyntaxError, ValueError):  # changed since it was written; `verify` will say so
        return None
    return _data_uri(buffer.getvalue(), "jpeg")


def _original(task: Task, record: dict[str, Any], output: OutputFolder, limits: Limits) -> bytes | None:
    """The input, or the face that was cut out of it, as a small PNG without loss; None where it cannot be read."""
    if record.get("face") is not None:
        return output.read(f"thumbnails/{record_target(record)}.png")
    if os.path.splitext(task.source)[1].lower() in VIDEO_ENDINGS:
        return None
    try:
        pixels = to_uint8(as_unit(read_picture(read_bytes(task.source, limits), task.source, limits).pixels))
    except ImageError:
        return None
    if max(pixels.shape[:2]) > LARGEST_PX:
        small = Image.fromarray(pixels)
        small.thumbnail((LARGEST_PX, LARGEST_PX))
        pixels = np.asarray(small)
    return encode_png(pixels)


def _printable(text: str) -> str:
    """A name with bytes that are no Unicode shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _label(record: dict[str, Any]) -> str:
    face = record.get("face")
    return _printable(record["input"]) + ("" if face is None else f", face {face}")


def _item(
    task: Task, record: dict[str, Any], output: OutputFolder, limits: Limits, page: Page, exact: bool
) -> dict[str, Any]:
    path, side = record.get("output"), record.get("side_px")
    files = record.get("files_sha256", {})
    rest = path.partition("/")[2] if path else ""
    maps = {
        kind: _shown(output.read(f"{kind}/{rest}"), exact) for kind in ("uncertainty", "occlusion") if kind in files
    }
    return {
        "name": _label(record),
        "status": record["status"],
        "original": None if task.refused else _data_uri(_original(task, record, output, limits)),
        "restored": _shown(output.read(path), exact) if path else None,
        "maps": maps,
        "link": page.link_to(quote(os.fsencode("../" + path))) if path else None,
        **{
            k: record.get(k)
            for k in ("verdict", "reason", "error", "occluded_fraction", "lr_consistency_db", "face_score")
        },
        "side_px": side,
        "yardstick": None if side is None else yardstick(side),
        "sha256": record.get("input_sha256"),
        "dropped": dict(Counter(drop["reason"] for drop in record.get("dropped") or ())),
    }


def _records(plan: Plan, journal: Journal) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Every record of the plan, in its order. An input in which faces were found gives way to its faces, unless it has
    something of its own to show: the picture with its faces put back, an error, faces that were dropped."""
    for task in plan:
        if (record := journal.find(task.name)) is not None:
            faces = [face for face in journal.faces(record) if face is not None]
            if not faces or record.get("output") or record.get("error") or record.get("dropped"):
                yield task, record
            yield from ((task, face) for face in faces)


def _pages(statuses: Iterator[tuple[str, str]]) -> tuple[list[Page], Counter[str]]:
    """The pages for items given as (name, status), in their order, and how many items have each status."""
    counts: Counter[str] = Counter()
    by_status: dict[str, list[Page]] = {}
    everything: list[Page] = []
    for name, status in statuses:
        counts[status] += 1
        for pages, label in ((by_status.setdefault(status, []), status), (everything, MIXED)):
            if not pages or (pages[-1].count == PAGE_ITEMS and label != MIXED):
                pages.append(Page(label, name))
            pages[-1].count += 1
            pages[-1].last = name
    if not everything or everything[0].count <= PAGE_ITEMS:
        return everything or [Page(MIXED, "")], counts
    order = [s for s in ORDER if s in by_status] + sorted(by_status.keys() - {*ORDER, "ok"}) + ["ok"]
    ordered = [page for status in order for page in by_status.get(status, [])]
    for number, page in enumerate(ordered, 1):
        page.number = number
    return ordered, counts


Pair = tuple[Task, dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """What every page of a report is drawn from.

    Attributes: run: its record. pages: all of them. counts: items by status.
    """

    output: OutputFolder
    run: dict[str, Any]
    limits: Limits
    pages: Sequence[Page]
    counts: Counter[str]

    @cached_property
    def _first(self) -> dict[str, Page]:
        """The first page of each status."""
        return {page.status: page for page in reversed(self.pages)}

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))

    def page(self, number: int, pairs: Sequence[Pair]) -> bytes:
        """HTML of the page `number` (from 1), whose items are `pairs`."""
        run, page, exact = self.run, self.pages[number - 1], len(self.pages) == 1
        with ThreadPoolExecutor(THREADS, "report") as pool:
            waiting = [pool.submit(_item, *pair, self.output, self.limits, page, exact) for pair in pairs]
            items = [future.result() for future in waiting]
        html = self._template.render(
            run=run, items=items, notice=notice(run["generative"]),
            strip=STRIP if run["generative"] and run["marking"]["strip"] != "none" else None,
            page=page, pages=self.pages, exact=exact, first=self._first, counts=dict(sorted(self.counts.items())),
        )  # fmt: skip
        return html.encode()


_drawing: Drawing | None = None  # of a process that draws pages and nothing else


def _adopt(drawing: Drawing, parent: int, let_go: Callable[[], None]) -> None:
    global _drawing
    _drawing = drawing
    let_go()
    watch(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drawn(number: int, pairs: Sequence[Pair]) -> bytes:
    assert _drawing is not None
    return _drawing.page(number, pairs)


def _filled(pages: Sequence[Page], records: Iterator[Pair]) -> Iterator[tuple[int, list[Pair]]]:
    """Number and items of every page, each as soon as its last item is there."""
    to_fill: dict[str, deque[Page]] = {}
    for page in pages:
        to_fill.setdefault(page.status, deque()).append(page)
    waiting: dict[str, list[Pair]] = {status: [] for status in to_fill}
    for pair in records:
        status = MIXED if MIXED in to_fill else pair[1]["status"]
        waiting[status].append(pair)
        if len(waiting[status]) == to_fill[status][0].count:
            yield to_fill[status].popleft().number, waiting[status]
            waiting[status] = []
    for left in to_fill.values():
        yield from ((page.number, []) for page in left)  # the one page of a run without any item


def _pages_drawn(
    drawing: Drawing, filled: Iterator[tuple[int, list[Pair]]], processes: int, let_go: Callable[[], None]
) -> Iterator[tuple[int, bytes]]:
    """Number and HTML of every page, drawn here or by so many copies of this process, which `let_go` first."""
    if processes < 2:
        yield from ((number, drawing.page(number, pairs)) for number, pairs in filled)
        return
    forked = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, forked, initializer=_adopt, initargs=(drawing, os.getpid(), let_go)) as pool:
        waiting: deque[tuple[int, Future[bytes]]] = deque()
        for number, pairs in filled:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # as in `pipeline.pool`
                waiting.append((number, pool.submit(_drawn, number, pairs)))
            if len(waiting) > 2 * processes:  # enough to keep them busy, and not all pages at once
                done, future = waiting.popleft()
                yield done, future.result()
        yield from ((number, future.result()) for number, future in waiting)


def write_report(
    output: OutputFolder,
    plan: Plan,
    journal: Journal,
    run: dict[str, Any],
    max_pixels: int,
    processes: int = 1,
    let_go: Callable[[], None] = lambda: None,
) -> Path:
    """Draw the report of a finished run from its journal. Returns the path of the first page.

    Args:
        processes: how many may draw pages at a time; above 1 they are copies of this process (Linux, no CUDA, and an
            output and inputs on this machine).
        let_go: called in each copy, to close what this process must be alone to hold.
    """
    pages, counts = _pages((_label(record), record["status"]) for _, record in _records(plan, journal))
    drawing = Drawing(output, run, Limits(max_pixels), pages, counts)
    filled = _filled(pages, _records(plan, journal))
    for number, html in _pages_drawn(drawing, filled, min(processes, len(pages) // PAGES_PER_PROCESS), let_go):
        output.write(f"_run/{pages[number - 1].path}", html)
    kept = {page.path for page in pages}
    for old in output.path("_run/report").glob("page_*.html"):
        if f"report/{old.name}" not in kept:
            old.unlink()
    return output.path("_run/report.html")
