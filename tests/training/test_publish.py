"""What a card says about its data: the sets of every leg, whichever way one led to the next."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.weights import WeightsError
from training.publish import HASHED, SETS, SPLIT, trained_on

ROOT = Path(__file__).parents[2]


def write_card(folder: Path, name: str, data: dict[str, Any]) -> None:
    fields = dict.fromkeys(("arguments", "input", "recipe"), {}) | {"metrics": [], "data": data}
    text = dict.fromkeys(("architecture", "sha256", "licence", "limits"), "none")
    (folder / f"{name}.json").write_text(json.dumps({"name": name} | fields | text))


def write_run(folder: Path, **record: Any) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return folder


def test_a_card_names_the_data_of_every_leg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    write_card(tmp_path, "small", {"sets": {"celeba": "as then"}, "split": SPLIT, "counts": {"celeba": 5, "street": 3}})
    large = {"sets": [{"data": "/data/omi.parquet"}]}
    first = write_run(
        tmp_path / "first", start="small", faces=large, data=["/data/lfw.parquet", "/data/street.parquet"],
        counts={"lfw": 4, "omi": 9, "street": 1},
    )  # fmt: skip
    data = trained_on({"start_run": str(first), "faces": large, "counts": {"omi": 2}})
    assert data["sets"] == {"celeba": "as then"} | {n: SETS[n] for n in ("lfw", "street", "omi")}
    assert data["counts"] == {"celeba": 5, "lfw": 4, "omi": 9, "street": 3} and data["split"] == SPLIT


def test_the_split_of_a_user_s_own_set_is_told_by_later_legs_too(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", data=["/data/mine.parquet"], counts={"mine": 20})
    second = write_run(tmp_path / "second", start_run=str(first), data="/data/lfw.parquet")  # kept no counts
    data = trained_on({"start": None, "start_run": str(second), "data": ["/data/lfw.parquet"]})
    assert data == {"sets": {"mine": "user's own", "lfw": SETS["lfw"]}, "split": SPLIT + HASHED, "counts": {"mine": 20}}


def test_weights_whose_origin_is_not_there_get_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="gone"):
        trained_on({"data": [], "start": "gone"})
    with pytest.raises(FileNotFoundError, match="gone"):
        trained_on({"data": [], "start_run": str(tmp_path / "gone")})


def test_the_shipped_editor_names_what_both_of_its_paths_learned_from() -> None:
    configs = ROOT / "configs" / "train"
    whole, local = (yaml.safe_load((configs / f"{name}.yaml").read_text()) for name in ("coogan", "coogan_local"))
    del local["start_run"]
    sets = trained_on(whole)["sets"] | trained_on(local)["sets"]
    assert json.loads((ROOT / "weights" / "coogan_768.json").read_text())["data"]["sets"] == sets


@pytest.mark.parametrize("name", ["attributes", "attributes_training", "coogan_768", "prouigan_128"])
def test_a_shipped_card_counts_the_faces_of_every_set(name: str) -> None:
    data = json.loads((ROOT / "weights" / f"{name}.json").read_text())["data"]
    assert data["counts"].keys() == data["sets"].keys()
