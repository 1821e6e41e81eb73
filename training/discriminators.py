"""Critics of the adversarial phases; training only, never shipped."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stages.networks.layers import conv


class FaceDiscriminator(nn.Module):
    """Patch critic with spectral norm (Miyato et al., ICLR 2018), for the hinge loss.

    Input (B, 3, H, W) RGB in [0, 1], H = 128 or 64. Output (B, n) logits: one per patch, and one for the whole picture.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.stem = spectral_norm(nn.Conv2d(3, width, 4, 2, 1))  # H/2
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.patch = spectral_norm(conv(widths[-1], 1, 3))
        self.whole = spectral_norm(nn.Linear(widths[-1], 1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(image * 2 - 1), 0.2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)  # halved
        return torch.cat([self.patch(x).flatten(1), self.whole(x.mean((2, 3)))], 1).float()


class PatchCritic(nn.Module):
    """Critic of patches of any size, with spectral norm, that also gives its features (for feature matching).

    Args:
        widths: channels at a half, a quarter, ... of the patch.
        inputs: channels of what it judges (3, or more with maps beside the picture).

    Input (B, inputs, H, W) in [0, 1], H and W multiples of 2 ** len(widths). Output: logits (B, n), one per cell of the
    coarsest grid, and the features of every level.
    """

    def __init__(self, widths: Sequence[int] = (48, 96, 160, 192), inputs: int = 3) -> None:
        super().__init__()
        chain = (inputs, *widths)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in zip(chain[:-1], chain[1:], strict=True)
        )
        self.mix = spectral_norm(conv(widths[-1], widths[-1]))
        self.patch = spectral_norm(conv(widths[-1], 1))

    def forward(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, features = picture * 2 - 1, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)  # halved
            features.append(x)
        x = F.leaky_relu(self.mix(x), 0.2)
        return self.patch(x).flatten(1).float(), features


def matching_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """L1 between a critic's features of a fake and of its truth (Wang et al., pix2pixHD, CVPR 2018, eq. 4)."""
    total = fake[0].new_zeros((), dtype=torch.float32)
    for a, b in zip(fake, real, strict=True):
        total = total + (a.float() - b.detach().float()).abs().mean()
    return total / len(fake)
