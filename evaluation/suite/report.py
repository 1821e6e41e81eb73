"""One HTML page that needs nothing else: tables, definitions, plots, pictures with the original first."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from evaluation.statistics import Finding, number_text
from evaluation.suite.tables import bar_text, parity_tables, tables
from pipeline.provenance import DISCLAIMER

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Strip:
    """Pictures of one face: name of each (original first, then the thumbnail, then the rows) and uint8 RGB."""

    source: str
    condition: str
    pictures: tuple[tuple[str, np.ndarray], ...]


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def _webp(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=85, lossless=len(image) < 64)
    return _uri(buffer.getvalue(), "webp")


def write_report(
    path: Path, title: str, header: dict[str, Any], findings: Sequence[Finding], order: Sequence[str],
    plots: Sequence[tuple[str, Path]], strips: Sequence[Strip], not_measured: dict[str, str],
) -> None:  # fmt: skip
    """Write the page.

    Args:
        header: circumstances, plain values. order: rows from top to bottom. plots: titles and SVG files.
        not_measured: what was left out -> why.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number_text
    bars = [f for f in findings if f.passed is not None]
    groups: dict[tuple[str, str], list[list[tuple[str, str]]]] = {}
    for strip in strips:
        shown = [(name, _webp(image)) for name, image in strip.pictures]
        groups.setdefault((strip.source, strip.condition), []).append(shown)
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, notice=DISCLAIMER, header=header, bars=[(f.passed, bar_text(f)) for f in bars],
        tables=list(tables(findings, order)), parity=list(parity_tables(findings, order)),
        plots=[(name, _uri(file.read_bytes(), "svg+xml")) for name, file in plots], strips=groups,
        not_measured=not_measured,
    )  # fmt: skip
    path.write_text(html, encoding="utf-8")
