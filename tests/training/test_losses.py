"""Losses against hand-made cases."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from landmarks.heatmaps import draw, to_grid
from training.losses import feature_loss, identity_loss, landmark_loss, laplace_loss, pixel_loss, psnr_loss, ssim_loss


def test_pixel_loss_of_a_constant_error() -> None:
    found, truth = torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5)
    assert pixel_loss(found, truth, torch.ones(1, 1, 4, 4)).item() == pytest.approx(0.07 + 0.03, abs=1e-6)


def test_pixel_loss_ignores_pixels_without_weight() -> None:
    found, truth, weight = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    found[..., :2], weight[..., :2] = 9.0, 0.0
    assert pixel_loss(found, truth, weight).item() == 0


def test_psnr_loss_is_the_mean_psnr_of_the_pictures_that_count() -> None:
    truth = torch.rand(3, 3, 16, 16) * 0.5
    found = truth + torch.tensor([0.1, 0.3, 0.5]).view(3, 1, 1, 1) * torch.rand(3, 3, 16, 16)
    weight = torch.ones(3, 1, 16, 16)
    weight[2] = 0
    psnr = [peak_signal_noise_ratio(truth[i].numpy(), found[i].numpy(), data_range=1.0) for i in range(2)]
    loss = psnr_loss(found, truth, weight, floor=0)
    assert loss.item() * -10 / math.log(10) == pytest.approx(np.mean(psnr), abs=1e-4)
    assert psnr_loss(found, truth, weight * 0).item() == 0


def test_psnr_loss_sees_only_the_weighted_pixels_and_stays_finite_at_none_wrong() -> None:
    found, truth, weight = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    found[..., :2], weight[..., :2] = 9.0, 0.0
    assert psnr_loss(found, truth, weight, floor=1e-4).item() == pytest.approx(math.log(1e-4))


def test_landmark_loss_is_zero_at_the_drawn_heatmap_and_grows_away_from_it() -> None:
    truth = torch.rand(2, 68, 2) * 60 + 30
    perfect = draw(to_grid(truth, 128, 32), 32, 1.0).clamp_min(1e-30).log()
    divergence, distance = landmark_loss(perfect, truth, truth, torch.ones(2))
    assert divergence.item() == pytest.approx(0, abs=1e-4) and distance.item() == 0
    assert landmark_loss(perfect, truth + 6.4, truth + 6.4, torch.ones(2))[0] > 0.5
    assert landmark_loss(perfect, truth + 6.4, truth, torch.ones(2))[1].item() == pytest.approx(0.05)


def test_faces_without_landmarks_do_not_count() -> None:
    logits, points = torch.randn(2, 68, 32, 32), torch.rand(2, 68, 2) * 100
    alone = landmark_loss(logits[:1], points[:1], points[:1] + 3, torch.ones(1))
    both = landmark_loss(logits, points, torch.cat([points[:1] + 3, points[1:] + 90]), torch.tensor([1.0, 0.0]))
    assert both[0].item() == pytest.approx(alone[0].item(), rel=1e-5) and both[1].item() == pytest.approx(
        alone[1].item(), rel=1e-5
    )


def test_laplace_loss_is_least_at_the_true_mean_error() -> None:
    error, weight = torch.full((1, 3, 8, 8), 0.05), torch.ones(1, 1, 8, 8)
    at = {s: laplace_loss(torch.full((1, 1, 8, 8), math.log(s)), error, weight).item() for s in (0.025, 0.05, 0.1)}
    assert at[0.05] < at[0.025] and at[0.05] < at[0.1]


def test_feature_loss_ignores_the_length_of_features() -> None:
    features = [torch.rand(2, 8, 4, 4)]
    assert feature_loss([features[0] * 3], features).item() == pytest.approx(0, abs=1e-6)
    assert feature_loss([features[0].flip(1)], features).item() > 0.1


def test_identity_loss_of_opposite_descriptors_is_two() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert identity_loss(a, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0])).item() == pytest.approx(
        2
    )


def test_ssim_loss_is_that_of_scikit_image_where_every_window_counts() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((32, 32, 3)).astype(np.float32)
    other = np.clip(truth + generator.normal(0, 0.1, truth.shape), 0, 1).astype(np.float32)
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (other, truth))
    everywhere = torch.ones(1, 1, 32, 32)
    options = {"channel_axis": 2, "data_range": 1.0, "win_size": 7, "use_sample_covariance": False}
    wanted = structural_similarity(truth, other, **options)
    assert float(ssim_loss(a, b, everywhere, stride=1)) == pytest.approx(1 - wanted, abs=1e-4)
    assert float(ssim_loss(b, b, everywhere)) == pytest.approx(0, abs=1e-6)
    left = everywhere.clone()
    left[..., 16:] = 0
    assert float(ssim_loss(torch.cat([b[..., :22], a[..., 22:]], 3), b, left)) == pytest.approx(0, abs=1e-6)
