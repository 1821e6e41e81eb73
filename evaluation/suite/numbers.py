"""Columns of single faces -> numbers with intervals: for all faces, and for every group of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from evaluation.faces import EvaluationFace
from evaluation.recognition import share_closed
from evaluation.statistics import Direction, Estimate, Finding, bootstrap, bootstrap_groups, quantile
from evaluation.suite.config import ParityOptions
from evaluation.suite.measures import Columns, Quantity
from evaluation.suite.rows import BICUBIC, ORIGINAL

MIN_GROUP = 10  # faces; smaller groups are shown, but one face would decide the gap
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Measured:
    """The columns of one family, one source and one condition, for every row.

    Attributes:
        section: heading. quantities: what is made of the columns. rows: row -> columns of all faces.
        clusters: (N,) the person of each face. weights: row -> card that the row's numbers judge.
        rivals: rows that the restorer is held against, as it is against bicubic.
    """

    section: str
    source: str
    condition: str
    quantities: Sequence[Quantity]
    rows: Mapping[str, Columns]
    clusters: np.ndarray
    weights: Mapping[str, str]
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Variant:
    """A quantity as one number: as it is, as the gain over bicubic, or as a share of bicubic's.

    `mean_of`: (m, k) column means -> (m,), the first column when None. `quantile`, `of_faces`: instead of the mean.
    """

    quantity: Quantity
    name: str
    definition: str
    kind: Literal["value", "gain", "ratio", "closed"]
    unit: str
    mean_of: Callable[[np.ndarray], np.ndarray] | None = None
    quantile: float | None = None
    of_faces: Callable[[np.ndarray], float] | None = None

    def table(self, rows: Mapping[str, Columns], row: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) values of the faces that have all of them, and (N,) which faces those are."""
        names = self.quantity.columns
        if self.kind == "value":
            table = np.column_stack([rows[row][name] for name in names]).astype(np.float64)
        else:
            beside = (row, BICUBIC, ORIGINAL) if self.kind == "closed" else (row, BICUBIC)
            table = np.stack([rows[r][names[0]] for r in beside], axis=1).astype(np.float64)
            table = table[:, :1] - table[:, 1:] if self.kind == "gain" else table
        known = np.isfinite(table).all(axis=1)
        return table[known], np.asarray(known)

    def statistic(self, table: np.ndarray) -> float:
        """One number of (n, k) values."""
        if self.quantile is not None:
            return float(np.quantile(table[:, 0], self.quantile))
        means = table.mean(0, keepdims=True)
        return float((means[:, 0] if self.mean_of is None else self.mean_of(means))[0])

    def estimate(self, table: np.ndarray, clusters: np.ndarray) -> Estimate:
        """The same with its interval."""
        if self.of_faces is not None:
            return bootstrap_groups(self.of_faces, table, clusters=[clusters], resamples=50)
        return (
            quantile(table[:, 0], self.quantile, clusters)
            if self.quantile is not None
            else bootstrap(table, self.mean_of, clusters)
        )


def _variants(measured: Measured) -> list[_Variant]:
    made = []
    for q in measured.quantities:
        made.append(_Variant(q, q.name, q.definition, "value", q.unit, q.statistic, q.quantile, q.of_faces))
        if q.gain and BICUBIC in measured.rows:
            made.append(
                _Variant(q, f"{q.name} gain", f"row - bicubic, face by face, mean; {q.definition}", "gain", q.unit)
            )
        if q.ratio and BICUBIC in measured.rows:
            words = f"mean of the row over the mean of bicubic; {q.definition}"
            made.append(_Variant(q, f"{q.name} over bicubic's", words, "ratio", "", lambda m: m[:, 0] / m[:, 1]))
        if q.closed and BICUBIC in measured.rows:
            words = f"(row - bicubic) / (original - bicubic), means of the same faces; {q.definition}"
            made.append(_Variant(q, f"{q.name}, share of loss closed", words, "closed", "", _closed))
    return made


def _closed(means: np.ndarray) -> np.ndarray:
    return share_closed(means[:, 2], means[:, 1], means[:, 0])


def _rows(measured: Measured) -> Iterator[tuple[_Variant, str, np.ndarray, np.ndarray]]:
    """Every variant and row that has it: variant, row, (n, k) values, (N,) which faces they are of."""
    for variant in _variants(measured):
        for row, columns in measured.rows.items():
            there = all(name in columns for name in variant.quantity.columns)
            if there and (variant.kind == "value" or row not in (BICUBIC, ORIGINAL)):
                table, known = variant.table(measured.rows, row)
                if len(table):
                    yield variant, row, table, known


def numbers(measured: Measured) -> list[Finding]:
    """Every quantity of every row over all faces."""
    return [
        _finding(measured, variant, row, variant.estimate(table, measured.clusters[known]))
        for variant, row, table, known in _rows(measured)
    ]


