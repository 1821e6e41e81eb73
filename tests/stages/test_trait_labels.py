"""Rules that turn columns of data sets into traits."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.degradation.occluders import MEAN_SHAPE
from stages.trait_labels import EXPRESSIONS, age_band, labelled_by_eye, mouth_opening, read_columns, traits_of

OMI = {"age": 30.0, "gender": 90.0, "happy": 20.0, "long-haired": 10.0, "hair-color": 90.0, "skin-color": 20.0}


def class_map(**shares: float) -> bytes:
    """A 100 x 100 palette PNG whose classes cover the given shares, by number: c3=0.05."""
    flat = np.ones(10000, np.uint8)
    start = 0
    for name, share in shares.items():
        end = start + round(share * 10000)
        flat[start:end] = int(name[1:])
        start = end
    picture = Image.fromarray(flat.reshape(100, 100))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def test_age_and_gender_columns_are_years_and_masculine() -> None:
    assert traits_of({"age": 31, "gender": 0}) == {"age": 31.0, "masculine": 1.0}
    assert traits_of({"age": None, "gender": 1}) == {"masculine": 0.0}
    assert traits_of({}) == {}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("neutral", {"expression": 0.0, "smiling": 0.0}),
        ("happiness", {"expression": 1.0, "smiling": 1.0}),
        ("surprise", {"expression": 2.0}),
        ("sadness", {"expression": 4.0, "smiling": 0.0}),
        ("contempt", {}),
        (None, {}),
    ],
)
def test_expressions_are_numbered_and_rare_ones_left_out(expression: str | None, expected: dict[str, float]) -> None:
    assert traits_of({"expression": expression}) == expected
    assert EXPRESSIONS[1] == "happiness"


def test_ratings_become_yes_or_no_and_doubt_is_left_out() -> None:
    expected = {"masculine": 1.0, "smiling": 0.0, "hair_long": 0.0, "hair_black": 1.0, "hair_blond": 0.0}
    assert traits_of({"attributes": OMI}) == expected
    doubt = OMI | {"gender": 50.0, "happy": 50.0, "long-haired": 40.0, "hair-color": 40.0}
    assert traits_of({"attributes": doubt}) == {"hair_black": 0.0}
    assert traits_of({"attributes": doubt | {"hair-color": 10.0}}) == {"hair_black": 0.0, "hair_blond": 1.0}


def test_class_maps_give_glasses_hats_and_open_mouths() -> None:
    assert traits_of({"mask": class_map(c3=0.01)}) == {"eyeglasses": 1.0, "hat": 0.0, "mouth_open": 0.0}
    assert traits_of({"mask": class_map(c14=0.1, c10=0.005)}) == {"eyeglasses": 0.0, "hat": 1.0, "mouth_open": 1.0}
    assert "mouth_open" not in traits_of({"mask": class_map(c10=0.001)})


def mouth(gap: float) -> np.ndarray:
    """The mean face with its inner lips apart by `gap` of the distance of the outer eye corners."""
    points = np.array(MEAN_SHAPE, np.float64)
    width = np.linalg.norm(points[45] - points[36])
    points[65:68, 1] = points[61:64, 1][::-1] + gap * width
    return points


def test_the_mouth_is_read_from_the_inner_lips() -> None:
    assert mouth_opening(mouth(0.1)) == pytest.approx(0.1)
    assert mouth_opening(3 * mouth(0.1)) == pytest.approx(0.1)  # of any size
    assert traits_of({}, mouth(0.1)) == {"mouth_open": 1.0}
    assert traits_of({}, mouth(0.0)) == {"mouth_open": 0.0}
    assert traits_of({}, mouth(0.04)) == {}
    assert traits_of({}, np.full((68, 2), np.nan)) == {}


def test_a_class_map_outweighs_landmarks() -> None:
    assert traits_of({"mask": class_map(c10=0.02)}, mouth(0.0))["mouth_open"] == 1.0


def test_age_bands_start_where_they_say() -> None:
    assert age_band(np.array([0, 2, 3, 9, 10, 39, 40, 80, 116])).tolist() == [0, 0, 1, 1, 2, 3, 4, 6, 6]


@pytest.mark.parametrize(
    ("trait", "name"), [("beard", "omi"), ("beard", "celebamask"), ("beard", "utkface"), ("hat", "celeba")]
)
def test_several_hundred_faces_were_labelled_by_eye(trait: str, name: str) -> None:
    found = [seen[trait] for seen in labelled_by_eye()[name].values()]
    assert set(found) == {0.0, 1.0} and sum(found) >= 40


def test_columns_are_fetched_by_id_where_the_set_has_them(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "age": [3, None], "image": [b"1", b"2"]}), tmp_path / "x.parquet")
    assert read_columns(tmp_path / "x.parquet") == {"a": {"age": 3}, "b": {"age": None}}
    face, seen = next(iter(labelled_by_eye()["omi"].items()))
    pq.write_table(pa.table({"id": [face, "none"]}), tmp_path / "omi.parquet")
    rows = read_columns(tmp_path / "omi.parquet")
    assert traits_of(rows[face]) == seen and traits_of(rows["none"]) == {}
    with pytest.raises(FileNotFoundError, match="labels: "):
        read_columns(tmp_path / "none.parquet")
