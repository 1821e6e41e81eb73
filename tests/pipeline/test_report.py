"""The report: original first, every input on some page, nothing from outside; opened in a browser where one is."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.endurance import BROWSERS
from pipeline.engine import Request, run
from pipeline.images import MAX_PIXELS
from pipeline.journal import Journal
from pipeline.output import OutputFolder, OutputLock
from pipeline.planning import InputSet, Plan
from pipeline.report import MIXED, Drawing, Pair, _pages, write_report
from tests.pipeline.conftest import RESAMPLE, colour, png, shipped_chain

BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
MARK = re.compile(r'<section class="item (\w+)">')
NAME = re.compile(r'<div class="facts"><b>([^<]*)</b>')


def in_browser(page: Path, *arguments: str) -> str:
    """What headless Chromium makes of a page: its DOM, and in the same breath its console."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
             "--disable-dev-shm-usage", "--virtual-time-budget=5000", "--enable-logging=stderr",
             "--host-resolver-rules=MAP * ~NOTFOUND", *arguments, page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "Content Security Policy" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def paged(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[Path]]:
    """A run of 42 inputs, two of them broken, on pages of ten; its `_run` folder and its pages."""
    monkeypatch.setattr("pipeline.report.PAGE_ITEMS", 10)
    (folder / "zz1.png").write_bytes(b"")
    (folder / "zz2.png").write_bytes(b"no picture")
    restore(folder, tmp_path / "out", workers=1)
    run = tmp_path / "out" / "_run"
    return run, [run / "report.html", *sorted((run / "report").glob("*.html"))]


