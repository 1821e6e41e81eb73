"""Trait classifier: expression, age, glasses and the like of an aligned face, one small trunk and a head for each."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.luma import luma
from stages.networks.identity import IdentityNet
from stages.networks.layers import ChannelNorm, conv, filled

AGE_CENTRE, AGE_SPREAD = 35.0, 25.0  # years; the mean and about the spread of the training faces


class InvertedBlock(nn.Module):
    """1x1 out, depthwise 3x3, 1x1 back, beside an identity path (Sandler et al., MobileNetV2, CVPR 2018).

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, expansion: int = 3) -> None:
        super().__init__()
        wide = channels * expansion
        self.norm = ChannelNorm(channels)
        self.out = conv(channels, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide)
        self.back = filled(conv(wide, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.silu(self.depthwise(F.silu(self.out(self.norm(x))))))


class MobileTrunk(nn.Module):
    """Inverted residual blocks from 32 px down to 4, then the mean over places: (B, 3, 128, 128) -> (B, outputs)."""

    def __init__(self, width: int, blocks: int, outputs: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.stem = conv(3, width, 7, stride=4)  # 32
        self.levels = nn.ModuleList(nn.Sequential(*(InvertedBlock(w) for _ in range(blocks))) for w in widths)
        self.downs = nn.ModuleList(conv(a, b, 3, stride=2) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.norm = ChannelNorm(widths[-1])
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, image: Tensor) -> Tensor:
        x = self.levels[0](self.stem(image * 2 - 1))  # (B, width, 32, 32)
        for down, level in zip(self.downs, list(self.levels)[1:], strict=True):
            x = level(down(F.silu(x)))  # halved
        return self.head(F.silu(self.norm(x)).mean((2, 3)))


class TraitNet(nn.Module):
    """Reads traits of a face.

    Args:
        classes: trait -> names of its classes. flags: traits that are yes or no. numbers: traits in years.
        trunk: `residual` (places kept to the end) or `mobile` (depthwise, mean over places): two readers that share
            neither seed nor architecture can judge each other's work.
        width, blocks: of the trunk; features: length of the vector that the heads share. grey: sees the luma only.
        dropout: share of those features dropped in training.

    Input (B, 3, 128, 128) RGB in [0, 1] in the canonical frame. Output: trait -> (B, k) logits for classes, (B,) logits
    for flags, (B,) years for numbers, float32.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]] | None = None,
        flags: Sequence[str] = (),
        numbers: Sequence[str] = (),
        trunk: Literal["residual", "mobile"] = "residual",
        width: int = 32,
        blocks: int = 2,
        features: int = 192,
        grey: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.classes = {k: tuple(v) for k, v in (classes or {}).items()}
        self.flags, self.numbers, self.grey = tuple(flags), tuple(numbers), grey
        build = {"residual": IdentityNet, "mobile": MobileTrunk}[trunk]
        self.trunk = build(width, blocks, features)
        self.dropout = nn.Dropout(dropout)
        sizes = {k: len(v) for k, v in self.classes.items()} | dict.fromkeys((*self.flags, *self.numbers), 1)
        self.heads = nn.ModuleDict({name: nn.Linear(features, size) for name, size in sizes.items()})

    @property
    def traits(self) -> tuple[str, ...]:
        return (*self.classes, *self.flags, *self.numbers)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if self.grey:
            image = luma(image)
        shared = self.dropout(F.silu(self.trunk(image)))
        found = {name: head(shared.to(head.weight.dtype)).float() for name, head in self.heads.items()}
        for name in self.flags:
            found[name] = found[name][:, 0]
        for name in self.numbers:
            found[name] = found[name][:, 0] * AGE_SPREAD + AGE_CENTRE
        return found

    def answers(self, image: Tensor) -> dict[str, Tensor]:
        """Probabilities instead of logits: (B, k) that sum to 1 for classes, (B,) for flags; numbers as they are."""
        found = self(image)
        return found | {
            name: torch.softmax(found[name], 1) if name in self.classes else torch.sigmoid(found[name])
            for name in (*self.classes, *self.flags)
        }