def leads(measured: Measured) -> list[Finding]:
    """Every row of ours less the best of its rivals and bicubic, face by face; the best by the mean over all faces.

    Nothing where the evaluation names no rivals.
    """
    if not measured.rivals:
        return []
    theirs, found = [row for row in (BICUBIC, *measured.rivals) if row in measured.rows], []
    ours = [row for row in measured.rows if measured.weights.get(row) and row not in (ORIGINAL, *theirs)]
    for quantity in (q for q in measured.quantities if q.gain):
        name = quantity.columns[0]
        against = [row for row in theirs if name in measured.rows[row]]
        for row in (r for r in ours if name in measured.rows[r]):
            table = np.stack([measured.rows[r][name] for r in (row, *against)], axis=1).astype(np.float64)
            known = np.isfinite(table).all(axis=1)
            table = table[known]
            if not len(table) or not against:
                continue
            means = table[:, 1:].mean(0)
            best = int(means.argmax() if quantity.direction == "up" else means.argmin())
            words = f"row - the best of bicubic and the rivals ({against[best]}), face by face, mean"
            variant = _Variant(
                quantity, f"{quantity.name} lead", f"{words}; {quantity.definition}", "gain", quantity.unit
            )
            estimate = bootstrap(table[:, 0] - table[:, 1 + best], clusters=measured.clusters[known])
            found.append(_finding(measured, variant, row, estimate))
    return found


def _finding(
    measured: Measured, variant: _Variant, row: str, estimate: Estimate, group: str = "", definition: str = "",
    direction: Direction | None = None,
) -> Finding:  # fmt: skip
    return Finding(
        measured.section, measured.source, variant.name, definition or variant.definition, estimate,
        direction or variant.quantity.direction, variant.unit, condition=measured.condition, row=row, group=group,
        version=variant.quantity.version, weights=measured.weights[row],
    )  # fmt: skip


# --- parity ----------------------------------------------------------------------------------------------------------


def groups(faces: Sequence[EvaluationFace], options: ParityOptions) -> dict[str, np.ndarray]:
    """Label -> (N,) name of each face's group; a label that no face has is left out; a face without: `not given`."""
    bands = [0, *options.age_bands]
    ages = [f"{low}-{high - 1}" for low, high in zip(bands, bands[1:], strict=False)] + [f"{bands[-1]}+"]

    def band(age: Any) -> str:
        return ages[int(np.searchsorted(bands, age, side="right")) - 1]

    made: dict[str, np.ndarray] = {}
    if any("age" in f.labels for f in faces):
        made["age"] = np.array([band(f.labels["age"]) if "age" in f.labels else NOT_GIVEN for f in faces])
    for label, names in options.labels.items():
        if any(label in f.labels for f in faces):
            values = [str(f.labels.get(label, NOT_GIVEN)) for f in faces]
            made[label] = np.array([names.get(v, v) for v in values])
    return made


def parity(measured: Measured, members: Mapping[str, np.ndarray]) -> list[Finding]:
    """Every quantity of every row for every group, and the largest gap between groups of ten faces or more.

    For gains also the lowest such group's share of the mean gain over all faces. Nothing of what sheets mix.
    """
    found = []
    for variant, row, table, known in _rows(measured):
        if variant.of_faces is not None or variant.quantity.sheets:
            continue
        for label, names in members.items():
            mine, clusters = names[known], measured.clusters[known]
            parts = {group: (table[mine == group], clusters[mine == group]) for group in ordered(names)}
            found += [
                _finding(measured, variant, row, variant.estimate(*part), f"{label} {group}")
                for group, part in parts.items()
            ]
            found += _gaps(measured, variant, row, label, [part for part in parts.values() if len(part[0])])
    return found


def ordered(names: np.ndarray) -> list[str]:
    """Group names, age bands by their first year."""
    return sorted(set(names.tolist()), key=lambda n: (int(n.rstrip("+").split("-")[0]) if n[0].isdigit() else 999, n))


def _gaps(
    measured: Measured, variant: _Variant, row: str, label: str, parts: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Iterator[Finding]:
    """Of groups, each with its (n, k) values and the (n,) people they are of."""
    large = [part for part in parts if len(part[0]) >= MIN_GROUP]
    if len(large) < 2:
        return
    small = [part for part in parts if len(part[0]) < MIN_GROUP]

    def estimate(statistic: Callable[..., float], chosen: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
        return bootstrap_groups(statistic, *(v for v, _ in chosen), clusters=[people for _, people in chosen])

    sign = -1 if variant.quantity.direction == "down" else 1

    def gap(*samples: np.ndarray) -> float:
        values = [variant.statistic(s) for s in samples]
        return max(values) - min(values)

    def lowest(*samples: np.ndarray) -> float:
        mean = sign * variant.statistic(np.concatenate(samples))
        return min(sign * variant.statistic(s) for s in samples[: len(large)]) / mean if mean > 0 else float("nan")

    what = f"over groups of {MIN_GROUP} faces or more; groups are drawn apart, which widens it a little by chance"
    definition = f"largest less smallest value of {variant.name} {what}"
    yield _finding(measured, variant, row, estimate(gap, large), f"{label}: largest gap", definition, "down")
    if variant.kind == "gain":
        definition = f"lowest group's {variant.name} over the mean of all faces; lowest {what}"
        share = _finding(
            measured, replace(variant, unit=""), row, estimate(lowest, [*large, *small]), f"{label}: lowest over mean",
            definition, "up",
        )  # fmt: skip
        yield replace(share, version=variant.quantity.version + 1)  # before, it was over the mean of the groups
