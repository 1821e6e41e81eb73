"""CooGAN's two paths (Chen et al., ECCV 2020, arXiv 2011.01563), rebuilt: the paper's wiring is not public.

The global path edits the whole face, reduced to 128 px, and hands its decoder features on. The local path edits a patch
of the full-size picture with the global features of the patch's place. Between encoder and decoder scales stand the
lighter transfer units. Both answer with what to add to the picture, so what is not to change passes through untouched.
Differs from the paper in: that residual answer, a head that predicts the source attributes, normalisation per position
instead of over the batch (a face alone equals the same face in company, a patch equals its part of the whole), and the
zoom of a patch as an input.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.networks.layers import ChannelNorm, ResidualBlock, conv, filled
from stages.networks.transfer_unit import UNITS

GLOBAL_SIZE = 128  # px, side of the canonical frame that the global path sees
PATCH_ALIGN = 8  # sides of a patch must divide by this
MAX_ZOOM = 8.0  # patch pixels per global pixel beyond which the local path is told no more


@dataclass
class GlobalEdit:
    """What the global path gives.

    Attributes:
        change: (B, 3, 128, 128) to add to the reduced face.
        features: decoder features at 32 and at 64 px, (B, 2w, 32, 32) and (B, w, 64, 64).
        source: (B, A) predicted attributes of the face as it is, in [-1, 1].
    """

    change: Tensor
    features: tuple[Tensor, Tensor]
    source: Tensor


class _Level(nn.Module):
    """A decoder step: transfer unit, the wanted change once more, a residual block."""

    def __init__(self, unit: str, channels: int, state_channels: int, attributes: int) -> None:
        super().__init__()
        self.unit = UNITS[unit](channels, state_channels)
        self.wanted = nn.Linear(attributes, channels)
        self.mix = conv(2 * channels, channels, 1)
        self.block = ResidualBlock(channels)
        self.norm = ChannelNorm(channels)

    def forward(self, encoder: Tensor, state: Tensor, decoded: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """decoded (B, C, 2h, 2w), the decoder's features so far -> features, next state."""
        out, state = self.unit(encoder, state)
        told = self.wanted(wanted)[:, :, None, None]
        return self.norm(self.block(self.mix(torch.cat([out, decoded], 1)) + told)), state


