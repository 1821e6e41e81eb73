"""Upscaler: a face of some 128 px becomes one of four or six times that side. Deep work happens at the input's size.

A small U of residual blocks over the input's pixels (convolutions on a CPU are cheapest where channels are many and
pixels few), then pixel shuffles (Shi et al., CVPR 2016) to twice the size and on to the wanted one. The answer is the
bicubic enlargement plus a residual. Two branches share the features: the trunk, trained for the smallest error, and the
detail that `fidelity` 0 adds, trained against a critic on top of the finished trunk.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.layers import ChannelNorm, ResidualBlock, conv, filled

ALIGN = 4  # sides must divide by this: the U halves twice
SCALES = (4, 6)


class Painter(nn.Module):
    """Features (B, C, H, W) -> a picture (B, 3, s * H, s * W) for s in `SCALES`: shuffle to 2H, refine, shuffle on."""

    def __init__(self, channels: int, fine_width: int, blocks: int) -> None:
        super().__init__()
        self.up = conv(channels, 4 * fine_width)
        self.blocks = nn.Sequential(*(ResidualBlock(fine_width) for _ in range(blocks)))
        self.paint = nn.ModuleDict({str(s): filled(conv(fine_width, 3 * (s // 2) ** 2)) for s in SCALES})

    def forward(self, features: Tensor, scale: int) -> Tensor:
        x = F.pixel_shuffle(self.up(features), 2)  # (B, F, 2H, 2W)
        return F.pixel_shuffle(self.paint[str(scale)](F.silu(self.blocks(F.silu(x)))), scale // 2)


class Upscaler(nn.Module):
    """Enlarges a canonical face four or six times.

    Args:
        widths: channels at the input's size, at half and at a quarter of it.
        blocks: residual blocks at each of these sizes; at the input's size half of them stand before the U.
        fine_width, fine_blocks: channels and residual blocks at twice the input's size, of the trunk.
        detail_blocks: residual blocks of the detail branch at the input's size; at twice the size as the trunk.
    """

    def __init__(
        self,
        widths: tuple[int, int, int] = (64, 96, 160),
        blocks: tuple[int, int, int] = (4, 3, 3),
        fine_width: int = 24,
        fine_blocks: int = 1,
        detail_blocks: int = 2,
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = conv(3, a)
        self.before = nn.Sequential(*(ResidualBlock(a) for _ in range(blocks[0] // 2)))
        self.down, self.deeper = conv(a, b, 3, stride=2), conv(b, c, 3, stride=2)
        self.middle = nn.Sequential(*(ResidualBlock(b) for _ in range(blocks[1])))
        self.deep = nn.Sequential(
            *(ResidualBlock(c, dilation=2 if i % 2 else 1) for i in range(blocks[2])), ChannelNorm(c)
        )
        self.back, self.up = conv(c, b, 1), conv(b, a, 1)
        self.after = nn.Sequential(*(ResidualBlock(a) for _ in range(blocks[0] - blocks[0] // 2)))
        self.trunk = Painter(a, fine_width, fine_blocks)
        self.seen = conv(3, a)  # the detail branch sees the input afresh, beside the trunk's features
        self.detail_blocks = nn.Sequential(*(ResidualBlock(a) for _ in range(detail_blocks)))
        self.detail = Painter(a, fine_width, fine_blocks)

    def features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, widths[0], H, W); H and W multiples of 4."""
        fine = self.before(self.stem((image * 2 - 1).to(self.stem.weight.dtype)))
        half = self.middle(self.down(F.silu(fine)))  # (B, b, H/2, W/2)
        quarter = self.deep(self.deeper(F.silu(half)))  # (B, c, H/4, W/4)
        half = half + F.interpolate(self.back(quarter), scale_factor=2.0, mode="nearest")
        return self.after(fine + F.interpolate(self.up(half), scale_factor=2.0, mode="nearest"))

    def forward(self, image: Tensor, scale: int, detail: bool = False) -> tuple[Tensor, Tensor | None]:
        """Enlarge.

        Args:
            image: (B, 3, H, W) RGB in [0, 1], H and W multiples of 4.
            scale: 4 or 6.
            detail: also compute the detail branch.

        Returns:
            The distortion-optimal picture and the detail to add to it (None unless asked for), both
            (B, 3, scale * H, scale * W) float32, not clamped.
        """
        features = self.features(image)
        base = F.interpolate(image.float(), scale_factor=float(scale), mode="bicubic", align_corners=False)
        smooth = base + self.trunk(F.silu(features), scale).float() * 0.5
        if not detail:
            return smooth, None
        own = features.detach() if self.training else features  # the detail phase leaves the trunk as it is
        own = self.detail_blocks(own + self.seen((image * 2 - 1).to(own.dtype)))
        return smooth, self.detail(F.silu(own), scale).float() * 0.5

    def trunk_parameters(self) -> list[nn.Parameter]:
        """Everything but the detail branch."""
        own = ("seen.", "detail_blocks.", "detail.")
        return [p for n, p in self.named_parameters() if not n.startswith(own)]
