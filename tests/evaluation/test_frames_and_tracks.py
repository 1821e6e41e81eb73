"""The made tracks and frames that several-frame restoration and small-face detection are measured on."""

import cv2
import numpy as np
import pytest
from skimage import data

from evaluation.detection import FRAME_SIZE, SCENES, background, frame_with
from evaluation.faces import EvaluationFace
from evaluation.multi_frame import batch_of, track
from stages.degradation import DegradationConfig


def face(name: str = "a") -> EvaluationFace:
    picture = cv2.resize(data.astronaut()[50:178, 160:288], (128, 128))
    return EvaluationFace(name, name, "test", picture, None, {})


def test_a_track_begins_in_place_and_its_frames_differ_in_place_and_noise() -> None:
    clean = track(face(), 4, DegradationConfig.clean(16))
    plain = cv2.resize(face().image, (16, 16), interpolation=cv2.INTER_AREA) / 255
    assert clean.shape == (4, 16, 16, 3) and np.abs(clean[0] - plain).max() < 0.01
    assert all(np.abs(clean[k] - clean[0]).mean() > 0.01 for k in range(1, 4))
    noisy = track(face(), 3)
    assert np.array_equal(noisy, track(face(), 3)) and not np.array_equal(noisy, track(face("b"), 3))
    batch = batch_of(noisy[None])
    assert batch.frames is not None and batch.frames.shape == (1, 3, 3, 16, 16)
    assert np.allclose(batch.image[0].permute(1, 2, 0).numpy(), noisy[0])


@pytest.mark.parametrize("size", [16, 48])
def test_faces_lie_where_they_are_said_to_and_apart(size: int) -> None:
    frame, places = frame_with([face()] * 4, size, 2)
    small = cv2.resize(face().image, (size, size), interpolation=cv2.INTER_AREA)
    assert frame.shape == (*FRAME_SIZE, 3) and len(places) == 4
    for x0, y0, x1, y1 in places.astype(int):
        assert np.array_equal(frame[y0:y1, x0:x1], small)
    assert all(background(name, 1).shape == (*FRAME_SIZE, 3) for name in SCENES)
