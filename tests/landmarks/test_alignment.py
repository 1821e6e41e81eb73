"""The canonical frame: known values, round trips under 0.1 px, what warping does to pixels."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.alignment import (
    CANONICAL_FIVE_POINTS,
    apply,
    canonical_points,
    invert,
    similarity,
    to_canonical,
    warp,
)


def rotation(angle_deg: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(angle_deg)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def blob(size: int, centre: tuple[float, float], sigma: float = 3.0) -> np.ndarray:
    """A bright spot on black, (size, size) float32."""
    y, x = np.mgrid[:size, :size]
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2)).astype(np.float32)


def centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


def test_the_canonical_points_are_those_of_the_contract() -> None:
    np.testing.assert_array_equal(canonical_points(128), [(43, 50), (85, 50), (64, 75), (46, 94), (82, 94)])


def test_other_sizes_keep_the_frame_edges_in_place() -> None:
    # Edges lie half a pixel outside the first and last centre, at every size.
    np.testing.assert_allclose((canonical_points(16) + 0.5) / 16, (canonical_points(768) + 0.5) / 768)
    np.testing.assert_allclose(canonical_points(256)[0], (43.5 * 2 - 0.5, 50.5 * 2 - 0.5))


def test_a_quarter_turn_is_recovered_exactly() -> None:
    source = np.array([(0.0, 0.0), (2.0, 0.0), (0.0, 1.0)])
    matrix = similarity(source, np.array([(5.0, 7.0), (5.0, 9.0), (4.0, 7.0)]))
    np.testing.assert_allclose(matrix, [[0, -1, 5], [1, 0, 7]], atol=1e-12)


def test_no_reflection_is_ever_used() -> None:
    matrix = similarity(CANONICAL_FIVE_POINTS * (-1, 1), CANONICAL_FIVE_POINTS)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_the_fit_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    source = CANONICAL_FIVE_POINTS + rng.normal(0, 4, (5, 2))
    best = similarity(source, CANONICAL_FIVE_POINTS)

    def error(matrix: np.ndarray) -> float:
        return float(((apply(matrix, source) - CANONICAL_FIVE_POINTS) ** 2).sum())

    for turn, scale, x, y in rng.normal(0, 1, (50, 4)):
        nudge = rotation(turn, 1 + scale / 100, (x, y))
        joined = np.concatenate([nudge[:, :2] @ best[:, :2], (nudge[:, :2] @ best[:, 2] + nudge[:, 2])[:, None]], 1)
        assert error(best) <= error(joined) + 1e-9


def test_points_in_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), CANONICAL_FIVE_POINTS)


@settings(max_examples=60, deadline=None)
@given(
    angle_deg=st.floats(-180, 180),
    scale=st.floats(0.05, 20),
    x=st.floats(-2000, 2000),
    y=st.floats(-2000, 2000),
    size=st.sampled_from([16, 32, 64, 128, 512, 768]),
)
def test_aligning_and_going_back_stays_within_a_tenth_of_a_pixel(
    angle_deg: float, scale: float, x: float, y: float, size: int
) -> None:
    true = rotation(angle_deg, scale, (x, y))
    in_picture = apply(true, CANONICAL_FIVE_POINTS)
    matrix = to_canonical(in_picture, size)
    assert np.abs(apply(matrix, in_picture) - canonical_points(size)).max() < 0.1
    assert np.abs(apply(invert(matrix), apply(matrix, in_picture)) - in_picture).max() < 0.1


def test_sixty_eight_points_align_by_their_five() -> None:
    points = np.random.default_rng(3).uniform(0, 100, (68, 2))
    points[36:42], points[42:48] = (20, 30), (60, 32)
    points[30], points[48], points[54] = (40, 55), (25, 75), (58, 76)
    five = np.array([(20, 30), (60, 32), (40, 55), (25, 75), (58, 76)])
    np.testing.assert_allclose(to_canonical(points), to_canonical(five))


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("angle_deg", [0.0, 8.0, -35.0])
def test_pixels_go_where_points_go(size: int, angle_deg: float) -> None:
    spot = (96.3, 110.8)
    picture = blob(200, spot)
    matrix = rotation(angle_deg, size / 160, (0, 0))
    matrix[:, 2] = (size - 1) / 2 - apply(matrix, np.array([100.0, 100.0]))
    warped = warp(picture, matrix, size)
    assert np.abs(centroid(warped) - apply(matrix, np.array(spot))).max() < 0.1
    back = cv2.warpAffine(warped, invert(matrix), (200, 200), flags=cv2.INTER_LINEAR)
    assert np.abs(centroid(back) - spot).max() < 0.1


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256), np.float32)
    stripes[:, ::2] = 1  # finer than the frame can show: only their mean may come through
    matrix = np.array([[1 / 8, 0, -7 / 16], [0, 1 / 8, -7 / 16]])
    assert np.abs(warp(stripes, matrix, 32) - 0.5).max() < 0.02


def test_a_flat_picture_stays_flat_with_its_type_and_channels() -> None:
    picture = np.full((40, 50, 3), (10, 100, 200), np.uint8)
    for scale in (0.3, 1.0, 4.0):
        warped = warp(picture, rotation(20, scale, (3, -4)), 64)
        assert warped.dtype == np.uint8 and warped.shape == (64, 64, 3)
        assert (warped == (10, 100, 200)).all()


def test_beyond_the_border_the_picture_is_reflected() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32), (32, 1))
    warped = warp(ramp, np.array([[1.0, 0, 8], [0, 1, 0]]), 32)
    np.testing.assert_allclose(warped[5, :9], np.arange(8, -1, -1), atol=1e-4)
