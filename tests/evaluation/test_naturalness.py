"""Distances between clouds against hand-made cases and a second implementation; NIQE on sheets of faces."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evaluation.naturalness import (
    frechet_distance,
    kernel_distance,
    niqe_of_faces,
    sheet,
    with_interval,
)
from stages import basicsr_adapter


def cloud(n: int, dimensions: int = 6, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / dimensions**0.5
    return rng.normal(size=(n, dimensions)) @ mixing * scale + shift


def test_frechet_distance_equals_the_formula_with_scipys_matrix_root() -> None:
    a, b = cloud(60), cloud(80, seed=1, shift=0.3, scale=1.4)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_one_dimension_is_the_difference_of_mean_and_deviation() -> None:
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])  # deviations 2 ** .5 and 8 ** .5
    assert frechet_distance(a, b) == pytest.approx(3**2 + (8**0.5 - 2**0.5) ** 2)


def test_frechet_distance_is_zero_for_equal_clouds_and_a_shift_squared_for_a_shift() -> None:
    a = cloud(40, dimensions=64)  # fewer points than dimensions: the covariance is singular
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.25, rel=1e-6)


def test_kernel_distance_equals_a_plain_loop() -> None:
    a, b = cloud(7), cloud(7, seed=1, shift=0.5)

    scale = np.mean([x @ x for x in b])

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / scale + 1) ** 3)

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([k(x[i], y[j]) for i in range(7) for j in range(7) if i != j]))

    assert kernel_distance(a, b) == pytest.approx(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over clouds of one law is 0, on both sides of it; the biased form would lie above."""
    values = np.array([kernel_distance(cloud(20, seed=i), cloud(20, seed=1000 + i)) for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert (values < 0).mean() > 0.3
    assert kernel_distance(cloud(200), cloud(200, seed=1, shift=1.0)) > 5 * values.std()


def test_a_face_is_not_compared_with_itself() -> None:
    a = cloud(30)
    assert kernel_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="same faces"):
        kernel_distance(a, cloud(29))


def test_faces_without_an_embedding_are_left_out_on_both_sides() -> None:
    a, b = cloud(30), cloud(30, seed=1)
    a[3], b[7] = np.nan, np.nan
    kept = [i for i in range(30) if i not in (3, 7)]
    found = with_interval(kernel_distance, a, b)
    assert found.n == 28 and found.value == pytest.approx(kernel_distance(a[kept], b[kept]))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_clouds_that_cannot_be_compared_are_refused(distance) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="at least two points"):
        distance(cloud(1), cloud(5))
    with pytest.raises(ValueError, match="two clouds"):
        distance(cloud(5, 4), cloud(5, 6))
    with pytest.raises(ValueError, match="not finite"):
        distance(cloud(5), np.full((5, 6), np.nan))


def test_the_interval_holds_the_true_distance_about_as_often_as_it_says() -> None:
    """Difference of means squared, whose law is known: 0.5 ** 2 of one dimension, for large n."""

    def squared(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.mean() - b.mean()) ** 2)

    held = 0
    for i in range(100):
        rng = np.random.default_rng(i)
        found = with_interval(squared, rng.normal(size=(400, 1)), rng.normal(0.5, 1, (400, 1)), seed=i)
        held += found.low <= 0.25 <= found.high
    assert 88 <= held <= 99


def test_an_interval_needs_rows_of_the_same_faces() -> None:
    with pytest.raises(ValueError, match="same faces"):
        with_interval(kernel_distance, cloud(6), cloud(7))
    two = with_interval(frechet_distance, cloud(2), cloud(2, seed=1))
    assert two.n == 2 and np.isnan(two.low)


def test_a_sheet_holds_the_middle_of_nine_faces_in_order() -> None:
    faces = [np.full((128, 128, 3), i, np.uint8) for i in range(9)]
    faces[4][:16] = 255  # outside the middle 96 px
    laid = sheet(faces)
    assert laid.shape == (288, 288, 3)
    assert [int(laid[96 * r + 5, 96 * c + 5, 0]) for r in range(3) for c in range(3)] == list(range(9))
    assert laid.max() == 8


@pytest.mark.skipif(not basicsr_adapter.available(), reason="basicsr is not installed")
def test_niqe_calls_noise_less_natural_than_photographs() -> None:
    from skimage import data

    picture = data.astronaut()
    faces = [picture[y : y + 128, x : x + 128] for y in (0, 128, 256) for x in (0, 128, 256)]
    noisy = np.random.default_rng(0).integers(0, 256, (9, 128, 128, 3)).astype(np.uint8)
    natural = niqe_of_faces(faces * 2)
    assert natural.shape == (2,) and natural[0] == natural[1]
    assert niqe_of_faces(list(noisy))[0] > natural[0] + 5


def test_niqe_of_too_few_faces_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 9 faces"):
        niqe_of_faces([np.zeros((128, 128, 3), np.uint8)] * 8)
