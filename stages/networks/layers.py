"""Blocks shared by the networks. None normalises over the batch, so a face alone equals the same face in a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Convolution that keeps the size (divided by the stride)."""
    return nn.Conv2d(inputs, outputs, size, stride, dilation * (size // 2), dilation)


def filled(layer: nn.Conv2d, bias: float = 0.0, weight: float | None = 0.0) -> nn.Conv2d:
    """The layer with its bias, and its weight unless None, set to a constant."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    if weight is not None:
        nn.init.constant_(layer.weight, weight)
    return layer


def smoothed(x: Tensor) -> Tensor:
    """(B, C, H, W) weighted 1 2 1 both ways, edges repeated: what alternates from pixel to pixel becomes its mean."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    for axis in (2, 2, 3, 3):  # sums of neighbours are cheaper than a convolution
        last = x.shape[axis] - 1
        x = x.narrow(axis, 0, last) + x.narrow(axis, 1, last)
    return x / 16


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity path; the second starts at zero, so a deep stack starts as identity.

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv(channels, channels, dilation=dilation)
        self.second = filled(conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels at each position. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x.dtype)
        return x * scale * self.weight.to(x.dtype).view(1, -1, 1, 1)
