"""Plain resampling: the honest baseline, and the way to bring pictures to another size between learned stages."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stages.base import ConfigT, Sides, Stage, StageConfig
from stages.batch import FaceBatch

LANCZOS_LOBES = 3


def at_new_size(to_source: Tensor, scale: Tensor) -> Tensor:
    """(B, 2, 3) matrices from pixels to source, after the pixels were brought to `scale` (x, y) times their number."""
    shift = to_source[:, :, :2] @ (0.5 / scale - 0.5) + to_source[:, :, 2]  # edges lie at -0.5 and size - 0.5
    return torch.cat([to_source[:, :, :2] / scale, shift[:, :, None]], dim=2)


def carried(batch: FaceBatch, size: tuple[int, int]) -> dict[str, Tensor]:
    """Landmarks, maps and `to_source` of a batch whose pictures go to `size` (height, width), as far as they exist."""
    height, width = batch.image.shape[-2:]
    changes: dict[str, Tensor] = {}
    scale = torch.tensor([size[1] / width, size[0] / height], device=batch.image.device)  # (x, y)
    if batch.landmarks is not None:
        changes["landmarks"] = (batch.landmarks + 0.5) * scale - 0.5  # edges lie at -0.5 and size - 0.5
    if batch.to_source is not None:
        changes["to_source"] = at_new_size(batch.to_source, scale)
    for name in ("occlusion", "uncertainty"):
        if (value := getattr(batch, name)) is not None:
            changes[name] = F.interpolate(value, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    return changes


class ResampleConfig(StageConfig):
    """Options of `resample`."""

    size: int = Field(default=128, ge=1, le=8192)  # px, the longer side of the output; the aspect is kept
    method: Literal["lanczos", "bicubic", "nearest", "area"] = "bicubic"  # the first two blur first when shrinking


def lanczos_matrix(source: int, target: int) -> Tensor:
    """(target, source) float32 weights of Lanczos-3 resampling along one axis; rows sum to 1.

    When shrinking, the kernel is widened by the ratio, so that nothing aliases. Edges use the samples there are.
    Method: Duchon, Lanczos filtering in one and two dimensions, J. Appl. Meteorology 1979.
    """
    ratio = source / target
    width = max(ratio, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio - 0.5
    offset = (torch.arange(source, dtype=torch.float64)[None] - centres[:, None]) / width  # (target, source)
    weights = torch.sinc(offset) * torch.sinc(offset / LANCZOS_LOBES) * (offset.abs() < LANCZOS_LOBES)
    return (weights / weights.sum(1, keepdim=True)).float()


def resample(image: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """Resample (B, C, H, W) pictures in [0, 1] to `size` (height, width); the result stays in [0, 1]."""
    if tuple(image.shape[-2:]) == size:
        return image
    if method == "lanczos":
        rows = lanczos_matrix(image.shape[-2], size[0]).to(image)
        columns = lanczos_matrix(image.shape[-1], size[1]).to(image)
        out = rows @ image @ columns.T
    elif method == "bicubic":
        out = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    else:
        out = F.interpolate(image, size=size, mode={"nearest": "nearest-exact", "area": "area"}[method])
    return out.clamp(0, 1)


class Resizing(Stage[ConfigT]):
    """A stage that brings the picture to another size by a formula.

    Reads and writes `image`: (B, 3, H, W) RGB in [0, 1] of any size. Landmarks, maps and `to_source` that an earlier
    stage wrote are brought to the new size with it.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image"})
    carries: ClassVar[frozenset[str]] = frozenset({"landmarks", "occlusion", "uncertainty", "to_source"})
    generative: ClassVar[bool] = False

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """True: one formula, nothing learned."""
        return True

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for those of the input, pixels."""

    @property
    @abstractmethod
    def method(self) -> str:
        """A method of `resample`."""

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        size = self.size(*batch.image.shape[-2:])
        return batch.replace(image=resample(batch.image, size, self.method), **carried(batch, size))


class Resample(Resizing[ResampleConfig]):
    """Brings the picture to another size without inventing anything."""

    Config = ResampleConfig

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        assert isinstance(config, ResampleConfig)
        return config.size, config.size

    @property
    def method(self) -> str:
        return self.config.method

    def size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.config.size / max(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))
