"""What the plots are drawn from: risk and coverage, calibration, landmark errors, gains by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.statistics import Finding
from evaluation.suite.measures import BINS, COVERAGES
from evaluation.suite.numbers import Measured

GROUP_PLOTS = ("PSNR gain", "NME gain", "cosine to the original gain")


@dataclass(frozen=True)
class Curve:
    """One line of a plot; lines with the same `plot` are drawn together."""

    plot: str
    x_label: str
    y_label: str
    line: str
    x: np.ndarray
    y: np.ndarray
    log_x: bool = False
    ticks: tuple[str, ...] = ()  # names of the places on the x axis, where they are no numbers

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        names = ("plot", "x_label", "y_label", "line", "log_x", "ticks")
        return {n: getattr(self, n) for n in names} | {"x": self.x.tolist(), "y": self.y.tolist()}


def uncertainty_curves(measured: Measured) -> list[Curve]:
    """Risk over coverage, and true over expected error, of rows with an uncertainty."""
    curves = []
    for row, columns in measured.rows.items():
        if "risk_0" not in columns:
            continue
        coverage = np.arange(1, COVERAGES + 1) / COVERAGES
        plot = f"Risk and coverage, {measured.source}, {measured.condition}"
        risk = np.array([np.nanmean(columns[f"risk_{i}"]) for i in range(COVERAGES)])
        best = np.array([np.nanmean(columns[f"best_{i}"]) for i in range(COVERAGES)])
        axes = "share of pixels kept, surest first", "mean absolute error, grey levels"
        curves += [Curve(plot, *axes, row, coverage, risk), Curve(plot, *axes, f"{row}, best order", coverage, best)]
        count, error, expected = (
            np.array([columns[f"{k}_{b}"].sum() for b in range(BINS)]) for k in ("count", "error", "expected")
        )
        there = count > 0
        plot = f"Calibration of the uncertainty, {measured.source}, {measured.condition}"
        axes = "expected error, grey levels", "true error, grey levels"
        curves.append(Curve(plot, *axes, row, expected[there] / count[there], error[there] / count[there]))
    return curves


def alignment_curves(measured: Measured) -> list[Curve]:
    """Cumulative error curves of the landmarks."""
    plot = f"Landmark error, {measured.source}, {measured.condition}"
    axes = "NME, %", "share of faces at or below"
    curves = []
    for row, columns in measured.rows.items():
        if "nme" in columns:
            error = np.sort(columns["nme"])
            x = np.linspace(0, 12, 49)
            curves.append(Curve(plot, *axes, row, x, np.searchsorted(error, x, side="right") / len(error)))
    return curves


def group_curves(found: Sequence[Finding]) -> list[Curve]:
    """Gains of every group, one line a row; the tables have all other measures."""
    lines: dict[tuple[str, ...], list[Finding]] = {}
    for f in (f for f in found if f.metric in GROUP_PLOTS and f.group and ":" not in f.group):
        label = f.group.partition(" ")[0]
        lines.setdefault((label, f.metric, f.section, f.subset, f.condition, f.row), []).append(f)
    curves = []
    for (label, metric, section, subset, condition, row), part in lines.items():
        plot = f"{metric} by {label}, {subset}, {condition}, {section}"
        names = tuple(f.group.partition(" ")[2] for f in part)
        values = np.array([f.estimate.value for f in part])
        curves.append(Curve(plot, label, metric, row, np.arange(len(values)), values, ticks=names))
    return curves
