"""The stage `paste`: round trip, no seam, nothing changed outside, light matched but not under a cover."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from landmarks.alignment import invert, similarity, warp
from stages.batch import FaceBatch
from stages.paste import Paste, PasteConfig

CENTRE, SIDE = np.array([225.0, 115.0]), 130.0  # of the astronaut's face


def stage(**options: float) -> Paste:
    return Paste(PasteConfig(**options), torch.device("cpu"), "fp32")


def scene(size: int = 128, turn: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame (512, 512, 3) in [0, 1], the face cut from it at `size`, and the matrix back."""
    frame = data.astronaut().astype(np.float32) / 255
    half = SIDE / 2 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = CENTRE + half @ spin.T
    edges = np.array([(-0.5, -0.5), (size - 0.5, -0.5), (size - 0.5, size - 0.5), (-0.5, size - 0.5)])
    matrix = similarity(corners, edges)
    return frame, warp(frame, matrix, size), invert(matrix)


def mask_of(paste: Paste, size: int = 128, parsing: torch.Tensor | None = None) -> np.ndarray:
    image = torch.zeros(1, 3, size, size)
    batch = FaceBatch(("a",), image, image, (0,), torch.zeros(1, dtype=torch.bool), parsing=parsing)
    return paste.mask(batch)[0, 0].numpy()


def gradients(picture: np.ndarray) -> np.ndarray:
    grey = picture.mean(2)
    return np.hypot(*np.gradient(grey))


def test_a_face_put_back_where_it_was_changes_nothing_to_see() -> None:
    frame, face, back = scene(256)
    paste = stage()
    pasted = paste.paste(frame, face, mask_of(paste, 256), back)
    changed = np.abs(pasted - frame)[np.abs(pasted - frame) > 0]
    assert changed.mean() < 0.02 and np.quantile(changed, 0.99) < 0.12, "resampling alone"
    assert pasted.dtype == np.float32 and np.array_equal(frame, data.astronaut().astype(np.float32) / 255)


@pytest.mark.parametrize("size", [64, 128, 512])
@pytest.mark.parametrize("change", ["brighter", "tinted", "smooth"])
def test_the_gradient_across_the_border_stays_within_the_pictures_own(size: int, change: str) -> None:
    frame, face, back = scene(size)
    if change == "brighter":
        face = np.clip(face + 0.15, 0, 1)
    elif change == "tinted":
        face = np.clip(face * [1.1, 0.95, 0.8], 0, 1).astype(np.float32)
    else:
        face = cv2.GaussianBlur(face, (0, 0), size / 20)
    paste = stage()
    mask = mask_of(paste, size)
    pasted = paste.paste(frame, face, mask, back)
    share = cv2.warpAffine(mask, back, (512, 512))
    border = (share > 0.01) & (share < 0.6)
    assert border.sum() > 1000
    before, after = gradients(frame), gradients(pasted)
    assert after[border].mean() <= 1.1 * before[border].mean()
    assert np.quantile(after[border], 0.99) <= 1.1 * np.quantile(before[border], 0.99)
    hard = np.where((share > 0.3)[..., None], np.clip(frame + 0.15, 0, 1), frame)
    if change == "brighter":
        assert gradients(hard)[border].mean() > 1.1 * before[border].mean(), "a hard seam would have been noticed"


def test_nothing_outside_the_face_changes_and_a_face_over_the_edge_is_cut() -> None:
    frame, face, back = scene()
    paste = stage()
    pasted = paste.paste(frame, 1 - face, mask_of(paste), back)
    yx = np.mgrid[:512, :512]
    far = np.hypot(yx[1] - CENTRE[0], yx[0] - CENTRE[1]) > SIDE * 0.72
    assert np.array_equal(pasted[far], frame[far]) and not np.array_equal(pasted, frame)
    over = back.copy()
    over[:, 2] -= CENTRE
    assert paste.paste(frame, face, mask_of(paste), over).shape == frame.shape
    over[:, 2] -= 5000
    assert np.array_equal(paste.paste(frame, face, mask_of(paste), over), frame)


def test_the_blend_is_zero_along_the_border_and_follows_the_parsing() -> None:
    parsing = torch.zeros(1, 19, 32, 32)
    parsing[:, 0] = 1
    parsing[:, 0, 8:26, 6:26], parsing[:, 1, 8:26, 6:26] = 0, 1
    narrow, wide = mask_of(stage(feather=0.02), parsing=parsing), mask_of(stage(feather=0.1), parsing=parsing)
    for mask in (narrow, wide, mask_of(stage())):
        assert mask.max() <= 1 and mask.min() >= 0
        assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0
    assert narrow[64, 64] == pytest.approx(1, abs=1e-4) and narrow[20, 64] < 0.01 and narrow[60, 110] < 0.01
    steep = [np.abs(np.diff(m[64])).max() for m in (narrow, wide)]
    assert steep[1] < steep[0] / 2
    whole = torch.zeros(1, 19, 32, 32)
    whole[:, 1] = 1
    assert mask_of(stage(), parsing=whole)[0].max() == 0, "even a face that fills the crop ends before its border"


def test_light_is_matched_but_the_colour_of_a_cover_is_not_taken_over() -> None:
    frame, face, back = scene()
    paste, mask = stage(), mask_of(stage())
    dark = paste.paste(frame, np.clip(face - 0.2, 0, 1), mask, back)
    unmatched = stage(colour_match=0).paste(frame, np.clip(face - 0.2, 0, 1), mask, back)
    inside = cv2.warpAffine(mask, back, (512, 512)) > 0.9
    assert abs((dark - frame)[inside].mean()) < 0.03 < abs((unmatched - frame)[inside].mean())
    covered_face = face.copy()
    covered_face[70:] = (0, 0, 1)
    cover = np.zeros((128, 128), np.float32)
    cover[66:] = 1
    masked = frame.copy()
    there = cv2.warpAffine(cover, back, (512, 512)) > 0.5
    masked[there] = (0, 0, 1)
    blind = paste.paste(masked, face, mask, back)[there & inside].mean(0)
    told = paste.paste(masked, face, mask, back, cover)[there & inside].mean(0)
    assert blind[2] - blind[0] > told[2] - told[0] + 0.2, "blue of the mask must not colour the skin"
