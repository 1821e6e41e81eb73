"""Critics of the adversarial phases; training only, never shipped."""

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