def test_a_small_run_is_one_page_with_the_very_files_and_the_original_first(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    (folder / "<script>alert(1)<&.png").write_bytes(png(colour(5)))
    restore(folder, tmp_path / "out", workers=1)
    html = (tmp_path / "out" / "_run" / "report.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;" in html
    assert "http://" not in html and "https://" not in html
    assert html.index("<figcaption>original") < html.index("<figcaption>result")
    assert html.count("data:image/png;base64,") == 2 * 41 and "image/jpeg" not in html
    assert not (tmp_path / "out" / "_run" / "report").exists()


def test_a_large_run_has_pages_of_one_status_each_and_leaves_nothing_out(paged: tuple[Path, list[Path]]) -> None:
    run, pages = paged
    assert len(pages) == 5
    texts = [page.read_text() for page in pages]
    assert [set(MARK.findall(text)) for text in texts] == [{"corrupt"}] + [{"ok"}] * 4
    names = [name for text in texts for name in NAME.findall(text)]
    assert len(names) == len(set(names)) == 42 and names[:2] == ["zz1.png", "zz2.png"]
    assert "image/jpeg" in texts[1] and "are previews" in texts[1]


def test_every_link_of_every_page_leads_somewhere(paged: tuple[Path, list[Path]]) -> None:
    for page in paged[1]:
        links = re.findall(r'href="([^"]+)"', page.read_text())
        assert len(links) > 5
        for link in links:
            assert (page.parent / link).resolve().is_file(), (page.name, link)


def test_pages_drawn_by_other_processes_are_the_same(
    paged: tuple[Path, list[Path]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pages = paged
    before, drawers = [page.read_bytes() for page in pages], tmp_path / "drawers"
    drawn_by_one = Drawing.page

    def page_of(drawing: Drawing, number: int, pairs: Sequence[Pair]) -> bytes:
        with drawers.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return drawn_by_one(drawing, number, pairs)

    monkeypatch.setattr("pipeline.report.PAGES_PER_PROCESS", 2)
    monkeypatch.setattr(Drawing, "page", page_of)
    plan, record = Plan(InputSet((str(folder),), run.parent)), json.loads((run / "run.json").read_text())
    with Journal(run / "journal.jsonl") as journal:
        write_report(OutputFolder(run.parent), plan, journal, record, MAX_PIXELS, processes=8)
    assert [page.read_bytes() for page in pages] == before
    ids = drawers.read_text().split()
    assert len(ids) == len(pages) and 1 <= len(set(ids)) <= 2 and str(os.getpid()) not in ids


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_killed_while_its_report_is_drawn_leaves_neither_lock_nor_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, drawers = tmp_path / "out", tmp_path / "drawers"

    def page_of(drawing: Drawing, number: int, pairs: Sequence[Pair]) -> bytes:
        with drawers.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)
        return b""

    monkeypatch.setattr("pipeline.report.PAGE_ITEMS", 10)
    monkeypatch.setattr("pipeline.report.PAGES_PER_PROCESS", 2)
    monkeypatch.setattr(Drawing, "page", page_of)
    request = Request((str(folder),), out, RESAMPLE, workers=2)
    process = multiprocessing.get_context("fork").Process(target=run, args=(request,))
    process.start()
    while process.is_alive() and not (drawers.exists() and len(drawers.read_text().split()) == 2):
        time.sleep(0.01)
    process.kill()
    process.join()
    OutputLock(out / "_run" / "lock").release()
    ids, until = [int(text) for text in drawers.read_text().split()], time.monotonic() + 20
    while any(map(alive, ids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(ids) == 2 and not any(map(alive, ids))


def test_pages_of_an_earlier_larger_run_are_removed(
    paged: tuple[Path, list[Path]], folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    restore(folder / "face00.png", tmp_path / "out", workers=1)
    assert not list((paged[0] / "report").glob("*.html"))


def test_a_generated_picture_carries_the_strip_and_a_plain_one_does_not(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    from pipeline.provenance import STRIP

    restore(folder / "face00.png", tmp_path / "plain", workers=1)
    assert STRIP not in (tmp_path / "plain" / "_run" / "report.html").read_text()
    if (chain := shipped_chain()) is None:
        pytest.skip("the shipped weights are not here")
    restore(folder / "face00.png", tmp_path / "made", chain, workers=1)
    assert f'<div class="strip">{STRIP}</div>' in (tmp_path / "made" / "_run" / "report.html").read_text()


def test_the_first_pages_of_a_million_inputs_are_planned_in_order_of_attention() -> None:
    statuses = ((f"{i:07d}.png", "failed" if i % 1000 == 0 else "ok") for i in range(1_000_000))
    pages, counts = _pages(statuses)
    assert counts == {"failed": 1000, "ok": 999_000}
    assert [p.number for p in pages] == list(range(1, len(pages) + 1))
    assert [p.status for p in pages].index("ok") == 5 and sum(p.count for p in pages) == 1_000_000
    assert pages[0].first == "0000000.png" and pages[-1].last == "0999999.png"
    assert [p.status for p in _pages(iter([("a", "ok"), ("b", "failed")]))[0]] == [MIXED]


def test_a_browser_opens_a_full_page_within_five_seconds_and_sees_every_picture(
    tmp_path: Path, restore: Callable[..., int]
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for i in range(250):
        (many / f"{i:03d}.png").write_bytes(png(colour(i)))
    restore(many, tmp_path / "out", {"version": 1, "name": "x", "stages": [{"stage": "resample", "size": 128}]})
    page = tmp_path / "out" / "_run" / "report.html"
    (tmp_path / "empty.html").write_text("<!doctype html>")
    took = {}
    for target in (tmp_path / "empty.html", page):
        started, busy = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        dom = in_browser(target, "--dump-dom")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - busy.ru_utime - busy.ru_stime
        took[target] = np.array([time.monotonic() - started, spent])
    # Beyond the browser's own start; on a machine that does something else as well, its share of the processor counts.
    assert (took[page] - took[tmp_path / "empty.html"]).min() < 5
    assert dom.count("<section") == 200 and dom.count("<img") == 400


@pytest.mark.parametrize("shown", [True, False])
def test_a_browser_hides_a_status_that_is_not_ticked_and_decodes_the_pictures(
    tmp_path: Path, restore: Callable[..., int], shown: bool
) -> None:
    made = tmp_path / "in"
    made.mkdir()
    red = np.zeros((16, 16, 3), np.uint8)
    red[...] = (250, 10, 10)
    (made / "red.png").write_bytes(png(red))
    (made / "bad.png").write_bytes(b"")
    restore(made, tmp_path / "out", workers=1)
    page = tmp_path / "out" / "_run" / "report.html"
    if not shown:
        page.write_text(page.read_text().replace('id="show-ok" checked', 'id="show-ok"'))
    picture = tmp_path / "shot.png"
    in_browser(page, f"--screenshot={picture}", "--window-size=1200,900")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3).astype(int)
    count = int((np.abs(pixels - (250, 10, 10)).max(1) < 12).sum())
    assert count == (2 * 128 * 128 if shown else 0), "original and result, 128x128 each"


def test_the_report_prints_with_its_notice_on_every_sheet(tmp_path: Path, restore: Callable[..., int]) -> None:
    made = tmp_path / "in"
    made.mkdir()
    for i in range(30):
        (made / f"{i}.png").write_bytes(png(colour(i)))
    restore(made, tmp_path / "out", workers=1)
    sheet = tmp_path / "report.pdf"
    in_browser(tmp_path / "out" / "_run" / "report.html", f"--print-to-pdf={sheet}", "--no-pdf-header-footer")
    data: Any = sheet.read_bytes()
    assert data.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 8
