"""Stage `upscale`: a canonical face of some 128 px becomes one of 512 or 768, and still averages to what it was."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from stages.base import Sides, Stage, StageConfig
from stages.batch import HALF_INVENTED, FaceBatch
from stages.consistency import agree
from stages.foreign_upscalers import REALESRGAN, ForeignUpscaler, foreign_files, load_foreign
from stages.luma import luma
from stages.networks.upscaler import ALIGN, SCALES, Upscaler
from stages.precision import Precision
from stages.resample import carried, resample
from stages.tiling import tiled
from stages.weights import load_network

_SALT = 0x6EA10  # keeps the grain apart from what other stages draw with the same seed
SIDES_PX = (64, 2048)  # of the faces that are taken
OVERLAP_PX, MARGIN_PX = 32, 4  # of tiles, input pixels; the network's own border shows in its outer pixels most


class UpscaleConfig(StageConfig):
    """Options of `upscale`."""

    weights: str = "upscale_768"  # name of a card in weights/
    # A checkpoint file for spandrel, relative to the YAML, or "realesrgan": takes the place of `weights`.
    model: str | None = Field(default=None, min_length=1)
    size: int = Field(default=768, gt=64, le=8192)  # px, side of the output; 512 and 768 cost no resampling from 128
    fidelity: float = Field(default=0.5, ge=0, le=1)  # 1: distortion-optimal; 0: sharpest; without effect on a `model`
    # Standard deviation of film grain at fidelity 0, of [0, 1]; none at fidelity 1, nor on top of a `model`.
    grain: float = Field(default=0.016, ge=0, le=0.1)
    tile: int = Field(default=192, ge=96, le=1024, multiple_of=ALIGN)  # input px; bounds the memory of the network

    @field_validator("model")
    @classmethod
    def _beside(cls, value: str | None, info: ValidationInfo) -> str | None:
        """The path taken from the YAML's folder, which comes as `folder` of the context; without it, from here."""
        if value is None or value == REALESRGAN:
            return value
        path = os.path.abspath(Path((info.context or {}).get("folder", "")) / value)
        if not os.path.isfile(path):
            raise ValueError(f'{path}: no such checkpoint; expected a file, relative to the YAML, or "{REALESRGAN}"')
        return path


