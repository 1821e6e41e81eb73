"""Generic enlarging networks, the rivals of the restorer: RCAN and SwinIR of spandrel, RRDBNet of basicsr, a plain one.

They know nothing of faces, landmarks or occluders: what they do not learn from the samples alone, they lack. Each
predicts the difference from a bicubic enlargement, as the restorer does, so that none has to learn to copy; their last
layers start at zero, so that all start as that enlargement.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.basicsr_adapter import rrdbnet
from stages.networks.layers import ResidualBlock, conv, filled

SCALE = 8


class OverBicubic(nn.Module):
    """Adds a bicubic enlargement of the input to what `body` makes of it: (B, 3, n, n) -> (B, 3, 8 n, 8 n)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        plain = F.interpolate(image, scale_factor=float(SCALE), mode="bicubic", align_corners=False)
        return plain + self.body(image)


def _spandrel(architecture: str) -> Any:
    """The class of `spandrel.architectures.<architecture>`; raises ImportError with the way to install it."""
    try:
        return getattr(importlib.import_module(f"spandrel.architectures.{architecture}"), architecture)
    except ImportError as error:
        raise ImportError(f"{architecture} is spandrel's: pip install 'revisage[spandrel]' ({error})") from error


def rcan(groups: int = 6, blocks: int = 10, features: int = 64, reduction: int = 16) -> nn.Module:
    """RCAN x8, (B, 3, 16, 16) in [0, 1] -> (B, 3, 128, 128): residual groups with channel attention.

    Zhang, Li, Li, Wang, Zhong, Fu: "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV
    2018. There 10 groups of 20 blocks; here as many as cost what the restorer costs (2 GMAC a face).

    Raises:
        ImportError: spandrel is missing.
    """
    body = _spandrel("RCAN")(
        scale=SCALE, n_resgroups=groups, n_resblocks=blocks, n_feats=features, reduction=reduction, norm=False
    )
    filled(body.tail[1])
    return OverBicubic(body)


def swinir(width: int = 120, depths: Sequence[int] = (6, 6, 6, 6), heads: int = 6, window: int = 8) -> nn.Module:
    """SwinIR x8, (B, 3, 16, 16) in [0, 1] -> (B, 3, 128, 128): transformer blocks over shifted windows.

    Liang, Cao, Sun, Zhang, Van Gool, Timofte: "SwinIR: Image Restoration Using Swin Transformer", ICCV Workshops 2021.
    There 180 wide and 6 groups deep; here what costs as much as the restorer.

    Raises:
        ImportError: spandrel is missing.
    """
    body = _spandrel("SwinIR")(
        img_size=16, embed_dim=width, depths=list(depths), num_heads=[heads] * len(depths), window_size=window,
        mlp_ratio=2.0, upscale=SCALE, upsampler="pixelshuffle", drop_path_rate=0.0,
    )  # fmt: skip
    filled(body.conv_last)
    body.mean = torch.zeros(1, 1, 1, 1)  # it would add the mean colour of its own data to the difference
    return OverBicubic(body)


def rrdb(features: int = 64, blocks: int = 8, growth: int = 32) -> nn.Module:
    """RRDBNet x8, (B, 3, 16, 16) in [0, 1] -> (B, 3, 128, 128): the generator of ESRGAN and Real-ESRGAN.

    Wang et al., "ESRGAN", ECCV Workshops 2018. It enlarges by 4; its last layer has 12 channels here, shuffled into
    the missing factor of 2. There 23 blocks; here what costs as much as the restorer.

    Raises:
        ImportError: basicsr is missing.
    """
    body: Any = rrdbnet(scale=4, features=features, blocks=blocks, growth=growth, out_channels=12)
    filled(body.conv_last)
    return OverBicubic(nn.Sequential(body, nn.PixelShuffle(2)))


class PlainNet(nn.Module):
    """Residual blocks and pixel shuffles: the restorer less its priors, mask, attention and steps.

    Args:
        widths: channels at the working size, and after each doubling. blocks: residual blocks at each of them.
        inputs: channels of the input; the first three are the picture.
        shrink: space folded into channels first, so that a large picture is worked on at 1/shrink of its size.

    (B, inputs, n, n) in [0, 1] -> (B, 3, s, s), s = n / shrink * 2 ** (len(widths) - 1), s >= n.
    """

    def __init__(
        self,
        widths: Sequence[int] = (192, 96, 48, 24),
        blocks: Sequence[int] = (6, 2, 1, 0),
        inputs: int = 3,
        shrink: int = 1,
    ) -> None:
        super().__init__()
        self.shrink = shrink
        self.stem = conv(inputs * shrink**2, widths[0])
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(w, dilation=1 + i % 2) for i in range(n)))
            for w, n in zip(widths, blocks, strict=True)
        )
        self.ups = nn.ModuleList(conv(a, 4 * b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.head = filled(conv(widths[-1], 3))

    def forward(self, image: Tensor) -> Tensor:
        x = self.levels[0](self.stem(F.pixel_unshuffle(image, self.shrink)))  # (B, C0, n/shrink, n/shrink)
        for up, level in zip(self.ups, list(self.levels)[1:], strict=True):
            x = level(F.pixel_shuffle(up(F.silu(x)), 2))  # doubled
        change, plain = self.head(F.silu(x)), image[:, :3]
        if plain.shape[-1] != change.shape[-1]:
            plain = F.interpolate(plain, size=change.shape[-2:], mode="bicubic", align_corners=False)
        return plain + change


class Inpainter(nn.Module):
    """Fills a hole of known place: the trained half of the two-step rivals.

    (B, 3, n, n) RGB in [0, 1] and (B, 1, n, n) hole in [0, 1] (1 = unknown) -> (B, 3, n, n); outside the hole the
    input comes back as it was. `network` holds the arguments of the `PlainNet` within.
    """

    def __init__(self, network: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.body = PlainNet(**({"widths": (128,), "blocks": (6,)} | (network or {})), inputs=4)

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        seen = image * (1 - hole)
        known = (1 - hole).sum((2, 3), keepdim=True).clamp_min(1)
        start = seen + hole * (seen.sum((2, 3), keepdim=True) / known)  # the hole starts as the mean of what is seen
        filled_in = self.body(torch.cat([start, hole], 1))
        return torch.where(hole > 0, torch.lerp(image, filled_in.to(image.dtype), hole), image)
