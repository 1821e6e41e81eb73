"""Picture metrics against scikit-image, scipy and cases worked out by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from skimage.color import rgb2ycbcr
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluation import metrics


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    truth = np.ascontiguousarray(astronaut()[50:178, 150:278])
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    return truth, np.clip(truth + noise, 0, 255).astype(np.uint8)


def test_psnr_equals_scikit_image(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    truth, other = pictures
    assert metrics.psnr(truth, other) == pytest.approx(peak_signal_noise_ratio(truth, other), abs=1e-9)


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert metrics.psnr(black, black + np.uint8(255)) == pytest.approx(0.0)
    assert metrics.psnr(black, black) == metrics.MAX_PSNR_DB


def test_psnr_within_a_region_ignores_the_rest() -> None:
    a, b = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    b[0] = 255
    region = np.zeros((4, 4), bool)
    region[0] = True
    assert metrics.psnr(a, b, region) == pytest.approx(0.0)
    assert metrics.psnr(a, b, ~region) == metrics.MAX_PSNR_DB


def test_ssim_equals_scikit_image_in_colour_and_grey(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    truth, other = pictures
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert metrics.ssim(truth, other) == pytest.approx(
        structural_similarity(truth, other, channel_axis=2, **options), abs=1e-6
    )
    grey, other_grey = truth[..., 0], other[..., 0]
    assert metrics.ssim(grey, other_grey) == pytest.approx(structural_similarity(grey, other_grey, **options), abs=1e-6)
    assert metrics.ssim(truth, truth) == pytest.approx(1.0)


def test_luma_equals_scikit_image(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(metrics.luma(pictures[0]), np.round(rgb2ycbcr(pictures[0])[..., 0]))


def test_area_average_is_the_mean_of_each_cell() -> None:
    values = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(metrics.area_average(values, 2), [[2.5, 4.5], [10.5, 12.5]])
    with pytest.raises(ValueError, match="whole cells"):
        metrics.area_average(values, 3)


def test_lr_consistency_of_an_enlargement_by_whole_pixels_is_perfect() -> None:
    lq = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    restored = lq.repeat(8, axis=0).repeat(8, axis=1)
    assert metrics.lr_consistency_db(restored, lq) == metrics.MAX_PSNR_DB
    spoilt, visible = restored.copy(), np.ones((16, 16), bool)
    spoilt[:8, :8], visible[0, 0] = 255 - spoilt[:8, :8], False
    assert metrics.lr_consistency_db(spoilt, lq) < 50
    assert metrics.lr_consistency_db(spoilt, lq, visible) == metrics.MAX_PSNR_DB


def test_nme_is_in_units_of_the_outer_eye_corners() -> None:
    reference = np.zeros((68, 2))
    reference[36], reference[45] = (10, 20), (60, 20)  # 50 px apart
    assert metrics.nme(reference + (3, 4), reference) == pytest.approx(0.1)  # every point is off by 5 px


def test_overlap_of_hand_made_maps() -> None:
    a, b = np.array([True, True, False, False]), np.array([False, True, True, False])
    assert metrics.overlap(a, b) == (1, 3)
    assert metrics.overlap(a & ~a, b & ~b) == (0, 0)


def test_rank_correlation_equals_scipy_with_ties_and_is_zero_for_a_constant() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(0, 10, (20, 20))
    b = a + rng.normal(0, 4, a.shape).round()
    assert metrics.rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)
    assert metrics.rank_correlation(a, np.ones_like(a)) == 0.0
