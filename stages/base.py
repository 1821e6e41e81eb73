"""What every stage is: options checked at load time, fields read and written, one call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from stages.batch import FaceBatch
from stages.precision import Precision

Sides = tuple[float, float]  # smallest and largest side of pictures, px
ANY_SIDES: Sides = (1, math.inf)


class StageConfig(BaseModel):
    """Options of a stage. Unknown keys are refused; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Step(ABC, Generic[ConfigT]):
    """One step of a chain: a `Stage` from faces to faces, or its `Opening` or `Closing`.

    Class attributes:
        Config: the pydantic class of its options.
        reads, writes: names of `FaceBatch` fields it needs and fields it changes; the chain checks the order with them.
            Who reads `given_mask` makes use of one where there is one.
        generative: True where the stage adds detail that was not in its input (a learned prior), False for pure
            resampling and measurement. Recorded in the provenance.
        carries: fields that the stage brings along to the new size of `image` where an earlier stage wrote them.
        accepts_px: smallest and largest side of the square face crops it takes; None = any picture from `least_px` on.
        least_px: smallest side of the pictures it takes, where it takes any.
        one_by_one: works on one face at a time, so that its result cannot depend on how many come together.
        training: by option, the config that trains its weights, named where they are missing.
    """

    Config: ClassVar[type[StageConfig]]
    reads: ClassVar[frozenset[str]]
    writes: ClassVar[frozenset[str]]
    generative: ClassVar[bool] = True
    carries: ClassVar[frozenset[str]] = frozenset()
    accepts_px: ClassVar[tuple[int, int] | None] = None
    least_px: ClassVar[int] = 1
    one_by_one: ClassVar[bool] = False
    training: ClassVar[Mapping[str, str]] = {}

    @property
    def moments(self) -> int:
        """Thumbnails of one face, out of a video, that the stage makes use of."""
        return 1

    def __init__(self, config: ConfigT, device: torch.device, precision: Precision) -> None:
        """Build the stage, loading its weights. Raises `WeightsError` where a card or a weights file is wrong."""
        self.config, self.device, self.precision = config, device, precision

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """Whether the step, with these options, is deterministic and nothing in it is learned: what a chain of the
        forensic profile may hold."""
        return False

    @classmethod
    def cards(cls, config: StageConfig) -> dict[str, str]:
        """The cards in `weights/` this stage would load, by the option that names them, for checks before anything
        runs."""
        name = getattr(config, "weights", None)
        return {"weights": name} if name else {}

    @classmethod
    def beyond_weights(cls, config: StageConfig) -> str | None:
        """What the options ask for and the weights, going by their cards, cannot do: option and reason. None where they
        can. Raises `WeightsError`."""
        return None

    @classmethod
    def crops_px(cls, config: StageConfig) -> tuple[int, int] | None:
        """`accepts_px`, as far as the options narrow it."""
        return cls.accepts_px

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        """Sides of the pictures it makes of pictures with `sides`, as far as the options tell: the same, unless a stage
        says otherwise."""
        return sides

    @classmethod
    def model_files(cls, config: StageConfig) -> Sequence[Path]:
        """Files beside the cards that this stage reads a model from; their content decides what it makes."""
        return ()


class Stage(Step[ConfigT]):
    """A step from faces to faces."""

    @abstractmethod
    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Process a batch whose tensors lie on `self.device`; never edits its argument."""


@dataclass(frozen=True)
class Detection:
    """A face that was found, or said to be, in a frame.

    Attributes:
        box_xywh_px: left, top, width, height in pixels; the frame's edges are 0 and its width, height.
        score: how sure the detector is, on its own scale; None for a box from a file.
        points_px: (5, 2) eye centres, nose tip, mouth corners; None where only the box is known.
        row: number of the box in its file, from 0 per picture; None for what a detector found.
        error: why this cannot be used (a box outside the picture), else None.
    """

    box_xywh_px: tuple[float, float, float, float]
    score: float | None = None
    points_px: np.ndarray | None = None
    row: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Cut:
    """A face cut out of its frame.

    Attributes:
        pixels: (n, n, 3) RGB uint8 in the canonical frame.
        to_source: (2, 3) from pixels of the cut to pixels of the frame.
    """

    pixels: np.ndarray
    to_source: np.ndarray


class Opening(Step[ConfigT]):
    """The first step of a chain that takes whole frames: finds the faces and cuts them out."""

    @property
    @abstractmethod
    def reads_boxes(self) -> bool:
        """Whether the faces come from a file of boxes and not from a detector."""

    @abstractmethod
    def find(self, frame: np.ndarray, given: Sequence[Detection] | None = None) -> list[Detection]:
        """Every face of `frame`, (H, W, 3) uint8 RGB, the surest first; `given` boxes keep their order."""

    @abstractmethod
    def choose(
        self, found: Sequence[Detection], size: tuple[int, int]
    ) -> tuple[list[Detection], list[tuple[Detection, str]]]:
        """The faces to go on with, and the others with the reason; `size` is (height, width) of the frame."""

    @abstractmethod
    def side_px(self, detection: Detection) -> float:
        """Side of a face's crop in pixels of the frame: how large the face is."""

    @abstractmethod
    def cut(self, frame: np.ndarray, detection: Detection) -> Cut:
        """Cut one face out of `frame`, at the size the options ask for."""


class Closing(Step[ConfigT]):
    """The last step of a chain that takes whole frames: puts the faces back."""

    @abstractmethod
    def mask(self, batch: FaceBatch) -> Tensor:
        """(B, 1, S, S) in [0, 1]: how far each pixel of `batch.image` shall replace the frame."""

    @abstractmethod
    def paste(
        self,
        frame: np.ndarray,
        face: np.ndarray,
        mask: np.ndarray,
        to_source: np.ndarray,
        covered: np.ndarray | None = None,
    ) -> np.ndarray:
        """`frame` (H, W, 3) float32 in [0, 1] with `face` (S, S, 3) float32 in it under `mask` (S, S); `covered` (S, S)
        says where the frame shows an occluder."""
