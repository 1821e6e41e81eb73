"""Transfer units: how an editor's decoder takes what it needs from an encoder feature, under the wanted change.

`StganUnit` is the selective transfer unit of STGAN (Liu et al., CVPR 2019); `LightUnit` the lighter one of CooGAN
(Chen et al., ECCV 2020), in the form of a simple recurrent unit: its gates look at the state alone, so that their
convolutions see half the channels, the candidate is a 1x1 layer, and so is what brings the state up.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.layers import conv, filled


class StganUnit(nn.Module):
    """encoder (B, C, 2h, 2w), state (B, S, h, w) -> output (B, C, 2h, 2w), next state (B, C, 2h, 2w)."""

    def __init__(self, channels: int, state_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(state_channels, channels, 4, 2, 1)
        self.reset, self.update = conv(2 * channels, channels), conv(2 * channels, channels)
        self.candidate = conv(2 * channels, channels)

    def forward(self, encoder: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.up(state)
        both = torch.cat([encoder, state], 1)
        kept = torch.sigmoid(self.reset(both)) * state
        share = torch.sigmoid(self.update(both))
        fresh = torch.tanh(self.candidate(torch.cat([encoder, kept], 1)))
        return (1 - share) * state + share * fresh, kept


class LightUnit(nn.Module):
    """encoder (B, C, 2h, 2w), state (B, S, h, w) -> output (B, C, 2h, 2w), next state (B, C, 2h, 2w)."""

    def __init__(self, channels: int, state_channels: int) -> None:
        super().__init__()
        self.up = conv(state_channels, channels, 1)
        self.forget, self.reset = conv(channels, channels), filled(conv(channels, channels), bias=1, weight=None)
        self.candidate = conv(channels, channels, 1)

    def forward(self, encoder: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = F.interpolate(self.up(state), scale_factor=2.0, mode="bilinear", align_corners=False)
        share = torch.sigmoid(self.forget(state))
        cell = share * encoder + (1 - share) * self.candidate(state)
        gate = torch.sigmoid(self.reset(state))
        return gate * F.silu(cell) + (1 - gate) * state, cell


UNITS: dict[str, type[StganUnit] | type[LightUnit]] = {"light": LightUnit, "stgan": StganUnit}
