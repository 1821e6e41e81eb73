"""Build a checked chain and run batches through it."""

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ChainConfig, ConfigError
from pipeline.images import MIN_SIDE_PX, ImageError, Limits, check_size, sha256, to_uint8
from stages import STAGES
from stages.base import Closing, Opening, Stage
from stages.batch import FaceBatch
from stages.precision import Precision, fastest_precision
from stages.resample import at_new_size
from stages.weights import WeightsError

# Faces the networks see at once. The number never follows the run: short lots are filled up, because convolutions of
# another batch shape may differ in the last bit, and the same face must give the same bytes in any company.
LOT = {"cpu": 4, "cuda": 64}  # on one core, 4 faces at a time are as fast as 16 and waste less on odd sizes


class ChainError(RuntimeError):
    """A stage failed; the message names it, the cause is kept."""


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: another name, or CUDA was asked for and is not usable here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError([f"device {name!r}: expected auto, cpu or cuda"])
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["--device cuda: PyTorch finds no usable CUDA device here; use --device cpu"])
    return torch.device(name)


def pick_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` takes what the device computes fastest. Raises `ConfigError` for another name."""
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError([f"precision {name!r}: expected auto, fp32 or bf16"])
    return fastest_precision(device) if name == "auto" else name


def join(parts: list[FaceBatch]) -> FaceBatch:
    """Batches of equal fields and sizes, one after the other."""
    if len(parts) == 1:
        return parts[0]
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(FaceBatch):
        values = [getattr(part, item.name) for part in parts]
        if isinstance(values[0], Tensor):
            fields[item.name] = torch.cat(values)
        elif values[0] is not None:
            fields[item.name] = tuple(v for value in values for v in value)
    return FaceBatch(**fields)


def fill(batch: FaceBatch, count: int) -> FaceBatch:
    """The batch, its last face repeated up to `count` faces."""
    missing = count - len(batch)
    return batch if missing <= 0 else join([batch] + [batch.cut(len(batch) - 1, len(batch))] * missing)


def _same_frame(stage: Stage[Any], before: FaceBatch, after: FaceBatch) -> FaceBatch:
    """`to_source` brought to the size of a picture whose stage changed that and nothing else of the geometry."""
    old, new = before.image.shape[-2:], after.image.shape[-2:]
    if after.to_source is None or old == new or "to_source" in stage.carries | stage.writes:
        return after
    scale = torch.tensor([new[1] / old[1], new[0] / old[0]], device=after.to_source.device)
    return after.replace(to_source=at_new_size(after.to_source, scale))


def _traced(batch: FaceBatch, name: str) -> FaceBatch:
    """The batch with, in each face's notes, a line on what a stage made of it."""
    notes = []
    for image, earlier in zip(batch.image, batch.notes, strict=True):
        pixels = np.ascontiguousarray(to_uint8(image.permute(1, 2, 0).float().cpu().numpy()))
        made = {"stage": name, "size_px": list(pixels.shape[:2]), "pixels_sha256": sha256(pixels.tobytes())}
        notes.append(earlier | {"stages": [*earlier.get("stages", ()), made]})
    return batch.replace(notes=tuple(notes))


class Chain:
    """The stages of a chain, built and ready on one device.

    Attributes:
        opening: finds the faces of whole frames; None where the inputs are face crops.
        closing: puts the faces back into their frames; None where faces are the result.
        stages: the steps from faces to faces, each with its place and name in the configuration.

    Raises:
        ConfigError: a stage cannot be built, for instance because its weights do not fit the network; all are named.
    """

    def __init__(self, config: ChainConfig, device: torch.device, precision: Precision) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.lot = LOT.get(device.type, 4)
        self.opening: Opening[Any] | None = None
        self.closing: Closing[Any] | None = None
        self.stages: list[tuple[int, str, Stage[Any]]] = []
        problems = []
        for index, entry in enumerate(config.stages):
            try:
                step = STAGES[entry.name](entry.config, device, precision)
                if isinstance(step, Opening):
                    self.opening = step
                elif isinstance(step, Closing):
                    self.closing = step
                else:
                    assert isinstance(step, Stage)
                    self.stages.append((index, entry.name, step))
            except (WeightsError, TypeError, ValueError) as error:  # files, or options that do not go together
                problems.append(f"{config.origin}: stages[{index}] ({entry.name}): {error}")
        if problems:
            raise ConfigError(problems)

    @property
    def generative(self) -> bool:
        """Whether any stage adds detail that was not in its input."""
        return any(stage.generative for _, _, stage in self.stages)

    @property
    def moments(self) -> int:
        """Thumbnails of one face, out of a video, that the chain makes use of."""
        return max((stage.moments for _, _, stage in self.stages), default=1)

    @property
    def reads_mask(self) -> bool:
        """Whether a given mask changes anything."""
        return any("given_mask" in stage.reads for _, _, stage in self.stages)

    @property
    def accepts_px(self) -> tuple[int, int] | None:
        """Smallest and largest side of the square face crops the chain takes; None = any picture."""
        return None if self.opening or not self.stages else self.stages[0][2].crops_px(self.stages[0][2].config)

    @property
    def least_px(self) -> int:
        """Smallest side of the pictures the chain takes, where it takes any."""
        return MIN_SIDE_PX if self.opening or not self.stages else max(MIN_SIDE_PX, self.stages[0][2].least_px)

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Run every stage; tensors come from and go back to the CPU. The networks see lots of one fixed size.

        Raises:
            ChainError: a stage failed.
        """
        parts = []
        for start in range(0, len(batch), self.lot):
            parts.append(self._run(batch.cut(start, start + self.lot)))
        return join(parts)

    def _run(self, batch: FaceBatch) -> FaceBatch:
        batch, count = batch.to(self.device), len(batch)
        with torch.inference_mode():
            for index, name, stage in self.stages:
                before = batch
                try:
                    height, width = before.image.shape[-2:]
                    check_size(width, height, Limits(width * height, stage.crops_px(stage.config), stage.least_px))
                    # Plain resampling and stages that see one face at a time need no lots of one size; a large picture
                    # would be paid many times over.
                    lots = stage.generative and not stage.one_by_one
                    batch = stage(fill(batch, self.lot)).cut(0, count) if lots else stage(batch)
                except ImageError as error:
                    raise ChainError(f"stages[{index}] ({name}): {error}") from error
                except Exception as error:  # a stage may fail in any way; the cause is kept and the face recorded
                    raise ChainError(f"stages[{index}] ({name}): {type(error).__name__}: {error}") from error
                batch = _same_frame(stage, before, batch)
                if len(self.stages) > 1:  # of a single one the output and its hash say as much
                    batch = _traced(batch, name)
        return batch.to(torch.device("cpu"))
