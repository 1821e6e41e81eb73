"""Curves -> PNG and SVG by matplotlib (extra `evaluate`)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.suite.curves import Curve

# Okabe and Ito's colours, told apart by colour-blind eyes too; restored rows are drawn thicker.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999", "#8B4513")


def why_no_plots() -> str | None:
    """Why nothing can be drawn on this machine, None where it can."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        return f"{error}; install the extra evaluate"
    return None


def file_stem(plot: str) -> str:
    """A file name for a plot's title."""
    return re.sub(r"[^a-z0-9]+", "-", plot.lower()).strip("-")[:150]


def draw(curves: Sequence[Curve], folder: Path) -> list[tuple[str, Path]]:
    """Write each plot as `folder/<title>.png` and `.svg`; returns titles and SVG files in order."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    matplotlib.rcParams["svg.hashsalt"] = "revisage"  # equal curves give equal files
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for plot in dict.fromkeys(c.plot for c in curves):
        lines = [c for c in curves if c.plot == plot]
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        for colour, curve in zip(COLOURS * (1 + len(lines) // len(COLOURS)), lines, strict=False):
            thick = 2.2 if curve.line.startswith("restored") else 1.2
            x = np.maximum(curve.x, 1e-4) if curve.log_x else curve.x
            axes.plot(x, curve.y, label=curve.line, color=colour, linewidth=thick, marker="." if len(x) <= 12 else None)
        axes.set_xlabel(lines[0].x_label)
        axes.set_ylabel(lines[0].y_label)
        axes.set_title(plot, fontsize=8, wrap=True)
        axes.grid(alpha=0.3)
        if lines[0].ticks:
            axes.set_xticks(range(len(lines[0].ticks)), lines[0].ticks, rotation=30, ha="right")
        if lines[0].log_x:
            axes.set_xscale("log")
        axes.legend(fontsize=7)
        stem = folder / file_stem(plot)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for each file
        figure.savefig(stem.with_name(stem.name + ".png"), dpi=110, metadata={"Software": None})
        figure.savefig(stem.with_name(stem.name + ".svg"), metadata={"Date": None, "Creator": None})
        made.append((plot, stem.with_name(stem.name + ".svg")))
    return made
