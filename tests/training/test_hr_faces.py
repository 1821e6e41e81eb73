"""Packs of high-resolution faces: nothing is enlarged, what is packed comes back, labels come along."""

from pathlib import Path

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from stages.attributes import ATTRIBUTES  # noqa: E402
from stages.trait_labels import labelled_by_eye  # noqa: E402
from tests.training import hr_data  # noqa: E402
from training import hr_faces  # noqa: E402
from training.attribute_labels import FURTHER, label_of_answer, labels_of_row  # noqa: E402
from training.config import TrainingError  # noqa: E402
from training.hr_faces import PackConfig, build_hr_pack, open_hr_pack, side_for  # noqa: E402
from training.sources import HELD_ONE_IN, content_id  # noqa: E402

HELD = next(i for i in map(str, range(999)) if int(content_id(i.encode()), 16) % HELD_ONE_IN == 0)  # never trained on


def config(folder: Path, **changes: object) -> PackConfig:
    sets = [{"data": folder / "omi.parquet", "side": 480}]
    return PackConfig.model_validate({"pack": folder / "pack", "sets": sets, "quality": 95} | changes)


@pytest.mark.parametrize(("native", "largest", "side"), [(400, 768, 384), (800, 768, 768), (120, 768, 96), (40, 96, 0)])
def test_no_face_is_enlarged(native: int, largest: int, side: int) -> None:
    assert side_for(np.array([[128 / native, 0, 5.0], [0, 128 / native, 5.0]]), largest) == side


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 5)
    pack = open_hr_pack(build_hr_pack(config(tmp_path, margin=0.1)))
    assert len(pack) == 5 and set(pack.sides) == {240}  # the source resolves 256: the step below it
    assert pack.picture(2).shape == (288, 288, 3) and pack.frame(2).shape == (240, 240, 3)
    assert np.ptp(pack.picture(3)) > 60 and not np.array_equal(pack.picture(1), pack.picture(2))
    again = open_hr_pack(tmp_path / "pack")
    assert np.array_equal(again.picture(4), pack.picture(4)) and list(again.ids) == [f"omi{i}" for i in range(5)]
    assert np.isfinite(pack.labels[:, ATTRIBUTES.index("age")]).all()
    assert np.isnan(pack.labels[:, ATTRIBUTES.index("beard")]).all()


def test_a_pack_of_other_faces_is_not_taken_for_these(tmp_path: Path) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 2)
    build_hr_pack(config(tmp_path))
    assert build_hr_pack(config(tmp_path)) == tmp_path / "pack"
    with pytest.raises(TrainingError, match=r"omi\.parquet has changed, or is packed in another way"):
        build_hr_pack(config(tmp_path, margin=0.1))
    (tmp_path / "omi.parquet").unlink()  # on another machine
    assert build_hr_pack(config(tmp_path)) == tmp_path / "pack"


def test_a_set_of_small_faces_is_named(tmp_path: Path) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 1, side=60, scale=0.3)
    with pytest.raises(TrainingError, match=r"omi\.parquet holds no face with landmarks of 48 px"):
        build_hr_pack(config(tmp_path))


def test_count_limits_the_training_faces(tmp_path: Path) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 9)
    sets = [{"data": tmp_path / "omi.parquet", "side": 240, "count": 4}]
    assert len(open_hr_pack(build_hr_pack(config(tmp_path, sets=sets)))) == 4


def test_of_a_user_s_own_set_one_person_in_twenty_is_held_out(tmp_path: Path) -> None:
    hr_data.write_omi(tmp_path / "mine.parquet", 8, side=160, scale=1.0)
    table = pq.read_table(tmp_path / "mine.parquet").drop_columns("attributes")
    people = [person for person in (HELD, "a", "b", "c") for _ in range(2)]
    pq.write_table(table.append_column("identity", pa.array(people)), tmp_path / "mine.parquet")
    sets = [{"data": tmp_path / "mine.parquet", "side": 96, "count": 4}]
    pack = open_hr_pack(build_hr_pack(config(tmp_path, sets=sets)))
    assert list(pack.ids[pack.validation]) == ["omi0", "omi1"] and len(pack) == 2 + 4


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"omi\.parquet does not exist"):
        build_hr_pack(config(tmp_path))


def test_a_pack_for_other_attributes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 1)
    build_hr_pack(config(tmp_path))
    monkeypatch.setattr(hr_faces, "ATTRIBUTES", ATTRIBUTES[:3])
    with pytest.raises(ValueError, match="make it anew"):
        open_hr_pack(tmp_path / "pack")


def test_labels_of_pairs_are_their_levels() -> None:
    row = {"id": "7_age_2", "person": "7", "trait": "age", "level": 2}
    labels = labels_of_row(row, "omi_pairs")
    assert labels[ATTRIBUTES.index("age")] == 1 and np.isnan(labels[ATTRIBUTES.index("masculine")])


def test_years_and_flags_become_labels() -> None:
    labels = labels_of_row({"id": "a", "age": 12, "gender": 0}, "utkface")
    assert labels[ATTRIBUTES.index("age")] == -1 and labels[ATTRIBUTES.index("masculine")] == 1
    assert label_of_answer("age", torch.tensor([37.0, 99.0])).tolist() == [0, 1]
    assert label_of_answer("smiling", torch.tensor([0.0, 30.0])).tolist() == pytest.approx([0, 1])


def test_what_was_seen_by_eye_becomes_a_label() -> None:
    column, seen = ATTRIBUTES.index("beard"), labelled_by_eye()["omi"]
    ratings = dict.fromkeys(("age", "gender", "happy", "long-haired", "hair-color", "skin-color"), 50.0)
    for label, wanted in ((1, 1), (0, -1)):
        face = next(face for face, traits in seen.items() if traits["beard"] == label)
        assert labels_of_row({"id": face, "attributes": ratings}, "omi")[column] == wanted
    assert np.isnan(labels_of_row({"id": face}, "utkface")[column])  # another set's face of that name


def test_no_label_is_about_ethnicity() -> None:
    named = {a for rules in FURTHER.values() for a in rules} | set(ATTRIBUTES)
    assert not any(word in name for name in named for word in ("skin", "ethnic", "race"))
