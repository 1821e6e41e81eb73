"""Plain resampling keeps what it should keep."""

import numpy as np
import pytest
import torch
from PIL import Image

from stages.batch import FaceBatch
from stages.resample import Resample, ResampleConfig, lanczos_matrix, resample


def batch(size: int = 16) -> FaceBatch:
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    points = torch.rand(2, 68, 2, generator=torch.Generator().manual_seed(1)) * size
    return FaceBatch(("a", "b"), image, image, (1, 2), torch.tensor([False, True]), landmarks=points)


@pytest.mark.parametrize("method", ["lanczos", "bicubic", "nearest", "area"])
def test_a_flat_picture_stays_flat_and_sizes_are_right(method: str) -> None:
    out = resample(torch.full((1, 3, 16, 12), 0.4), (40, 30), method)
    assert out.shape == (1, 3, 40, 30)
    torch.testing.assert_close(out, torch.full_like(out, 0.4))


@pytest.mark.parametrize(
    ("method", "other"), [("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("size", [37, 9])
def test_it_agrees_with_pillow(method: str, other: Image.Resampling, size: int) -> None:
    pixels = np.random.default_rng(0).random((16, 16), np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), other)).clip(0, 1)
    np.testing.assert_allclose(
        resample(torch.from_numpy(pixels)[None, None], (size, size), method)[0, 0], expected, atol=2e-3
    )


def test_rows_of_the_matrix_sum_to_one() -> None:
    torch.testing.assert_close(lanczos_matrix(16, 50).sum(1), torch.ones(50))


def test_landmarks_and_transform_follow_the_picture() -> None:
    given = batch()
    given = given.replace(to_source=torch.tensor([[[2.0, 0, 3], [0, 2, 5]]]).repeat(2, 1, 1))
    stage = Resample(ResampleConfig(size=48), torch.device("cpu"), "fp32")
    out = stage(given)
    assert out.image.shape == (2, 3, 48, 48) and given.image.shape == (2, 3, 16, 16)
    assert (
        given.landmarks is not None
        and out.landmarks is not None
        and out.to_source is not None
        and given.to_source is not None
    )

    def source_of(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]

    torch.testing.assert_close(source_of(out.landmarks, out.to_source), source_of(given.landmarks, given.to_source))
