"""Identity and feature network of the training losses: a small residual network distilled from dlib's descriptor."""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.layers import ChannelNorm, ResidualBlock, conv


class IdentityNet(nn.Module):
    """Descriptor of an aligned face.

    Args:
        width: channels at 32x32; doubled at 16x16 and at 8x8, and 5.33 times at 4x4.
        blocks: residual blocks at each size.
        outputs: length of the descriptor.

    Input (B, 3, 128, 128) RGB in [0, 1] in the canonical frame. Output (B, outputs), not normalised, in the space of
    the teacher's descriptor less its mean. The last layer sees places, not a pooled average: faces are aligned.
    """

    def __init__(self, width: int = 48, blocks: int = 2, outputs: int = 128) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.stem = conv(3, width // 2, 5, stride=2)  # 64
        self.downs = nn.ModuleList(conv(a, b, 3, stride=2) for a, b in zip([width // 2, *widths], widths, strict=False))
        self.levels = nn.ModuleList(nn.Sequential(*(ResidualBlock(w) for _ in range(blocks))) for w in widths)
        self.norm = ChannelNorm(widths[-1])
        self.head = nn.Linear(widths[-1] * 16, outputs)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features at 64, 32, 16, 8 and 4 px: the space of the perceptual loss."""
        x = self.stem(image * 2 - 1)  # (B, width/2, 64, 64)
        kept = [x]
        for down, level in zip(self.downs, self.levels, strict=True):
            x = level(down(F.silu(x)))  # halved
            kept.append(x)
        return kept

    def describe(self, features: list[Tensor]) -> Tensor:
        """Descriptor from the deepest features."""
        return self.head(F.silu(self.norm(features[-1])).flatten(1)).float()

    def forward(self, image: Tensor) -> Tensor:
        return self.describe(self.features(image))
