"""Measured figures go into the card of the file they were measured with, and into no other."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.card_metrics import main
from evaluation.cards import cards_measured
from stages import weights

FINDING = {
    "section": "Clean",
    "metric": "PSNR gain",
    "subset": "a",
    "condition": "clean",
    "row": "restored at 1",
    "group": "",
    "weights": "tiny",
    "n": 3,
    "value": 1.5,
    "low": 1.0,
    "high": 2.0,
}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(tmp_path))
    fields = {k: {} for k in ("arguments", "input", "data", "recipe")}
    card = {"architecture": "x", "metrics": [], "licence": "none", "limits": "all", **fields}
    for name in ("tiny", "other"):
        weights.save_weights(name, nn.Linear(2, 2), card, torch.float32)
    findings = [FINDING | {"bar": 2.6}, FINDING | {"bar": None}, FINDING | {"bar": 2.6, "weights": ""}]
    findings.append(FINDING | {"bar": None, "weights": "", "row": "bicubic", "value": 0.5})
    path = tmp_path / "out" / "tables.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"header": cards_measured(["other", "tiny"]), "findings": findings}))
    return path


def test_barred_figures_of_the_card_alone_enter_it(tables: Path) -> None:
    main([str(tables), "tiny"])
    (entry,) = weights.read_card("tiny").metrics
    assert entry["metric"] == "Clean: PSNR gain, restored at 1" and entry["set"] == "a, clean"
    assert entry["value"] == 1.5 and entry["baseline"] == 0.5 and entry["interval"] == [1.0, 2.0]


def test_an_original_is_the_same_everywhere_and_enters_once(tables: Path) -> None:
    content = json.loads(tables.read_text())
    accuracy = FINDING | {"bar": None, "row": "original", "metric": "accuracy"}
    content["findings"] = [
        accuracy | {"condition": "clean"}, accuracy | {"condition": "covered"}, accuracy | {"value": 1.4},
        FINDING | {"bar": None, "group": "age 0-9"},
    ]  # fmt: skip
    tables.write_text(json.dumps(content))
    main([str(tables), "tiny"])
    assert [(e["set"], e["value"]) for e in weights.read_card("tiny").metrics] == [("a, clean", 1.5), ("a, clean", 1.4)]


def test_figures_of_other_weights_are_refused(tables: Path) -> None:
    content = json.loads(tables.read_text())
    content["header"]["weights"] = "tiny 0123456789abcdef"
    tables.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"weights measured are 'tiny 0123456789abcdef', .* measure again"):
        main([str(tables), "tiny"])
    assert weights.read_card("tiny").metrics == []


def test_figures_of_a_network_built_otherwise_are_refused(tables: Path, tmp_path: Path) -> None:
    card = json.loads((tmp_path / "tiny.json").read_text())
    for changed in ({"arguments": {"heads": 2}}, {"architecture": "y"}):
        (tmp_path / "tiny.json").write_text(json.dumps(card | changed))
        with pytest.raises(ValueError, match=r"tiny: the arguments measured are .* measure again"):
            main([str(tables), "tiny"])
        assert weights.read_card("tiny").metrics == []


def test_tables_that_do_not_say_the_arguments_are_refused(tables: Path) -> None:
    content = json.loads(tables.read_text())
    del content["header"]["arguments"]
    tables.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tiny: the tables, of an older version, .* measure again"):
        main([str(tables), "tiny"])
