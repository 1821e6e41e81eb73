"""Intervals behave as intervals must; findings and tables say what was measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.statistics import (
    Estimate,
    Finding,
    bootstrap,
    bootstrap_groups,
    paired_difference,
    quantile,
    to_json,
    to_markdown,
    write_tables,
)


def test_the_interval_of_a_mean_has_the_width_theory_gives_and_repeats() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    made = bootstrap(values)
    assert made == bootstrap(values)
    assert made.value == pytest.approx(values.mean()) and made.n == 400
    assert made.high - made.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_pairing_takes_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(20, 5, 300)
    made = paired_difference(hard + 1 + rng.normal(0, 0.1, 300), hard)
    assert made.low > 0.97 and made.high < 1.03


def test_rows_of_one_person_widen_the_interval() -> None:
    person = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(2).normal(0, 1, 20)[person]
    alone, together = bootstrap(values), bootstrap(values, clusters=person)
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_ratio_of_means_is_not_the_mean_of_ratios() -> None:
    columns = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert bootstrap(columns, lambda m: m[:, 0] / m[:, 1]).value == pytest.approx(4 / 6)


def test_quantile_and_groups() -> None:
    values = np.arange(101.0)
    assert quantile(values, 0.05).value == pytest.approx(5) and quantile(values, 0).value == 0
    made = bootstrap_groups(lambda a, b: float(a.mean() - b.mean()), values + 3, values)
    assert made.value == pytest.approx(3) and made.low < 3 < made.high and made.n == 202


def test_quantiles_and_groups_draw_the_rows_of_one_person_together() -> None:
    person = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(2).normal(0, 1, 20)[person]

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.mean() - b.mean())

    pairs = [
        (quantile(values, 0.5), quantile(values, 0.5, person)),
        (bootstrap_groups(gap, values, values), bootstrap_groups(gap, values, values, clusters=[person, person])),
    ]
    for alone, together in pairs:
        assert (together.value, together.n) == (alone.value, alone.n)
        assert together.high - together.low > 1.5 * (alone.high - alone.low)
    everyone = np.random.default_rng(3).permutation(200)
    assert quantile(values, 0.5, everyone) == quantile(values, 0.5), "nobody twice"


def test_nothing_measured_is_not_a_number() -> None:
    for made in (bootstrap(np.array([])), quantile(np.array([]), 0.5), bootstrap_groups(lambda a: 0.0, np.array([]))):
        assert math.isnan(made.value) and made.n == 0


def finding(value: float, bar: float | None, direction: str = "up") -> Finding:
    return Finding("Part", "faces", "gain", "in words", Estimate(value, value - 1, value + 1, 7), direction, "dB", bar)  # type: ignore[arg-type]


def test_bars_look_the_right_way_and_nan_passes_none() -> None:
    assert finding(3, 2.6).passed and not finding(2, 2.6).passed
    assert finding(3, 4, "down").passed and not finding(5, 4, "down").passed
    assert finding(3, None).passed is None
    assert finding(math.nan, 2.6).passed is False


def test_tables_give_value_interval_count_bar_and_definition(tmp_path: Path) -> None:
    findings = [finding(3, 2.6), finding(2, 2.6), finding(math.nan, None)]
    record = json.loads(to_json(findings, {"chain": "x"}))
    assert record["summary"] == {"bars": 2, "passed": 1}
    assert record["findings"][0] | {"low": 2, "high": 4, "n": 7, "bar": 2.6, "passed": True} == record["findings"][0]
    assert record["findings"][2]["value"] is None
    page = to_markdown(findings, {"chain": "x"}, "Title")
    assert "**1 of 2 bars reached.**" in page and "in words" in page and "| 3.000 dB | 2.000 .. 4.000 | 7 |" in page
    write_tables(findings, {}, tmp_path / "new", "bars", "Title")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["bars.json", "bars.md"]
