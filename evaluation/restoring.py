"""What measuring code shares: the frozen benchmark, pictures as stages take and make them, and the restorer as a bare
stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.faces import as_rgb
from pipeline.chain import pick_device, pick_precision
from pipeline.config import ConfigError, load_chain
from pipeline.images import to_uint8
from stages import STAGES
from stages.base import Stage
from stages.batch import FaceBatch

REPOSITORY = Path(__file__).resolve().parent.parent
# The frozen benchmark: every face covered by one painted occluder, area averaging, sensor noise, JPEG of the thumbnail.
# Tone, blur, framing and text are off: they have no bar, and what remains anyone can repeat with other occluders.
BENCHMARK: dict[str, Any] = {
    "occluder_probability": 1.0, "noise_probability": 1.0, "jpeg_probability": 1.0, "jpeg_quality": (60, 95),
    "read_noise": (0.0, 5.0), "shot_noise": (0.0, 6.0), "coverage": (0.05, 0.5),
}  # fmt: skip
Device = Literal["auto", "cpu", "cuda"]
AnyPrecision = Literal["auto", "fp32", "bf16"]


def face_batch(images: Sequence[np.ndarray], device: torch.device) -> FaceBatch:
    """uint8 pictures of one size, RGB or grey, as a batch at the start of a chain; seeds are all 0."""
    rgb = np.stack([as_rgb(image) for image in images])
    grey = torch.tensor([bool((image[..., :1] == image).all()) for image in rgb])
    tensor = torch.from_numpy(rgb.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    names = tuple(str(i) for i in range(len(images)))
    return FaceBatch(sources=names, image=tensor, observed=tensor, seeds=(0,) * len(images), grey=grey).to(device)


def as_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def as_batch(image: Tensor) -> FaceBatch:
    """One (1, 3, n, n) picture in colour as a stage takes it."""
    return FaceBatch(("face",), image, image, (0,), torch.tensor([False]))


def pictures(image: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [0, 1] -> (H, W, 3) uint8 each."""
    return [to_uint8(p.permute(1, 2, 0).float().cpu().numpy()) for p in image]


def build_stage(
    config: Path, device: Device = "auto", precision: AnyPrecision = "auto", fidelity: float | None = None
) -> tuple[Stage, torch.device]:
    """The restorer of a chain, which must be its first stage, and the device it was built on.

    Raises:
        ConfigError: the chain is wrong, or does not start with `prouigan`.
    """
    chain, place = load_chain(config, fidelity=fidelity), pick_device(device)
    first = chain.stages[0]
    if first.name != "prouigan":
        raise ConfigError([f"{config}: stages[0].stage is {first.name!r}; what is measured here is 'prouigan'"])
    stage = STAGES[first.name](first.config, place, pick_precision(precision, place))
    assert isinstance(stage, Stage), "prouigan works on batches"
    return stage, place
