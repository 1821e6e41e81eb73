"""The Python API."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import Restorer, Result
from pipeline.config import ConfigError
from pipeline.images import ImageError, fit_mask
from tests.pipeline.conftest import RESAMPLE, colour, png, shipped_chain, thumbnail


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
        np.zeros((16, 16, 5), np.uint8),
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


def test_one_picture_is_not_taken_for_many_and_every_number_of_channels_is_known(tmp_path: Path) -> None:
    ready, one = restorer(), colour(3)
    Image.fromarray(one).save(tmp_path / "a.png")
    for single in (str(tmp_path / "a.png"), tmp_path / "a.png", one, Image.fromarray(one), torch.zeros(2, 16, 16, 3)):
        with pytest.raises(TypeError, match=r"restore\(\[x\]\)"):
            ready.restore(single)  # type: ignore[arg-type]
    assert len(ready.restore(np.stack([one, one, one]))) == 3  # type: ignore[arg-type]
    grey, clear = one[..., :1], np.dstack([one, np.full((16, 16), 255, np.uint8)])
    found = ready.restore([one, clear, grey, grey[..., 0], grey.astype(np.float32) / 255])
    assert all(r.image is not None for r in found)
    assert np.array_equal(found[0].image, found[1].image) and np.array_equal(found[2].image, found[3].image)
    assert np.array_equal(found[3].image, found[4].image)
    assert ready.restore([np.zeros((16, 16, 2), np.uint8)])[0].status == "unsupported"


def test_equal_content_draws_equal_seeds_and_other_runs_others() -> None:
    first, second = restorer(), restorer(RESAMPLE | {"seed": 1})
    assert first.seed_of("ab") == restorer().seed_of("ab") != second.seed_of("ab")
    assert 0 <= first.seed_of("ab") < 2**63


@pytest.mark.parametrize(
    ("option", "value"), [("device", "tpu"), ("precision", "fp8"), ("batch_size", 0), ("fidelity", 2)]
)
def test_wrong_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option}.*{value}"):
        Restorer.from_config("configs/cctv_restore.yaml" if option == "fidelity" else RESAMPLE, **{option: value})


@pytest.mark.usefixtures("masked")
def test_a_mask_may_be_a_picture(chain: Any) -> None:
    covered = np.zeros((16, 16), np.uint8)
    covered[8:] = 255
    made = restorer(chain)
    array, picture = (made.restore([colour(2)], masks=[mask])[0] for mask in (covered, Image.fromarray(covered)))  # type: ignore[list-item]
    assert array.status == picture.status != "failed" and array.occluded_fraction == picture.occluded_fraction
    assert made.restore([colour(2)], masks=["mask.png"])[0].status == "failed"  # type: ignore[list-item]


def test_a_mask_that_no_stage_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="masks: no stage of config reads a mask"):
        restorer().restore([colour(0)], masks=[np.zeros((16, 16), np.uint8)])
    assert restorer().restore([colour(0)], masks=[None])[0].status == "ok"


def test_a_square_mask_is_one_of_the_padded_picture_and_no_mask_is_stretched() -> None:
    frame = np.zeros((40, 40), np.float32)
    frame[:, 8:20] = 1
    own = frame[:, 4:36]  # of a picture of 16x20 px, padded by 2 px on the left and on the right, at twice its size
    for mask in (frame, own):
        np.testing.assert_array_equal(fit_mask(mask, (20, 16), False), own[::2, ::2])
        np.testing.assert_array_equal(fit_mask(mask, (20, 16), True), frame[::2, ::2])
    assert fit_mask(np.ones((67, 54), np.float32), (20, 16), True).shape == (20, 20), "67 x 53.6, rounded"
    for shape in ((20, 40), (16, 20), (128, 96)):
        with pytest.raises(ImageError, match=f"mask of {shape[1]}x{shape[0]} px: expected .*, 16x20 px") as caught:
            fit_mask(np.ones(shape, np.float32), (20, 16), True)
        assert caught.value.status == "failed"


def after(*stages: dict[str, Any]) -> Restorer:
    """The shipped restorer behind other stages."""
    if shipped_chain() is None:
        pytest.skip("the shipped weights are not here")
    return restorer({"version": 1, "name": "x", "stages": [*stages, {"stage": "prouigan"}]})


def test_a_stage_behind_another_checks_what_it_is_handed() -> None:
    levels = after({"stage": "levels"})
    large, long = levels.restore([np.zeros((128, 128, 3), np.uint8), thumbnail(0, (16, 40))])
    for result, reason in ((large, "128x128 px: .*12 to 64 px"), (long, "40x16 px: longer than")):
        assert result.status == "unsupported" and result.image is None
        assert re.match(rf"stages\[1\] \(prouigan\): {reason}", result.error or ""), result.error


@pytest.mark.parametrize("size", [(100, 100), (256, 256), (120, 100)])
def test_a_face_reduced_first_is_restored_like_the_thumbnail_it_was_reduced_to(size: tuple[int, int]) -> None:
    result = after({"stage": "resample", "size": 16}).restore([thumbnail(0, size)])[0]
    assert result.image is not None and result.image.shape == (128, 128, 3)
    assert result.lr_consistency_db is not None and result.lr_consistency_db > 40
    assert result.notes.get("padded_from_px") == ([16, 13] if size == (120, 100) else None)


def test_a_mask_follows_a_face_of_other_pixel_shape() -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[8:] = 1
    made = after({"stage": "aspect", "pixel_aspect": 1.25})
    result = made.restore([thumbnail(0)], masks=[mask])[0]
    assert result.notes["padded_from_px"] == [16, 20] and result.occlusion is not None
    assert result.occlusion[:60].max() < 0.2 and result.occlusion[70:].min() > 0.8
