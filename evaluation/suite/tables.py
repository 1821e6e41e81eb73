"""Findings -> tables: rows down, metrics across; one for each section, set of faces and condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.statistics import Finding, number_text

ARROW = {"up": "↑", "down": "↓"}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        section, title: headings. columns: metric or group with its arrow and unit. rows: name and one finding a column,
            None where it was not measured. definitions: metric -> words and version.
    """

    section: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Finding | None, ...]], ...]
    definitions: dict[str, str]


def _heading(finding: Finding, name: str) -> str:
    unit = f", {finding.unit}" if finding.unit else ""
    return f"{name}{unit} {ARROW[finding.direction]}"


def _table(section: str, title: str, findings: Sequence[Finding], by: str, order: Sequence[str]) -> Table:
    """A table whose columns are the values of the attribute `by` ("metric" or "group")."""
    names = list(dict.fromkeys(getattr(f, by) for f in findings))
    cells = {(f.row, getattr(f, by)): f for f in findings}
    rows = sorted(dict.fromkeys(f.row for f in findings), key=lambda r: order.index(r) if r in order else len(order))
    first = {name: next(f for f in findings if getattr(f, by) == name) for name in names}
    return Table(
        section, title, tuple(_heading(first[name], name) for name in names),
        tuple((row, tuple(cells.get((row, name)) for name in names)) for row in rows),
        {f.metric: f"{f.definition} (version {f.version})" for f in findings if by == "metric" or f is findings[0]},
    )  # fmt: skip


def tables(findings: Sequence[Finding], order: Sequence[str]) -> Iterator[Table]:
    """Tables over all faces, in the order of the findings. `order`: names of the rows from top to bottom."""
    whole = [f for f in findings if not f.group]
    for section, subset, condition in dict.fromkeys((f.section, f.subset, f.condition) for f in whole):
        part = [f for f in whole if (f.section, f.subset, f.condition) == (section, subset, condition)]
        yield _table(section, f"{subset}, {condition}", part, "metric", order)


def parity_tables(findings: Sequence[Finding], order: Sequence[str]) -> Iterator[Table]:
    """One table for each label, metric, set and condition: groups across."""
    grouped: dict[tuple[str, ...], list[Finding]] = {}
    for f in (f for f in findings if f.group):
        label = f.group.replace(":", " ").split()[0]
        grouped.setdefault((label, f.subset, f.condition, f.section, f.metric), []).append(f)
    for (label, subset, condition, section, metric), part in grouped.items():
        yield _table(f"By {label}", f"{section}: {metric}, {subset}, {condition}", part, "group", order)


def cell_text(finding: Finding | None) -> str:
    """Value, interval and count; a bar that is missed is marked."""
    if finding is None or not finding.estimate.n:
        return "-"
    e = finding.estimate
    mark = {None: "", True: " (bar reached)", False: " **(under the bar)**"}[finding.passed]
    return f"{number_text(e.value)} [{number_text(e.low)}, {number_text(e.high)}] n={e.n}{mark}"


def to_markdown(title: str, header: dict[str, Any], findings: Sequence[Finding], order: Sequence[str]) -> str:
    """Everything as one Markdown page."""
    bars = [f for f in findings if f.passed is not None]
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in header.items()), ""]
    lines += [
        "Each cell: value [95 % bootstrap interval] number of observations. ↑ more is better, ↓ less is better.",
        "",
    ]
    if bars:
        lines += [f"**{sum(bool(f.passed) for f in bars)} of {len(bars)} bars reached.**", ""]
        lines += [f"- {bar_text(f)}" for f in bars] + [""]
    section = ""
    for table in [*tables(findings, order), *parity_tables(findings, order)]:
        if table.section != section:
            section = table.section
            lines += [f"## {section}", ""]
        lines += [
            f"### {table.title}",
            "",
            "| row | " + " | ".join(table.columns) + " |",
            "|---" * (len(table.columns) + 1) + "|",
        ]
        lines += [f"| {name} | " + " | ".join(cell_text(c) for c in cells) + " |" for name, cells in table.rows] + [""]
        lines += [f"- *{metric}*: {text}" for metric, text in table.definitions.items()] + [""]
    return "\n".join(lines)


def bar_text(finding: Finding) -> str:
    """One bar and what was reached, in words."""
    f = finding
    sign = "at least" if f.direction == "up" else "at most"
    verdict = "reached" if f.passed else "missed"
    place = ", ".join(part for part in (f.section, f.subset, f.condition, f.group, f.row) if part)
    whole = f", the whole interval {number_text(f.estimate.low)} to {number_text(f.estimate.high)}" if f.surely else ""
    return f"{verdict}: {place}: {f.metric} {number_text(f.estimate.value)} (bar: {sign} {number_text(f.bar)}{whole})"
