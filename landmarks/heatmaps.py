"""Landmarks as heatmaps: drawing them, and reading points with their spread back (differentiable)."""

import torch
from torch import Tensor


def to_grid(points: Tensor, frame: int, grid: int) -> Tensor:
    """Map (..., 2) points from pixels of a frame of `frame` px to cells of a `grid` x `grid` map of the same frame."""
    return (points + 0.5) * (grid / frame) - 0.5


def draw(points: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussian heatmaps, each summing to 1.

    Args:
        points: (B, K, 2) points (x, y) in cells of the map.
        size: side of the map, cells.
        sigma: standard deviation, cells.

    Returns:
        (B, K, size, size). Points outside the map give the part of their Gaussian that falls inside, renormalised.
    """
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    x = torch.softmax(-((axis - points[..., 0:1]) ** 2) / (2 * sigma**2), -1)  # (B, K, size)
    y = torch.softmax(-((axis - points[..., 1:2]) ** 2) / (2 * sigma**2), -1)
    return y[..., :, None] * x[..., None, :]


def soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected position and spread of each heatmap.

    Args:
        logits: (B, K, H, W) unnormalised log-probabilities.

    Returns:
        Points (B, K, 2) as (x, y) in cells; spread (B, K), the standard deviation averaged over x and y, in cells;
        probabilities (B, K, H, W), each map summing to 1.
    """
    batch, count, height, width = logits.shape
    probability = torch.softmax(logits.float().flatten(2), -1).view(batch, count, height, width)
    column, row = probability.sum(-2), probability.sum(-1)  # marginals: (B, K, W), (B, K, H)
    x_axis = torch.arange(width, device=logits.device, dtype=torch.float32)
    y_axis = torch.arange(height, device=logits.device, dtype=torch.float32)
    x, y = column @ x_axis, row @ y_axis
    variance = (column @ x_axis**2 - x**2 + row @ y_axis**2 - y**2) / 2
    return torch.stack([x, y], -1), variance.clamp_min(1e-6).sqrt(), probability
