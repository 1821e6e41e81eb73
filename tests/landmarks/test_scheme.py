"""The 68-point scheme: order, five points, mirror, unit of length."""

import numpy as np

from landmarks import scheme
from landmarks.scheme import MIRROR, POINT_COUNT, five_points, inter_ocular_px


def face(seed: int = 0) -> np.ndarray:
    """68 points anywhere: what the scheme does must not depend on where they lie."""
    return np.random.default_rng(seed).uniform(0, 128, (POINT_COUNT, 2))


def test_the_parts_cover_every_point_once() -> None:
    parts = (
        scheme.JAW, scheme.RIGHT_BROW, scheme.LEFT_BROW, scheme.NOSE_BRIDGE, scheme.NOSE_BASE,
        scheme.RIGHT_EYE, scheme.LEFT_EYE, scheme.OUTER_LIP, scheme.INNER_LIP,
    )  # fmt: skip
    assert sorted(i for part in parts for i in part) == list(range(POINT_COUNT))


def test_five_points_are_eye_means_nose_tip_and_mouth_corners() -> None:
    points = face()
    expected = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
    np.testing.assert_allclose(five_points(points), expected)


def test_five_points_take_any_number_of_faces() -> None:
    faces = np.stack([face(i) for i in range(6)]).reshape(2, 3, POINT_COUNT, 2)
    five = five_points(faces)
    assert five.shape == (2, 3, 5, 2)
    np.testing.assert_allclose(five[1, 2], five_points(faces[1, 2]))


def test_mirroring_twice_changes_nothing() -> None:
    assert sorted(MIRROR) == list(range(POINT_COUNT))
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(POINT_COUNT))


def test_the_mirror_swaps_the_sides_and_keeps_the_middle() -> None:
    for right, left in ((scheme.RIGHT_BROW, scheme.LEFT_BROW), (scheme.RIGHT_EYE, scheme.LEFT_EYE)):
        assert set(MIRROR[list(right)]) == set(left)
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    assert [i for i in range(POINT_COUNT) if MIRROR[i] == i] == middle
    pairs = {0: 16, 17: 26, 31: 35, 36: 45, 39: 42, 37: 44, 41: 46, 48: 54, 49: 53, 59: 55, 60: 64, 67: 65}
    assert {i: int(MIRROR[i]) for i in pairs} == pairs


def test_five_points_of_a_mirrored_face_are_the_mirrored_five_points() -> None:
    points, width = face(), 128
    flipped = (points * (-1, 1) + (width - 1, 0))[MIRROR]
    expected = (five_points(points) * (-1, 1) + (width - 1, 0))[[1, 0, 2, 4, 3]]
    np.testing.assert_allclose(five_points(flipped), expected)


def test_the_inter_ocular_distance_joins_the_outer_eye_corners() -> None:
    points = np.zeros((2, POINT_COUNT, 2))
    points[1, 36], points[1, 45] = (10, 20), (13, 24)
    np.testing.assert_allclose(inter_ocular_px(points), [0, 5])
