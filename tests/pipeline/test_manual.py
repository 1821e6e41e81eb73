"""docs/usage.md names every option of a chain, and every field that a run writes."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.config import CaseConfig, MarkingConfig, SigningConfig, VerdictConfig, VideoConfig
from stages import STAGES
from tests.pipeline.conftest import records

MANUAL = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
MODELS: list[type[BaseModel]] = [VerdictConfig, VideoConfig, MarkingConfig, SigningConfig, CaseConfig]
MODELS += [stage.Config for name, stage in STAGES.items() if name != "degrade"]  # whose options its own file explains


def missing(words: Iterator[str]) -> list[str]:
    """Those that the manual does not have as code."""
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", MANUAL, re.DOTALL))
    return [word for word in words if not re.search(rf"\b{word}\b", code)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_option_is_in_the_manual(model: type[BaseModel]) -> None:
    assert missing(iter(model.model_fields)) == []


def test_every_field_of_a_run_is_in_the_manual(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    assert restore(folder / "face00.png", tmp_path / "out", workers=1) == 0
    run = json.loads((tmp_path / "out" / "_run" / "run.json").read_text(encoding="utf-8"))
    (record,) = records(tmp_path / "out").values()
    assert missing(iter([*record, *run, *run["seconds"]])) == []
    assert all(f"_run/{path.name} " in MANUAL for path in (tmp_path / "out" / "_run").iterdir() if path.name != "lock")
