"""Who is held out, and which data a pack stands for."""

import json
from pathlib import Path

import numpy as np
import pytest

from training import sources
from training.config import TrainingError
from training.sources import RECORD, check_sources, held_out, record_sources


def test_the_list_says_who_is_held_out_of_the_sets_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text("7\n")
    monkeypatch.setattr(sources, "VALIDATION_LIST", tmp_path / "list.txt")
    groups = np.array([str(i) for i in range(90)] + [f"mine{i // 2}" for i in range(2000)] + ["one"])
    sets = np.array(["known"] * 90 + ["own"] * 2000 + ["single"])
    held = held_out(groups, sets)
    assert list(groups[held & (sets == "known")]) == ["7"]
    own = held[sets == "own"]
    assert 0.03 < own.mean() < 0.07 and np.array_equal(own[::2], own[1::2])  # nobody is on both sides
    assert np.array_equal(held_out(groups[90:], sets[90:]), held[90:])
    assert not held_out(groups[[90 + int(own.argmax())]], np.array(["own"])).any()  # somebody must be left to train on
    assert not held_out(groups[90:], np.full(2001, "omi_pairs")).any()  # all of it was trained on


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An empty folder for a pack, and a source of two pictures."""
    for name in ("pack", "faces"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "faces" / name).write_bytes(b"12345")
    return tmp_path / "pack", tmp_path / "faces"


def test_a_pack_of_other_data_is_refused(folders: tuple[Path, Path]) -> None:
    pack, faces = folders
    record_sources(pack, {faces: None})
    check_sources(pack, np.array(["faces"]), {faces: None})
    (faces / "notes.txt").write_text("no picture")
    check_sources(pack, np.array(["faces"]), {faces: None})
    with pytest.raises(TrainingError, match="has changed, or is packed in another way"):
        check_sources(pack, np.array(["faces"]), {faces: [384]})
    (faces / "b.jpg").write_bytes(b"123456")
    with pytest.raises(TrainingError, match=r"faces has changed.*Name another pack, or remove this one"):
        check_sources(pack, np.array(["faces"]), {faces: None})
    with pytest.raises(TrainingError, match="facse is not in it; it also holds faces"):
        check_sources(pack, np.array(["faces"]), {faces.with_name("facse"): None})


def test_a_pack_may_hold_more_where_that_is_allowed(folders: tuple[Path, Path]) -> None:
    pack, faces = folders
    sets = np.array(["faces", "street", "street"])
    with pytest.raises(TrainingError, match="it also holds street"):
        check_sources(pack, sets, {faces: None})
    check_sources(pack, sets, {faces: None}, more=True)
    assert not (pack / RECORD).exists()  # of a part it would not be true of the whole


def test_where_the_sources_are_not_their_names_must_do(folders: tuple[Path, Path]) -> None:
    pack, faces = folders
    record_sources(pack, {faces: None})
    elsewhere = Path("/nowhere/faces.parquet")
    check_sources(pack, np.array(["faces"]), {elsewhere: None})
    with pytest.raises(TrainingError, match=r"fases\.parquet is not in it"):
        check_sources(pack, np.array(["faces"]), {elsewhere.with_name("fases.parquet"): None})


def test_a_pack_without_a_record_is_taken_and_gets_one(folders: tuple[Path, Path]) -> None:
    pack, faces = folders
    check_sources(pack, np.array(["faces"]), {Path("/nowhere/faces.parquet"): None})
    assert not (pack / RECORD).exists()
    check_sources(pack, np.array(["faces"]), {faces: None})
    assert list(json.loads((pack / RECORD).read_text()).values()) == ["faces"]
    (faces / "a.png").unlink()
    with pytest.raises(TrainingError, match="faces has changed"):
        check_sources(pack, np.array(["faces"]), {faces: None})


def test_the_shipped_list_holds_every_id_once() -> None:
    ids = sources.VALIDATION_LIST.read_text().split()
    assert len(ids) == len(set(ids)) > 3000
