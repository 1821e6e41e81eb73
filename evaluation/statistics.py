"""Numbers that say how sure they are: seeded bootstrap intervals, findings held against a bar, and their tables.

Every number of the suite is a `Finding`: a value with its count, interval, definition and, where one is set, the bar it
must reach. Tables are JSON (for programs) and Markdown (for people), made from the same list.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

RESAMPLES = 1000  # the ends of a 95 % interval have a standard error of about 2 % of its width
LEVEL = 0.95
_CHUNK = 64  # resamples drawn at once: keeps the memory of large samples small

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval [low, high] and the number of observations behind it; NaN where there are none."""

    value: float
    low: float
    high: float
    n: int


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """Ends of the percentile interval of (m,) resampled values; those that are no number are left out."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """(resamples, k) weighted means of clusters drawn with replacement; sums (G, k), counts (G,)."""
    rng, means = np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, len(counts), (rows, len(counts)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1)[:, None])
    return np.concatenate(means)


def bootstrap(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    clusters: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Percentile bootstrap of a function of means.

    Args:
        columns: (n,) or (n, k) observations; the k columns of a row belong together (paired) and are drawn together.
        statistic: takes (m, k) means to (m,) values, e.g. `lambda m: m[:, 1] - m[:, 0]`; the first mean when None.
        clusters: n labels; rows of one label (say, one person) are drawn together, since they are not independent.
        seed: of the resampling; the same input gives the same interval.

    Returns:
        The statistic of the plain means, its 2.5 % and 97.5 % points over resamples, and n.

    Method: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    """
    table = np.asarray(columns, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    of_means = statistic or (lambda means: means[:, 0])
    if len(table) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if clusters is None:
        sums, counts = table, np.ones(len(table))
    else:
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        counts = np.bincount(member).astype(np.float64)
        sums = np.stack([np.bincount(member, column) for column in table.T], axis=1)
    value = float(of_means(table.mean(0, keepdims=True))[0])
    low, high = _interval(of_means(_resampled_means(sums, counts, seed, resamples)))
    return Estimate(value, low, high, len(table))


def paired_difference(better: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of `better - baseline`, both (n,) measured on the same n items, with its interval."""
    return bootstrap(np.asarray(better, np.float64) - np.asarray(baseline, np.float64), seed=seed)


def _rows_of(clusters: Sequence[Any] | np.ndarray) -> list[np.ndarray]:
    """Row numbers of each label, in the order of the labels."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    return np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1]) if len(member) else []


def _drawn(rows: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The row numbers of as many labels as there are, drawn with replacement."""
    return np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])


def _drawer(count: int, clusters: Sequence[Any] | np.ndarray | None) -> Callable[[np.random.Generator], np.ndarray]:
    """What draws row numbers with replacement: of `count` rows one by one, or all rows of a label together."""
    rows = [] if clusters is None else _rows_of(clusters)
    if clusters is None or len(rows) == count:
        return lambda rng: rng.integers(0, count, count)
    return lambda rng: _drawn(rows, rng)


def quantile(
    values: np.ndarray,
    q: float,
    clusters: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 200,
) -> Estimate:
    """The q-quantile of (n,) values (0 = minimum, 0.5 = median) with its bootstrap interval; `clusters` as `bootstrap`.

    The interval of a minimum says little about faces not seen; it is given so that no number stands alone.
    """
    return bootstrap_groups(
        lambda sample: float(np.quantile(sample, q)), np.asarray(values, np.float64),
        clusters=None if clusters is None else [clusters], seed=seed, resamples=resamples,
    )  # fmt: skip


def bootstrap_groups(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    clusters: Sequence[Sequence[Any] | np.ndarray] | None = None,
    seed: int = 0,
    resamples: int = 200,
) -> Estimate:
    """Interval of a statistic of several independent samples (say, an AUC of two classes), each drawn on its own.

    Args:
        statistic: takes the samples, in order, to one number; used as it is for the value.
        samples: arrays whose first axis counts observations.
        clusters: labels of each sample; observations of one label (one person) in a sample are drawn together.
    """
    total = sum(len(s) for s in samples)
    if any(len(s) == 0 for s in samples):
        return Estimate(math.nan, math.nan, math.nan, total)
    labels = [None] * len(samples) if clusters is None else clusters
    draws = [_drawer(len(s), own) for s, own in zip(samples, labels, strict=True)]
    rng = np.random.default_rng(seed)
    drawn = [statistic(*(s[draw(rng)] for s, draw in zip(samples, draws, strict=True))) for _ in range(resamples)]
    return Estimate(float(statistic(*samples)), *_interval(np.array(drawn)), total)


def bootstrap_together(
    statistics: Callable[..., Sequence[float]],
    *columns: np.ndarray,
    clusters: Sequence[Any] | np.ndarray,
    seed: int = 0,
    resamples: int = 200,
) -> list[Estimate]:
    """Intervals of several statistics of the same observations (say, AUC and EER of the same trials).

    Args:
        statistics: takes the columns to k numbers; a number that a resample does not allow may be NaN.
        columns: arrays of one length; their rows belong together and are drawn together.
        clusters: labels of the same length; the rows of one label (one person) are drawn together.

    Returns:
        k estimates; n counts rows.
    """
    rows = _rows_of(clusters)
    values = np.asarray(statistics(*columns), np.float64)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples if len(rows) > 1 else 0):
        picked = _drawn(rows, rng)
        drawn.append(statistics(*(column[picked] for column in columns)))
    table = np.asarray(drawn, np.float64).reshape(-1, len(values))
    return [Estimate(float(v), *_interval(table[:, i]), len(clusters)) for i, v in enumerate(values)]


@dataclass(frozen=True)
class Finding:
    """One measured number.

    Attributes:
        section: heading it is listed under; subset: the faces it was measured on; metric: its name.
        definition: what it is, in words: region, colour space, range, reference.
        estimate: value, interval, n. unit: "dB", "%", "" for a ratio.
        direction: "up" where more is better.
        bar: what the value must reach (at least, or at most where `direction` is "down"); None where none is set.
        surely: the whole interval must reach the bar, not the value alone.
        condition: of the thumbnails ("clean"). row: what was measured ("restored at 1"). group: the part of the faces
            ("age 20-29"), "" for all. version: of the definition; it rises when numbers can no longer be compared.
        weights: the card in `weights/` that the number judges, "" for none.
    """

    section: str
    subset: str
    metric: str
    definition: str
    estimate: Estimate
    direction: Direction = "up"
    unit: str = ""
    bar: float | None = None
    surely: bool = False
    condition: str = ""
    row: str = ""
    group: str = ""
    version: int = 1
    weights: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the bar is reached; None where there is none. A value that is not a number passes no bar."""
        if self.bar is None:
            return None
        e = self.estimate
        if self.direction == "up":
            return (e.low if self.surely else e.value) >= self.bar
        return (e.high if self.surely else e.value) <= self.bar


def _plain(number: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return None if number is None or not math.isfinite(number) else round(number, 6)


def to_json(findings: Sequence[Finding], header: dict[str, Any]) -> str:
    """All findings with `header` (how, when, on what) as JSON text; sorted keys, no NaN."""
    rows = []
    for f in findings:
        row = asdict(f) | {"passed": f.passed, "bar": _plain(f.bar)}
        estimate = row.pop("estimate")
        rows.append(row | {k: v if k == "n" else _plain(v) for k, v in estimate.items()})
    bars = [f for f in findings if f.passed is not None]
    summary = {"bars": len(bars), "passed": sum(bool(f.passed) for f in bars)}
    return (
        json.dumps({"header": header, "summary": summary, "findings": rows}, indent=1, sort_keys=True, allow_nan=False)
        + "\n"
    )


def number_text(number: float | None) -> str:
    if number is None or math.isnan(number):
        return "-"
    return f"{number:.3f}" if abs(number) < 10 else f"{number:.2f}" if abs(number) < 1000 else f"{number:.0f}"


def _faces(finding: Finding) -> str:
    """What a number is of: faces, condition, row, group."""
    f = finding
    return ", ".join(part for part in (f.subset, f.condition, f.row, f.group) if part)


def to_markdown(findings: Sequence[Finding], header: dict[str, Any], title: str) -> str:
    """The same as a Markdown page: the bars first, then one table per section, then the definitions."""
    bars = [f for f in findings if f.passed is not None]
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in header.items()), ""]
    lines += [f"**{sum(bool(f.passed) for f in bars)} of {len(bars)} bars reached.** Intervals: 95 %, bootstrap.", ""]
    short = [f for f in bars if not f.passed]
    if short:
        lines += ["Short of the bar:", ""]
        lines += [
            f"- {f.section}, {_faces(f)}, {f.metric}: {number_text(f.estimate.value)} (bar {number_text(f.bar)})"
            for f in short
        ] + [""]
    for section in dict.fromkeys(f.section for f in findings):
        lines += [
            f"## {section}",
            "",
            "| faces | metric | value | 95 % interval | n | bar | |",
            "|---|---|---|---|---|---|---|",
        ]
        for f in (f for f in findings if f.section == section):
            e, sign = f.estimate, "≥" if f.direction == "up" else "≤"
            mark = {None: "", True: "pass", False: "**FAIL**"}[f.passed]
            bar = "" if f.bar is None else f"{sign} {number_text(f.bar)}"
            value = f"{number_text(e.value)} {f.unit}".strip()
            lines.append(
                f"| {_faces(f)} | {f.metric} | {value} | {number_text(e.low)} .. {number_text(e.high)} | {e.n} | "
                f"{bar} | {mark} |"
            )
        lines.append("")
        definitions = dict.fromkeys((f.metric, f.definition) for f in findings if f.section == section)
        lines += [f"- *{metric}*: {definition}" for metric, definition in definitions] + [""]
    return "\n".join(lines)


def write_tables(findings: Sequence[Finding], header: dict[str, Any], folder: Path, name: str, title: str) -> None:
    """Write `folder/name.json` and `folder/name.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(to_json(findings, header), encoding="utf-8")
    (folder / f"{name}.md").write_text(to_markdown(findings, header, title), encoding="utf-8")
