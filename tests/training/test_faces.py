"""Packing faces: canonical cut, splits, folders and Parquet files alike."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landmarks.alignment import canonical_points
from landmarks.scheme import five_points
from training import faces, sources
from training.config import TrainingError
from training.faces import MARGIN, PACK_SIZE, build_pack

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def landmarks_of(scale: float, shift: float) -> np.ndarray:
    """68 points whose five-point summary lies on the canonical one, scaled and shifted."""
    points = np.random.default_rng(0).uniform(30, 100, (68, 2))
    eyes, tip, corners = canonical_points(128)[:2], canonical_points(128)[2], canonical_points(128)[3:]
    points[36:42], points[42:48], points[30], points[48], points[54] = eyes[0], eyes[1], tip, corners[0], corners[1]
    return points * scale + shift


def png(size: int, colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows = {
        "id": ["a", "b", "c"],
        "image": [png(300, (200, 10, 30)), b"no picture", png(64, (0, 90, 0))],
        "landmarks": [landmarks_of(2.0, 20).ravel().tolist(), None, None],
    }
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table(rows), path)
    return path


def test_faces_are_cut_into_the_canonical_frame(parquet: Path, tmp_path: Path) -> None:
    pack = build_pack([parquet], tmp_path / "pack", workers=1)
    assert list(pack.ids) == ["a", "c"]  # what is no picture is left out
    assert pack.images.shape == (2, PACK_SIZE, PACK_SIZE, 3)
    assert abs(pack.images[0].astype(int) - (200, 10, 30)).max() <= 2
    assert five_points(pack.landmarks[0]) == pytest.approx(canonical_points(128) + MARGIN, abs=1e-3)
    assert pack.corners[0][2] - pack.corners[0][0] == pytest.approx([150, 150], abs=1e-3)  # 300 px at half size


def test_a_crop_without_landmarks_fills_the_frame(parquet: Path, tmp_path: Path) -> None:
    pack = build_pack([parquet], tmp_path / "pack", workers=1)
    assert np.isnan(pack.landmarks[1]).all()
    assert pack.corners[1][0] == pytest.approx([MARGIN - 0.5] * 2, abs=1e-3)


def test_a_pack_is_written_while_its_faces_are_cut(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, written = list(faces.parquet_rows(parquet)) * 3, []
    one = np.load(build_pack([parquet], tmp_path / "small", workers=1).images.filename)

    def counted(path: Path) -> Iterator[dict]:
        for row in rows:
            written.append((tmp_path / "pack" / "images.part").stat().st_size // PACK_SIZE**2 // 3)
            yield row

    monkeypatch.setattr(faces, "CHUNK", 3)
    monkeypatch.setattr(faces, "parquet_rows", counted)
    pack = build_pack([parquet], tmp_path / "pack", workers=1)
    assert written == [0, 0, 0, 2, 2, 2, 4, 4, 4]  # one in three is no picture
    whole = io.BytesIO()
    np.save(whole, np.concatenate([one] * 3))
    assert (tmp_path / "pack" / "images.npy").read_bytes() == whole.getvalue()
    assert list(pack.ids) == ["a", "c"] * 3 and pack.descriptor.dtype == np.float32
    assert not (tmp_path / "pack" / "images.part").exists()


def test_validation_faces_are_marked_by_the_list(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("c\nz\n")
    monkeypatch.setattr(sources, "VALIDATION_LIST", tmp_path / "list.txt")
    assert list(build_pack([parquet], tmp_path / "pack", workers=1).validation) == [False, True]


def test_a_pack_is_built_once(parquet: Path, tmp_path: Path) -> None:
    build_pack([parquet], tmp_path / "pack", workers=1)
    parquet.unlink()
    assert len(build_pack([parquet], tmp_path / "pack", workers=1).ids) == 2


def test_a_pack_of_other_faces_is_not_taken_for_these(parquet: Path, tmp_path: Path) -> None:
    build_pack([parquet], tmp_path / "pack", workers=1)
    rows = {"id": ["a", "d"], "image": [png(300, (200, 10, 30)), png(300, (0, 0, 0))]}
    pq.write_table(pa.table(rows), parquet)
    with pytest.raises(TrainingError, match=r"set\.parquet has changed"):
        build_pack([parquet], tmp_path / "pack", workers=1)
    with pytest.raises(TrainingError, match=r"sets\.parquet is not in it"):
        build_pack([tmp_path / "sets.parquet"], tmp_path / "pack", workers=1)


def test_data_without_faces_leaves_no_pack(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,image\n")
    with pytest.raises(TrainingError, match=r"list\.csv: neither a folder nor a Parquet file"):
        build_pack([tmp_path / "list.csv"], tmp_path / "pack", workers=1)
    pq.write_table(pa.table({"name": ["a"], "image": [b""]}), tmp_path / "named.parquet")
    with pytest.raises(TrainingError, match="needs the columns id and image"):
        build_pack([tmp_path / "named.parquet"], tmp_path / "pack", workers=1)
    pq.write_table(pa.table({"id": ["a"], "image": [b"no picture"]}), tmp_path / "empty.parquet")
    with pytest.raises(TrainingError, match="holds no picture that can be read"):
        build_pack([tmp_path / "empty.parquet"], tmp_path / "pack", workers=1)
    assert not (tmp_path / "pack" / "index.npz").exists()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.parquet"):
        build_pack([tmp_path / "nowhere.parquet"], tmp_path / "pack", workers=1)
