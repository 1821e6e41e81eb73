"""dlib's descriptor: one person near, another far, no face none."""

import cv2
import numpy as np
import pytest
from skimage import data

from landmarks.backends import create, why_unavailable

if why_unavailable("dlib") is not None:
    pytest.skip("needs the extra dlib", allow_module_level=True)

from evaluation.dlib_descriptor import DlibEmbedder, dlib_descriptor


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:256, 100:356])


@pytest.fixture(scope="module")
def points(picture: np.ndarray) -> np.ndarray:
    found = create("dlib").detect(picture)[0].landmarks
    assert found is not None
    return found


def test_a_face_keeps_its_descriptor_when_shrunk_flipped_and_darkened(picture: np.ndarray, points: np.ndarray) -> None:
    whole = dlib_descriptor(picture, points)
    assert whole is not None and whole.shape == (128,) and whole.dtype == np.float32
    half = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = dlib_descriptor(half, (points + 0.5) / 2 - 0.5)
    dark = dlib_descriptor((picture * 0.6).astype(np.uint8), points)
    found = dlib_descriptor(picture)
    for other in (small, dark, found):
        assert other is not None and np.linalg.norm(other - whole) < 0.3


def test_other_people_are_far_away(picture: np.ndarray, points: np.ndarray) -> None:
    hers = dlib_descriptor(picture, points)
    others = (data.lfw_subset()[:4] * 255).astype(np.uint8)  # 25x25 grey faces, eyes about (8, 9) and (17, 9)
    template = (points - points.min(0)) / np.ptp(points, axis=0) * (17, 19) + (4, 6)
    for face in others:
        theirs = dlib_descriptor(np.stack([face] * 3, -1), template)
        assert hers is not None and theirs is not None and np.linalg.norm(theirs - hers) > 0.5


def test_no_face_is_a_value_and_never_an_embedding(picture: np.ndarray, points: np.ndarray) -> None:
    assert dlib_descriptor(np.full((64, 64, 3), 90, np.uint8)) is None
    assert dlib_descriptor(picture, np.full((68, 2), np.nan)) is None
    assert dlib_descriptor(picture, np.zeros((68, 2))) is None
    with pytest.raises(ValueError, match=r"\(68, 2\)"):
        dlib_descriptor(picture, points[:5])


def test_the_embedder_gives_unit_rows_and_refuses_what_is_no_face(picture: np.ndarray, points: np.ndarray) -> None:
    rows = DlibEmbedder()([picture, picture], [points, points])
    assert rows.shape == (2, 128) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="face 1"):
        DlibEmbedder()([picture, picture], [points, np.full((68, 2), np.nan)])
