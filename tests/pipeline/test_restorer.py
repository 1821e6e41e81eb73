"""The Python API."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import Restorer, Result
from tests.pipeline.conftest import RESAMPLE, colour, png


def restorer(chain: Any = RESAMPLE, **options: Any) -> Restorer:
    return Restorer.from_config(chain, device="cpu", **options)


def test_arrays_pictures_and_paths_give_the_same_result(tmp_path: Path, chain: Any) -> None:
    pixels = colour(1)
    (tmp_path / "a.png").write_bytes(png(pixels))
    forms = [
        pixels,
        pixels.astype(np.float64) / 255,
        Image.fromarray(pixels),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    results = restorer(chain).restore(forms)
    assert all(isinstance(r, Result) for r in results)
    assert len({r.status for r in results}) == 1
    for other in results[1:]:
        if results[0].image is not None:
            np.testing.assert_array_equal(other.image, results[0].image)


def test_results_come_in_order_with_names() -> None:
    pictures = [colour(i, (16 + i % 3, 16 + i % 3)) for i in range(10)]
    results = restorer(batch_size=2).restore(pictures, names=[f"n{i}" for i in range(10)])
    assert [r.source for r in results] == [f"n{i}" for i in range(10)]
    assert all(r.image is not None and r.image.shape == (32, 32, 3) and r.image.dtype == np.uint8 for r in results)


def test_what_is_wrong_with_a_picture_is_in_its_result(tmp_path: Path) -> None:
    wrong: list[Any] = [
        np.zeros((16, 16, 4), np.uint8),
        np.full((16, 16), 3.0),
        np.zeros((16, 16), np.int64),
        tmp_path / "no.png",
        np.zeros((2, 2), np.uint8),
    ]
    results = restorer().restore([*wrong, colour(0)])
    assert [r.status for r in results] == ["unsupported", "unsupported", "unsupported", "failed", "unsupported", "ok"]
    assert all(r.image is None and r.error for r in results[:5])


def test_grey_in_grey_out() -> None:
    (result,) = restorer().restore([colour(0)[..., 0]])
    assert result.image is not None and result.image.shape == (32, 32)


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="masks: expected 1 entries"):
        restorer().restore([colour(0)], masks=[])


def test_equal_content_draws_equal_seeds_and_other_runs_others() -> None:
    first, second = restorer(), restorer(RESAMPLE | {"seed": 1})
    assert first.seed_of("ab") == restorer().seed_of("ab") != second.seed_of("ab")
    assert 0 <= first.seed_of("ab") < 2**63
