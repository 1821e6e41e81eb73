"""The exact step: visible pixels agree, covered ones are left alone."""

import pytest
import torch

from stages.consistency import agree, average_to, averaging_matrix, consistency_db


def smooth(size: int, seed: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("size", [12, 16, 17, 24, 50, 64])
def test_visible_pixels_agree_with_any_input_size(size: int) -> None:
    image, observed = smooth(128, 0), smooth(size, 1)
    fixed = agree(image, observed, torch.ones(1, 1, size, size))
    assert consistency_db(image, observed, torch.ones(1, 1, size, size)).item() < 25
    assert consistency_db(fixed, observed, torch.ones(1, 1, size, size)).item() > 45


def test_covered_pixels_keep_their_average() -> None:
    image, observed = smooth(128, 0), smooth(16, 1)
    visible = torch.ones(1, 1, 16, 16)
    visible[..., 8:, :] = 0
    fixed = agree(image, observed, visible)
    before, after = average_to(image, 16), average_to(fixed, 16)
    assert (after - before)[..., 8:, :].abs().max() < 0.02
    assert (after - observed)[..., :8, :].abs().max() < 0.01


def test_differences_within_the_slack_stay() -> None:
    image = smooth(128, 0)
    observed = average_to(image, 16) + 0.01
    assert torch.equal(agree(image, observed, torch.ones(1, 1, 16, 16), torch.tensor([0.02])), image)


def test_the_correction_has_no_block_edges() -> None:
    image = torch.full((1, 3, 128, 128), 0.5)
    observed = torch.full((1, 3, 16, 16), 0.5)
    observed[..., 8, 8] = 0.7
    step = (agree(image, observed, torch.ones(1, 1, 16, 16)) - image).diff(dim=-1).abs().max()
    assert step < 0.06  # a block of its own would step by 0.2


def test_consistency_without_visible_pixels_is_not_a_number() -> None:
    assert consistency_db(smooth(128, 0), smooth(16, 0), torch.zeros(1, 1, 16, 16)).isnan().all()


def test_averaging_rows_sum_to_one_and_match_block_means() -> None:
    assert torch.allclose(averaging_matrix(128, 50).sum(1), torch.ones(50))
    image = smooth(128, 3)
    assert torch.allclose(average_to(image, 16), torch.nn.functional.avg_pool2d(image, 8), atol=1e-6)


def test_a_matrix_first_used_without_gradients_serves_training_too() -> None:
    with torch.inference_mode():
        agree(torch.rand(1, 3, 44, 44), torch.rand(1, 3, 11, 11), torch.ones(1, 1, 11, 11))
    image = torch.rand(1, 3, 44, 44, requires_grad=True)
    agree(image, torch.rand(1, 3, 11, 11), torch.ones(1, 1, 11, 11)).sum().backward()
    assert image.grad is not None