class GlobalPath(nn.Module):
    """The whole face at 128 px: encoder down to 8 px, transfer units back up.

    Args:
        attributes: how many. width: channels at 64 px; doubled at 32 and 16, and there once more at 8.
        unit: `light` or `stgan`.
    """

    def __init__(self, attributes: int, width: int, unit: str) -> None:
        super().__init__()
        w = [width, 2 * width, 4 * width, 6 * width]
        self.stem = conv(3, width, 5, stride=2)  # 64 px
        self.downs = nn.ModuleList(conv(a, b, 3, stride=2) for a, b in zip(w[:-1], w[1:], strict=True))  # 32, 16, 8
        self.blocks = nn.ModuleList(nn.Sequential(ResidualBlock(c), ResidualBlock(c)) for c in w)
        self.norms = nn.ModuleList(ChannelNorm(c) for c in w)
        self.source_head = nn.Sequential(nn.Linear(w[3], 128), nn.SiLU(), nn.Linear(128, attributes))
        self.wanted = conv(w[3] + attributes, w[3], 1)
        self.middle = nn.Sequential(ResidualBlock(w[3]), ResidualBlock(w[3]))
        states = [w[3], w[2], w[1]]
        self.levels = nn.ModuleList(
            _Level(unit, c, s, attributes) for c, s in zip((w[2], w[1], w[0]), states, strict=True)
        )
        self.ups = nn.ModuleList(conv(s, c, 1) for s, c in zip(states, (w[2], w[1], w[0]), strict=True))
        self.paint = filled(conv(w[0], 12))

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B, 3, 128, 128) in [0, 1] -> features at 64, 32, 16 and 8 px."""
        x, kept = self.stem((image * 2 - 1).to(self.stem.weight.dtype)), []
        for i, (blocks, norm) in enumerate(zip(self.blocks, self.norms, strict=True)):
            x = norm(blocks(x))
            kept.append(x)
            if i < len(self.downs):
                x = self.downs[i](x)
        return kept

    def source(self, kept: list[Tensor]) -> Tensor:
        return torch.tanh(self.source_head(kept[-1].mean((2, 3))).float())

    def forward(self, kept: list[Tensor], wanted: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """wanted (B, A): differences of the attributes -> change (B, 3, 128, 128), features at 32 and 64 px."""
        deep = kept[-1]
        wanted = wanted.to(deep.dtype)
        spread = wanted[:, :, None, None].expand(-1, -1, *deep.shape[-2:])
        x = self.middle(self.wanted(torch.cat([deep, spread], 1)))
        state, features = x, []
        for level, up, encoder in zip(self.levels, self.ups, reversed(kept[:-1]), strict=True):
            x = F.interpolate(up(x), scale_factor=2.0, mode="nearest")
            x, state = level(encoder, state, x, wanted)
            features.append(x)
        change = F.pixel_shuffle(self.paint(F.silu(x)), 2).float()  # (B, 3, 128, 128)
        return change, (features[1], features[2])


class LocalPath(nn.Module):
    """A patch of the full-size picture, worked on at half, a quarter and an eighth of its size.

    Args:
        attributes: how many. width: channels at half the patch; doubled at a quarter, tripled at an eighth.
        global_width: width of the global path. unit: `light` or `stgan`.
    """

    def __init__(self, attributes: int, width: int, global_width: int, unit: str) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 3 * width
        self.stem = conv(12 + 12 + 1, a)  # picture and global change, both folded to half size, and the zoom
        self.fine = ResidualBlock(a)
        self.down, self.deeper = conv(a, b, 3, stride=2), conv(b, c, 3, stride=2)
        self.from_global = nn.ModuleList([conv(global_width, b, 1), conv(2 * global_width, c, 1)])
        self.middle = nn.Sequential(ResidualBlock(b))
        self.deep = nn.Sequential(ResidualBlock(c), ResidualBlock(c), ChannelNorm(c))
        self.wanted = nn.Linear(attributes, c)
        self.levels = nn.ModuleList([_Level(unit, b, c, attributes), _Level(unit, a, b, attributes)])
        self.ups = nn.ModuleList([conv(c, b, 1), conv(b, a, 1)])
        self.paint = filled(conv(a, 12))

    def forward(
        self, patch: Tensor, change: Tensor, features: tuple[Tensor, Tensor], zoom: Tensor, wanted: Tensor
    ) -> Tensor:
        """What to add to the patch beside the enlarged global change.

        Args:
            patch: (B, 3, P, P) RGB in [0, 1], P a multiple of 8. change: (B, 3, P, P), the global change of its place.
            features: of the global path at the patch's place, (B, 2w, P/8, P/8) and (B, w, P/4, P/4).
            zoom: (B,) patch pixels per pixel of the global frame. wanted: (B, A).
        """
        dtype = self.stem.weight.dtype
        wanted = wanted.to(dtype)
        folded = F.pixel_unshuffle(torch.cat([patch * 2 - 1, change], 1).to(dtype), 2)  # (B, 24, P/2, P/2)
        # The zoom in octaves, a third each: beyond what was trained nothing new is said.
        scale = zoom.clamp(1, MAX_ZOOM).log2().div(3).to(dtype).view(-1, 1, 1, 1).expand(-1, 1, *folded.shape[-2:])
        fine = self.fine(self.stem(torch.cat([folded, scale], 1)))  # (B, a, P/2, P/2)
        middle = self.middle(self.down(F.silu(fine)) + self.from_global[0](features[1].to(dtype)))  # P/4
        deep = self.deeper(F.silu(middle)) + self.from_global[1](features[0].to(dtype))  # P/8
        deep = self.deep(deep + self.wanted(wanted)[:, :, None, None])
        x, state = deep, deep
        for level, up, encoder in zip(self.levels, self.ups, (middle, fine), strict=True):
            x = F.interpolate(up(x), scale_factor=2.0, mode="nearest")
            x, state = level(encoder, state, x, wanted)
        return F.pixel_shuffle(self.paint(F.silu(x)), 2).float()


class CooganNet(nn.Module):
    """The two paths.

    Args:
        attributes: names, in the order of the vectors.
        width: of the global path. local_width: of the local path. unit: `light` (LSTU) or `stgan` (STU).
        gains: by name, the share of the way to an attribute's far end that is enough for it to be clearly there, as
            measured on the trained network (`evaluation.edit_bars --strength`); 1 where none is given.

    Raises `ValueError` for a gain of an attribute that is none of `attributes`.
    """

    def __init__(
        self, attributes: list[str], width: int = 48, local_width: int = 40, unit: str = "light",
        gains: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attributes, self.gains = tuple(attributes), gains or {}
        if unknown := sorted(self.gains.keys() - set(attributes)):
            raise ValueError(f"gains: {', '.join(unknown)} is none of {', '.join(attributes)}")
        self.whole = GlobalPath(len(attributes), width, unit)
        self.local = LocalPath(len(attributes), local_width, width, unit)

    def edit_whole(self, face: Tensor, wanted: Tensor) -> GlobalEdit:
        """face (B, 3, 128, 128) RGB in [0, 1] in the canonical frame, wanted (B, A) differences -> the global edit."""
        kept = self.whole.encode(face)
        change, features = self.whole(kept, wanted)
        return GlobalEdit(change, features, self.whole.source(kept))

    def source(self, face: Tensor) -> Tensor:
        """(B, A) predicted attributes of faces (B, 3, 128, 128), in [-1, 1]."""
        return self.whole.source(self.whole.encode(face))

    def edit_patch(self, patch: Tensor, edit: GlobalEdit, place: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Edit a patch of the full-size picture.

        Args:
            patch: (B, 3, P, P). edit: of the whole face.
            place: (B, 2, 3) float32, patch pixel (x, y, 1) -> pixel of the 128 frame.
            wanted: (B, A), as for the global edit.

        Returns:
            The change to add to the patch, and the part of it that is the enlarged global change; (B, 3, P, P) float32.
        """
        size = (patch.shape[-2], patch.shape[-1])
        change = sample_place(edit.change, place, size)
        eighth = sample_place(edit.features[0], place, (size[0] // 8, size[1] // 8), 8)
        quarter = sample_place(edit.features[1], place, (size[0] // 4, size[1] // 4), 4)
        zoom = 1 / torch.linalg.det(place[:, :, :2].float()).abs().clamp_min(1e-8).sqrt()
        own = self.local(patch, change, (eighth, quarter), zoom, wanted)
        return change + own, change


def sample_place(values: Tensor, place: Tensor, size: tuple[int, int], step: int = 1) -> Tensor:
    """Values of the global frame under a patch (the region pooling of the local path), bilinear, edges repeated.

    Args:
        values: (B, C, g, g) over the whole 128 px frame.
        place: (B, 2, 3), patch pixel -> pixel of the 128 frame, pixel centres at integers.
        size: (height, width) of the result. step: patch pixels per pixel of the result.

    Returns:
        (B, C, height, width) in the type of `values`.
    """
    device = values.device
    y = (torch.arange(size[0], device=device, dtype=torch.float32) + 0.5) * step - 0.5
    x = (torch.arange(size[1], device=device, dtype=torch.float32) + 0.5) * step - 0.5
    m = place.float()
    # Broadcast over rows and columns instead of building (height * width, 3) points.
    gx = m[:, 0, 0, None, None] * x + m[:, 0, 1, None, None] * y[:, None] + m[:, 0, 2, None, None]
    gy = m[:, 1, 0, None, None] * x + m[:, 1, 1, None, None] * y[:, None] + m[:, 1, 2, None, None]
    grid = torch.stack([gx, gy], -1).add_(0.5).mul_(2 / GLOBAL_SIZE).sub_(1)  # edges of the frame at -1 and 1
    kind = torch.float32 if values.dtype == torch.bfloat16 and device.type == "cpu" else values.dtype
    out = F.grid_sample(values.to(kind), grid.to(kind), mode="bilinear", padding_mode="border", align_corners=False)
    return out.to(values.dtype)
