"""Face parser: which part of the face each pixel belongs to, in the 19 classes of CelebAMask-HQ."""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.layers import ChannelNorm, ResidualBlock, conv

# CelebAMask-HQ order; left and right are the subject's own.
PARSING_CLASSES = (
    "background", "skin", "nose", "eyeglasses", "left_eye", "right_eye", "left_brow", "right_brow", "left_ear",
    "right_ear", "mouth", "upper_lip", "lower_lip", "hair", "hat", "earring", "necklace", "neck", "cloth",
)  # fmt: skip


class FaceParser(nn.Module):
    """U-Net over an aligned face (Ronneberger et al., MICCAI 2015), with residual blocks.

    Args:
        width: channels at half the input's size; doubled at each of `depth` further halvings, capped at 8 times.

    Input (B, 3, H, W) RGB in [0, 1] in the canonical frame, H and W multiples of 2**(depth + 1). Output (B, 19, H, W)
    logits. The first convolution halves and the last shuffles back: full-size layers would cost more than all others.
    """

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        self.stem = conv(3, width, 5, stride=2)
        self.down_blocks = nn.ModuleList(ResidualBlock(w) for w in widths[:-1])
        self.downs = nn.ModuleList(conv(a, b, 3, stride=2) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.middle = nn.Sequential(
            ResidualBlock(widths[-1]), ResidualBlock(widths[-1], dilation=2), ResidualBlock(widths[-1])
        )
        self.norm = ChannelNorm(widths[-1])
        self.ups = nn.ModuleList(conv(b, a, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.up_blocks = nn.ModuleList(ResidualBlock(w) for w in widths[:-1])
        self.head = conv(width, 4 * len(PARSING_CLASSES), 3)

    def features(self, image: Tensor) -> list[Tensor]:
        """Encoder features from half size down to the bottleneck: the feature space of the perceptual loss."""
        x = self.stem(image * 2 - 1)
        kept = []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            x = block(x)
            kept.append(x)
            x = down(F.silu(x))  # halved
        return [*kept, x]

    def forward(self, image: Tensor) -> Tensor:
        *kept, x = self.features(image)
        x = self.norm(self.middle(x))
        for up, block, skip in reversed(list(zip(self.ups, self.up_blocks, kept, strict=True))):
            x = block(F.interpolate(up(x), scale_factor=2.0, mode="nearest") + skip)  # doubled
        return F.pixel_shuffle(self.head(F.silu(x)), 2)
