"""Loading: the split holds, selection is stable, crops land where they should."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from evaluation import faces  # noqa: E402
from landmarks.alignment import CANONICAL_FIVE_POINTS  # noqa: E402
from landmarks.scheme import five_points  # noqa: E402


def parquet(folder: Path, names: list[str], with_landmarks: bool = True) -> Path:
    rng = np.random.default_rng(0)
    points = rng.uniform(20, 80, (68, 2))
    points[list(range(36, 42))], points[list(range(42, 48))] = (35, 40), (65, 40)
    points[[30, 48, 54]] = (50, 58), (38, 72), (62, 72)
    rows = []
    for name in names:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (90, 100, 3), dtype=np.uint8)).save(buffer, "PNG")
        landmarks = points.ravel().tolist() if with_landmarks else None
        rows.append({"id": name, "identity": name[0], "image": buffer.getvalue(), "landmarks": landmarks, "age": 30})
    schema = pa.schema(
        [("id", pa.string()), ("identity", pa.string()), ("image", pa.binary()), ("landmarks", pa.list_(pa.float32())),
         ("age", pa.int64())]
    )  # fmt: skip
    path = folder / "tiny.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def test_the_split_goes_by_person_and_selection_ignores_row_order(tmp_path: Path) -> None:
    names = [f"{person}{i}" for person in "abc" for i in range(4)]
    (tmp_path / "x").mkdir()
    forward, backward = parquet(tmp_path, names), parquet(tmp_path / "x", names[::-1])
    held = faces.load_faces(forward, frozenset("ab"))
    assert {f.group for f in held} == {"a", "b"} and len(held) == 8
    assert {f.group for f in faces.load_faces(forward, frozenset("ab"), validation=False)} == {"c"}
    some = [f.id for f in faces.load_faces(forward, frozenset("ab"), limit=3)]
    assert some == [f.id for f in faces.load_faces(backward, frozenset("ab"), limit=3)] == [f.id for f in held[:3]]
    assert held[0].labels == {"identity": held[0].group, "age": 30}


def test_landmarks_follow_the_canonical_crop(tmp_path: Path) -> None:
    face = faces.load_faces(parquet(tmp_path, ["a0"]), frozenset("a"))[0]
    assert face.image.shape == (128, 128, 3) and face.landmarks is not None
    assert (
        np.abs(five_points(face.landmarks) - CANONICAL_FIVE_POINTS).max() < 4
    )  # a similarity cannot fit five points exactly


def test_faces_without_landmarks_load_as_found_only(tmp_path: Path) -> None:
    path = parquet(tmp_path, ["a0"], with_landmarks=False)
    with pytest.raises(ValueError, match="has no landmarks"):
        faces.load_faces(path, frozenset("a"))
    face = faces.load_faces(path, frozenset("a"), as_found=True)[0]
    assert face.image.shape == (128, 128, 3) and face.landmarks is None
    with pytest.raises(FileNotFoundError, match="does not exist"):
        faces.load_faces(tmp_path / "none.parquet", frozenset())


def test_pictures_as_found_keep_their_middle_and_are_not_mirrored() -> None:
    picture = np.zeros((64, 192, 3), np.uint8)
    picture[:, 64:128] = np.arange(64, dtype=np.uint8)[None, :, None] * 3
    square = faces.central_square(picture, 64)
    np.testing.assert_array_equal(square, picture[:, 64:128])


def test_chance_depends_on_the_id_alone(tmp_path: Path) -> None:
    a, b = faces.load_faces(parquet(tmp_path, ["a0", "a1"]), frozenset("a"))
    assert a.rng.random() == a.rng.random() != b.rng.random()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_pictures_are_read_as_the_pipeline_reads_them() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    grey = faces.decode(encoded(Image.fromarray(deep)))
    np.testing.assert_array_equal(grey, np.repeat(np.rint(deep / 257)[..., None], 3, axis=2))
    clear = np.zeros((8, 8, 4), np.uint8)
    assert (faces.decode(encoded(Image.fromarray(clear))) == 128).all()  # laid over mid-grey
    with pytest.raises(ValueError, match="unreadable picture: not a readable picture"):
        faces.decode(encoded(Image.fromarray(clear[..., :3]), "GIF"))


def test_a_near_grey_picture_stays_as_it_was_recorded() -> None:
    toned = np.stack([np.arange(64, dtype=np.uint8).reshape(8, 8) + c for c in (4, 2, 0)], -1)
    np.testing.assert_array_equal(faces.decode(encoded(Image.fromarray(toned))), toned)


def test_large_faces_are_held_out_ones_whose_picture_resolves_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path, ["a0", "b0", "a1", "a2"])  # eyes 30 px apart: 42 px at 128, 20 px at 60
    monkeypatch.setattr(faces, "read_validation_list", lambda: frozenset(["a0", "a1", "a2"]))
    assert [len(faces.large_faces(path, 60, limit)) for limit in (2, 9)] == [2, 3]
    assert faces.large_faces(path, 128, 9) == []
    (enlarged,) = faces.large_faces(path, 128, 1, enlarged=True)
    (same,) = (face for face in faces.load_faces(path, frozenset("a")) if face.id == "a0")
    np.testing.assert_array_equal(enlarged, same.image)


def test_thumbnails_average_whole_cells_and_bicubic_brings_them_back() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    small = faces.thumbnail(picture)
    np.testing.assert_allclose(small, picture.reshape(16, 8, 16, 8, 3).mean((1, 3)), atol=0.51)
    assert faces.bicubic(small).shape == (128, 128, 3)
    assert faces.bicubic(faces.thumbnail(faces.to_grey(picture))).shape == (128, 128, 3)


def test_the_repositorys_own_list_is_there() -> None:
    listed = faces.read_validation_list()
    assert len(listed) > 100 and all(listed)
