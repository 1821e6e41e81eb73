"""Stage `deinterlace`: a still whose odd and even lines are two moments becomes a picture of one moment."""

from typing import ClassVar, Literal

import torch

from stages.base import Stage, StageConfig
from stages.batch import FaceBatch


class DeinterlaceConfig(StageConfig):
    """Options of `deinterlace`."""

    field: Literal["top", "bottom"] = "top"  # the lines that stay: top = 0, 2, 4, ...; bottom = 1, 3, 5, ...


class Deinterlace(Stage[DeinterlaceConfig]):
    """Keeps one field of an interlaced still and fills the lines between with the mean of their neighbours.

    Videos are deinterlaced while they are read, from both fields and several frames; this stage is for stills out of a
    recorder, where only the one frame is left. Reads and writes `image`: (B, 3, H, W) RGB in [0, 1] of any size.
    """

    Config = DeinterlaceConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image"})
    generative: ClassVar[bool] = False

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """True: one formula, nothing learned."""
        return True

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        height = batch.image.shape[-2]
        first = 0 if self.config.field == "top" else 1
        lines = batch.image[..., first::2, :]
        if lines.shape[-2] == 0:  # a picture of one line has no bottom field
            return batch
        below = torch.cat([lines[..., 1:, :], lines[..., -1:, :]], -2)
        filled = torch.stack([lines, (lines + below) / 2], -2).flatten(-3, -2)  # kept, filled, kept, filled, ...
        if first == 1:
            filled = torch.cat([lines[..., :1, :], filled], -2)  # the top line has a neighbour below only
        if filled.shape[-2] < height:
            filled = torch.cat([filled, filled[..., -1:, :]], -2)
        return batch.replace(image=filled[..., :height, :])
