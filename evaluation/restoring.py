"""Restorers and degradations as the measuring code calls them: thumbnails in, pictures with their maps out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.faces import THUMBNAIL_SIZE, EvaluationFace, as_rgb, bicubic, chunks
from pipeline.chain import pick_device, pick_precision
from pipeline.config import ConfigError, load_chain
from pipeline.restorer import Restorer
from stages import STAGES
from stages.base import Stage
from stages.batch import FaceBatch
from stages.degradation import DegradationConfig, degrade_face

REPOSITORY = Path(__file__).resolve().parent.parent
# The frozen benchmark: every face covered by one painted occluder, area averaging, sensor noise, JPEG of the thumbnail.
# Tone, blur, framing and text are off: they have no bar, and what remains anyone can repeat with other occluders.
BENCHMARK: dict[str, Any] = {
    "occluder_probability": 1.0, "noise_probability": 1.0, "jpeg_probability": 1.0, "jpeg_quality": (60, 95),
    "read_noise": (0.0, 5.0), "shot_noise": (0.0, 6.0), "coverage": (0.05, 0.5),
}  # fmt: skip
STAGE_BATCH = 32  # faces handed to the stage at once
CHUNK = 64  # faces restored at once: bounds the memory of full results


class RestoredFace(Protocol):
    """What is read of a `pipeline.Result`; attributes as documented there. Whatever has these can be measured."""

    @property
    def image(self) -> np.ndarray | None: ...

    @property
    def landmarks(self) -> np.ndarray | None: ...

    @property
    def occlusion(self) -> np.ndarray | None: ...

    @property
    def uncertainty(self) -> np.ndarray | None: ...

    @property
    def occluded_fraction(self) -> float | None: ...


class DegradedFace(Protocol):
    """What is read of a `stages.degradation.Degraded`; attributes as documented there."""

    @property
    def lq(self) -> np.ndarray: ...

    @property
    def gt(self) -> np.ndarray: ...

    @property
    def mask(self) -> np.ndarray: ...

    @property
    def mask_lq(self) -> np.ndarray: ...

    @property
    def occluder(self) -> str | None: ...


Device = Literal["auto", "cpu", "cuda"]
AnyPrecision = Literal["auto", "fp32", "bf16"]
Restore = Callable[[list[np.ndarray]], Sequence[RestoredFace]]
MakeRestore = Callable[[float], Restore]
Degrade = Callable[[EvaluationFace], DegradedFace]


@dataclass(frozen=True)
class Output:
    """A result reduced to what is measured: uint8 RGB picture, maps as float16; `refused`: there was no picture."""

    image: np.ndarray
    landmarks: np.ndarray | None
    occlusion: np.ndarray | None
    uncertainty: np.ndarray | None
    occluded_fraction: float
    refused: bool


def _map(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float16)


def reduce_result(result: RestoredFace, lq: np.ndarray) -> Output:
    """Keep what is measured. A refused face counts as bicubic: the user gained nothing, and the count is shown."""
    image = bicubic(lq) if result.image is None else as_rgb(result.image)
    fraction = float("nan") if result.occluded_fraction is None else float(result.occluded_fraction)
    maps = _map(result.occlusion), _map(result.uncertainty)
    return Output(image, result.landmarks, *maps, fraction, refused=result.image is None)


def restore_all(restore: Restore, inputs: list[np.ndarray]) -> list[Output]:
    """Restore in chunks, keeping only what is measured."""
    return [
        reduce_result(result, lq)
        for part in chunks(inputs, CHUNK)
        for result, lq in zip(restore(part), part, strict=True)
    ]


def api_restorer(config: Path, device: Device = "auto", precision: AnyPrecision = "auto") -> MakeRestore:
    """The product as a Python user calls it."""

    def make(fidelity: float) -> Restore:
        return Restorer.from_config(config, fidelity=fidelity, device=device, precision=precision).restore

    return make


@dataclass(frozen=True)
class StageResult:
    """One face out of a stage run directly; attributes as in `RestoredFace`."""

    image: np.ndarray | None
    landmarks: np.ndarray | None
    occlusion: np.ndarray | None
    uncertainty: np.ndarray | None
    occluded_fraction: float | None


def face_batch(images: Sequence[np.ndarray], device: torch.device) -> FaceBatch:
    """uint8 pictures of one size, RGB or grey, as a batch at the start of a chain; seeds are all 0."""
    rgb = np.stack([as_rgb(image) for image in images])
    grey = torch.tensor([bool((image[..., :1] == image).all()) for image in rgb])
    tensor = torch.from_numpy(rgb.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    names = tuple(str(i) for i in range(len(images)))
    return FaceBatch(sources=names, image=tensor, observed=tensor, seeds=(0,) * len(images), grey=grey).to(device)


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


def network_restorer(config: Path, device: Device = "auto", precision: AnyPrecision = "auto") -> MakeRestore:
    """The `prouigan` stage alone, without decoding, verdict or records: quicker, and the same pictures."""

    def make(fidelity: float) -> Restore:
        stage, place = build_stage(config, device, precision, fidelity)

        def restore(images: list[np.ndarray]) -> list[StageResult]:
            return [r for part in chunks(images, STAGE_BATCH) for r in _stage_results(stage(face_batch(part, place)))]

        return restore

    return make


@torch.inference_mode()
def _stage_results(batch: FaceBatch) -> list[StageResult]:
    def rows(values: Tensor | None) -> list[Any]:
        return [None] * len(batch) if values is None else list(values.float().cpu().numpy())

    images = (batch.image.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    maps = ([None if m is None else m[0] for m in rows(values)] for values in (batch.occlusion, batch.uncertainty))
    fractions = [None if f is None else float(f) for f in rows(batch.occluded_fraction)]
    return [StageResult(*columns) for columns in zip(images, rows(batch.landmarks), *maps, fractions, strict=True)]


def frozen_degradation(config: Path | None = None) -> tuple[Degrade, Degrade]:
    """The benchmark's degradation, and the same without an occluder; each face draws from its own id.

    Args:
        config: a chain that starts with `degrade`, to use instead of `BENCHMARK`; its framing error is left out.

    Raises:
        ConfigError: the chain is wrong, or does not start with `degrade`.
    """
    covered = DegradationConfig.clean(THUMBNAIL_SIZE, **BENCHMARK)
    if config is not None:
        first = load_chain(config, check_weights=False).stages[0].config
        if not isinstance(first, DegradationConfig):
            raise ConfigError([f"{config}: stages[0] must be 'degrade'"])
        covered = first
    bare = covered.model_copy(update={"occluder": None, "occluder_probability": 0.0, "text_probability": 0.0})

    def with_config(settings: DegradationConfig) -> Degrade:
        return lambda face: degrade_face(face.image, face.landmarks, face.rng, settings)

    return with_config(covered), with_config(bare)
