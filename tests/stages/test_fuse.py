"""The stage `fuse`: registration by hand-made moves, less noise with more frames, outliers, one frame."""

import cv2
import numpy as np
import pytest
import torch

from stages.batch import FaceBatch
from stages.fuse import Fuse, FuseConfig, fuse, places, register, taps


def blobs(cells: int = 6, size: int = 128) -> np.ndarray:
    """A smooth coloured picture with `cells` blobs a side, (size, size, 3) in [0, 1]."""
    rng = np.random.default_rng(3)
    small = rng.uniform(0.1, 0.9, (cells, cells, 3))
    # float32: OpenCV 5 spoils a corner of float64 pictures in cubic warps
    return np.clip(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1).astype(np.float32)


def moments(count: int, noise: float = 0.05, cells: int = 6, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noisy thumbnails of one picture under known shifts (count, 2) of thumbnail pixels; the first is not moved."""
    rng, large = np.random.default_rng(0), blobs(cells)
    factor = len(large) // size
    shifts = np.concatenate([np.zeros((1, 2)), rng.uniform(-0.6, 0.6, (count - 1, 2))])
    frames = []
    for shift in shifts:
        move = np.array([[1, 0, shift[0] * factor], [0, 1, shift[1] * factor]])
        moved = cv2.warpAffine(large, move, large.shape[:2], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        small = cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA)
        frames.append(small + rng.normal(0, noise, small.shape))
    return np.clip(np.stack(frames), 0, 1).astype(np.float64), shifts


def error(picture: np.ndarray) -> float:
    """Root mean square distance from the truth, at 16 px."""
    truth = cv2.resize(blobs(), (16, 16), interpolation=cv2.INTER_AREA)
    return float(np.sqrt(((cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA) - truth) ** 2).mean()))


def test_shifts_are_found_to_a_small_part_of_a_pixel() -> None:
    frames, shifts = moments(6, noise=0.01)
    grey = frames.mean(3)
    for k in range(1, 6):
        move, (_, gain), alike = register(grey[k], grey[0], np.zeros(4))
        assert np.allclose(move[:2], -shifts[k], atol=0.08) and abs(move[2]) < 0.02 and abs(move[3]) < 0.02
        assert alike > 0.98 and gain == pytest.approx(1, abs=0.1)


def test_brightness_and_contrast_of_a_frame_are_found() -> None:
    frames, _ = moments(2, noise=0.0)
    grey = frames.mean(3)
    _, (offset, gain), _ = register(0.7 * grey[1] + 0.1, grey[0], np.zeros(4))
    assert gain == pytest.approx(0.7, abs=0.05) and offset == pytest.approx(0.1, abs=0.04)


def test_more_frames_mean_less_noise() -> None:
    frames, _ = moments(16)
    one, four, sixteen = (error(fuse(frames[:n])[0]) for n in (1, 4, 16))
    assert one > 1.4 * four and four > 1.4 * sixteen


def test_twice_the_size_shows_more_than_enlarging() -> None:
    frames, _ = moments(16, noise=0.01, cells=11)  # finer than the thumbnails' pixels can show
    truth = cv2.resize(blobs(11), (32, 32), interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(fuse(frames, 1)[0], (32, 32), interpolation=cv2.INTER_CUBIC)
    double, used, shift = fuse(frames, 2)
    assert double.shape == (32, 32, 3) and len(used) == 16 and 0.4 < shift < 1
    assert ((double - truth) ** 2).mean() < ((enlarged - truth) ** 2).mean()


def test_a_frame_of_something_else_is_left_out_and_a_covered_one_does_little_harm() -> None:
    frames, _ = moments(8)
    good = error(fuse(frames)[0])
    foreign = frames.copy()
    foreign[3] = np.random.default_rng(5).uniform(0, 1, foreign[3].shape)
    picture, used, _ = fuse(foreign)
    assert 3 not in used and error(picture) < 1.2 * good
    covered = frames.copy()
    covered[5, 9:13, 4:9] = 1.0
    assert error(fuse(covered)[0]) < 1.35 * good


def test_one_frame_and_pictures_pass_unchanged() -> None:
    frames, _ = moments(1)
    assert np.array_equal(fuse(frames, 2)[0], frames[0])
    image = torch.rand(2, 3, 16, 16)
    batch = FaceBatch(("a", "b"), image, image, (0, 1), torch.zeros(2, dtype=torch.bool))
    stage = Fuse(FuseConfig(), torch.device("cpu"), "fp32")
    assert stage(batch) is batch and stage.moments == 16


def test_the_stage_gives_each_face_what_it_gets_alone_and_leaves_its_input() -> None:
    frames = torch.from_numpy(np.stack([moments(4)[0], moments(4, 0.02)[0]])).permute(0, 1, 4, 2, 3).float()
    before = frames.clone()
    batch = FaceBatch(("a", "b"), frames[:, 0], frames[:, 0], (0, 1), torch.zeros(2, dtype=torch.bool), frames=frames)
    stage = Fuse(FuseConfig(frames=4), torch.device("cpu"), "fp32")
    together, alone = stage(batch), stage(batch.cut(1, 2))
    assert together.image.shape == (2, 3, 32, 32) and together.frames is None
    assert torch.equal(together.image[1:], alone.image) and torch.equal(together.observed, together.image)
    assert torch.equal(frames, before) and together.notes[0]["fused"]["frames"] == [0, 1, 2, 3]
    assert float(together.image.min()) >= 0 and float(together.image.max()) <= 1


def test_interpolation_gives_back_the_pixels_and_a_plane() -> None:
    picture = np.random.default_rng(0).uniform(size=(8, 8))
    index, weight = taps(places(8, np.zeros(4)).reshape(-1, 2), 8)
    assert np.allclose((picture.ravel()[index] * weight).sum(1), picture.ravel())
    plane = np.add.outer(2.0 * np.arange(8), np.arange(8))
    index, weight = taps(np.array([[3.25, 4.5]]), 8)
    assert (plane.ravel()[index] * weight).sum() == pytest.approx(2 * 4.5 + 3.25)
