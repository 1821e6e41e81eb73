"""Packs carried as shards."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from training.faces import PACK_SIZE, Pack
from training.shards import join, split


def make_pack(folder: Path, count: int) -> Pack:
    folder.mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    np.save(folder / "images.npy", np.stack([cv2.resize(c, (PACK_SIZE, PACK_SIZE)) for c in coarse]))
    np.savez(
        folder / "index.npz",
        landmarks=rng.normal(size=(count, 68, 2)).astype(np.float32),
        corners=np.zeros((count, 4, 2), np.float32),
        descriptor=np.zeros((count, 128), np.float32),
        ids=np.array([f"i{i}" for i in range(count)]),
        groups=np.array([f"i{i}" for i in range(count)]),
        sets=np.array(["a"] * count),
        validation=np.arange(count) % 2 == 0,
    )
    return Pack.open(folder)


def test_a_pack_comes_back_from_its_shards(tmp_path: Path) -> None:
    before = make_pack(tmp_path / "pack", 9)
    written = split(tmp_path / "pack", tmp_path / "shards", megabytes=0.01, quality=95)
    assert len(written) > 3 and max(p.stat().st_size for p in written[1:]) < 0.012 * 2**20
    after = join(tmp_path / "other", tmp_path / "shards")
    assert np.abs(after.images.astype(int) - before.images.astype(int)).mean() < 3
    assert np.array_equal(after.landmarks, before.landmarks) and np.array_equal(after.validation, before.validation)


def test_a_missing_shard_is_named_and_leaves_no_pack(tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", 9)
    split(tmp_path / "pack", tmp_path / "shards", megabytes=0.01)
    (tmp_path / "shards" / "001.npz").unlink()
    with pytest.raises(FileNotFoundError, match="of 9 pictures are missing"):
        join(tmp_path / "other", tmp_path / "shards")
    assert not (tmp_path / "other" / "index.npz").exists()