class Upscale(Stage[UpscaleConfig]):
    """Enlarges canonical faces, up to six times.

    Reads and writes `image`: (B, 3, n, n) RGB in [0, 1] -> (B, 3, size, size), n < size <= 6 n. Area-averaged to n, the
    result equals what came in. Writes `uncertainty` as well: what the stage added to a bicubic enlargement is invented.
    Landmarks and maps are brought along. Larger pictures are worked on in tiles, one face at a time; a `model` made for
    faces (GFPGAN, CodeFormer, RestoreFormer) sees each whole, in its own frame of 512 px. Below fidelity 1 film grain
    covers skin that would look like wax: noise that shows nothing and is not counted as invented, alike at every run.
    Method: a residual network at the input's size with sub-pixel convolution (Shi et al., CVPR 2016), written for bf16
    on a CPU, with a detail branch against a critic; `model` takes any network that spandrel reads instead.
    """

    Config = UpscaleConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image", "uncertainty"})
    carries: ClassVar[frozenset[str]] = frozenset({"landmarks", "occlusion", "to_source"})
    training: ClassVar[Mapping[str, str]] = {"weights": "configs/train/upscale.yaml"}
    one_by_one: ClassVar[bool] = True
    accepts_px: ClassVar[tuple[int, int] | None] = SIDES_PX

    @classmethod
    def crops_px(cls, config: StageConfig) -> tuple[int, int]:
        assert isinstance(config, UpscaleConfig)
        least, most = SIDES_PX
        return max(least, -(-config.size // max(SCALES))), min(most, config.size - 1)

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        assert isinstance(config, UpscaleConfig)
        return config.size, config.size

    def __init__(self, config: UpscaleConfig, device: torch.device, precision: Precision) -> None:
        super().__init__(config, device, precision)
        self.network: Upscaler | None = None
        self.foreign: ForeignUpscaler | None = None
        if config.model is not None:
            self.foreign = load_foreign(config.model, device)
            return
        network = load_network(config.weights, device, torch.bfloat16 if precision == "bf16" else torch.float32)
        if not isinstance(network, Upscaler):
            raise TypeError(f"upscale: {config.weights} holds a {type(network).__name__}, not an upscaler")
        self.network = network

    @classmethod
    def cards(cls, config: StageConfig) -> dict[str, str]:
        assert isinstance(config, UpscaleConfig)
        return {} if config.model else {"weights": config.weights}

    @classmethod
    def model_files(cls, config: StageConfig) -> Sequence[Path]:
        assert isinstance(config, UpscaleConfig)
        return foreign_files(config.model) if config.model else ()

    @torch.inference_mode()
    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Raises `ValueError` where the pictures are not square, or the size asked for is no enlargement up to 6."""
        height, width = batch.image.shape[-2:]
        size = self.config.size
        if height != width or not height < size <= max(SCALES) * height:
            raise ValueError(
                f"upscale: size = {size} px from {width}x{height} px: expected a square face crop and "
                f'an enlargement of more than 1 and at most {max(SCALES)}; put a stage "resample" before it'
            )
        faces = zip(batch.image.float(), batch.seeds, strict=True)
        pictures, added = zip(*(self._enlarge(face[None], seed) for face, seed in faces), strict=True)
        image = torch.cat(pictures)
        image = torch.where(batch.grey.view(-1, 1, 1, 1), luma(image), image)
        changes = carried(batch, (size, size))
        invented = torch.cat(added)
        before = changes.get("uncertainty")
        changes |= {"image": image, "uncertainty": invented if before is None else torch.maximum(before, invented)}
        return batch.replace(**changes)

    def _enlarge(self, face: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(1, 3, n, n) -> the picture (1, 3, size, size) in [0, 1], and (1, 1, size, size) how invented it is; `seed`
        is for the grain."""
        side, size = face.shape[-1], self.config.size
        scale = min(s for s in SCALES if s * side >= size)
        if self.foreign is not None and self.foreign.face_model:
            image = self._tile(face, scale)  # a tile is no face
        else:
            image = self._tiled(face, scale)
        if scale * side != size:
            image = agree(resample(image.clamp(0, 1), (size, size), "lanczos"), face, torch.ones_like(face[:, :1]))
        plain = F.interpolate(face, size=(size, size), mode="bicubic", align_corners=False)
        added = F.avg_pool2d((image - plain).abs().mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
        if self.network is not None and (strength := self.config.grain * (1 - self.config.fidelity)):
            grain = film_grain(seed, size).to(face.device)
            image = agree(image + strength * grain, face, torch.ones_like(face[:, :1]))
        return image.clamp(0, 1), added / (added + HALF_INVENTED)

    def _tiled(self, face: Tensor, scale: int) -> Tensor:
        """(1, 3, n, n) -> (1, 3, scale * n, scale * n), in tiles."""
        side = face.shape[-1]
        room = -side % ALIGN
        padded = F.pad(face, (0, room, 0, room), mode="reflect")
        image = torch.empty(1, 3, scale * side, scale * side, device=face.device)
        for top, rows in tiled(padded, scale, self.config.tile, OVERLAP_PX, MARGIN_PX, lambda t: self._tile(t, scale)):
            image[..., top : top + rows.shape[-2], :] = rows[..., : scale * side - top, : scale * side]
        return image

    def _tile(self, piece: Tensor, scale: int) -> Tensor:
        """One tile at `scale` times its size, whose area average equals it."""
        if self.network is not None:
            smooth, detail = self.network(piece, scale, detail=self.config.fidelity < 1)
            large = smooth if detail is None else smooth + (1 - self.config.fidelity) * detail
        else:
            assert self.foreign is not None
            large = self.foreign(piece)
            target = (scale * piece.shape[-2], scale * piece.shape[-1])
            large = resample(large.clamp(0, 1), target, "lanczos")
        return agree(large, piece, torch.ones_like(piece[:, :1]))


def film_grain(seed: int, size: int) -> Tensor:
    """(1, 1, size, size) noise of mean 0 and standard deviation 1, drawn from the seed of a face.

    Coarser than a pixel and finer than nine, as grain is; the same for every device.
    """
    generator = torch.Generator().manual_seed((seed ^ _SALT) % 2**63)
    noise = F.avg_pool2d(torch.randn(1, 1, size + 10, size + 10, generator=generator), 3, 1)
    grain = noise[..., 4:-4, 4:-4] - F.avg_pool2d(noise, 9, 1)
    return (grain - grain.mean()) / grain.std()
