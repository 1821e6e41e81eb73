"""Losses shared by the training scripts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.heatmaps import draw, to_grid


def pixel_loss(found: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """0.7 L1 + 3 MSE, weighted per pixel; (B, 3, s, s) pictures, (B, 1, s, s) weights.

    The mix gave the best PSNR of those tried on a network of 7 M parameters: MSE alone starts slowly, L1 alone ends
    lower.
    """
    difference = found - truth
    per_pixel = 0.7 * difference.abs() + 3 * difference.square()
    return (per_pixel * weight).sum() / (weight.sum() * 3).clamp_min(1)


def psnr_loss(found: Tensor, truth: Tensor, weight: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean over the pictures of ln MSE: what mean PSNR measures, so an easy picture counts as much as a hard one.

    (B, 3, s, s) pictures, (B, 1, s, s) weights; a picture without any weight does not count. `floor` is added to
    every MSE, so that a perfect picture has a finite loss.
    """
    there = weight.sum((1, 2, 3))
    error = ((found - truth).square() * weight).sum((1, 2, 3)) / (3 * there).clamp_min(1e-6)
    logarithm = torch.where(there > 0, error + floor, 1.0).log()
    return logarithm.sum() / (there > 0).sum().clamp_min(1)


def ssim_loss(found: Tensor, truth: Tensor, weight: Tensor, window: int = 7, stride: int = 2) -> Tensor:
    """1 - SSIM (Wang et al., TIP 2004) of (B, 3, s, s) pictures in 0..1, weighted by a (B, 1, s, s) picture.

    Windows are uniform and taken every `stride` pixels: a quarter of the work, and the same gradient on average.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride)

    mean_a, mean_b = mean(found), mean(truth)
    var_a, var_b = mean(found.square()) - mean_a.square(), mean(truth.square()) - mean_b.square()
    covariance = mean(found * truth) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a.clamp_min(0) + var_b.clamp_min(0) + c2)
    share = mean(weight)
    return ((1 - luminance * structure) * share).sum() / (share.sum() * 3).clamp_min(1)


def landmark_loss(
    logits: Tensor, points: Tensor, truth: Tensor, known: Tensor, sigma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy to drawn heatmaps, and mean coordinate error.

    Args:
        logits: (B, 68, g, g). points, truth: (B, 68, 2) pixels of the 128 frame. known: (B,) 1 where truth is there.
        sigma: of the drawn heatmaps, cells; about one cell as in Bulat and Tzimiropoulos, ICCV 2017.

    Returns:
        Cross entropy less the target's entropy (0 is perfect), and the mean L1 error as a share of the frame's side.
    """
    grid = logits.shape[-1]
    target = draw(to_grid(truth, 128, grid), grid, sigma).flatten(2)
    log_probability = torch.log_softmax(logits.float().flatten(2), -1)
    divergence = (target * ((target + 1e-12).log() - log_probability)).sum(-1).mean(-1)
    distance = (points - truth).abs().mean((1, 2)) / 128
    share = known / known.sum().clamp_min(1)
    return (divergence * share).sum(), (distance * share).sum()


def laplace_loss(log_scale: Tensor, error: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of absolute errors under a Laplace law of that scale; `error` is taken as given."""
    log_scale = log_scale.clamp(-7, 1)
    loss = error.detach().mean(1, keepdim=True) * torch.exp(-log_scale) + log_scale
    return (loss * weight).sum() / weight.sum().clamp_min(1)


def feature_loss(found: list[Tensor], truth: list[Tensor], weight: Tensor | None = None) -> Tensor:
    """Perceptual loss: L1 between channel-normalised features, averaged over levels (after Zhang et al., CVPR 2018)."""
    total = found[0].new_zeros((), dtype=torch.float32)
    for a, b in zip(found, truth, strict=True):
        a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        difference = (a - b).abs().sum(1).mean((1, 2))
        total = total + (
            difference.mean() if weight is None else (difference * weight).sum() / weight.sum().clamp_min(1)
        )
    return total / len(found)


def identity_loss(found: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """1 - cosine between descriptors (B, D); `weight` (B,)."""
    return ((1 - F.cosine_similarity(found, truth)) * weight).sum() / weight.sum().clamp_min(1)


def hinge_real(logits: Tensor) -> Tensor:
    return F.relu(1 - logits).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    return F.relu(1 + logits).mean()
