"""What every stage is: options checked at load time, fields read and written, one call."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict

from stages.batch import FaceBatch

Precision = Literal["fp32", "bf16"]


class StageConfig(BaseModel):
    """Options of a stage. Unknown keys are refused; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Stage(ABC, Generic[ConfigT]):
    """One step of a chain.

    Class attributes:
        Config: the pydantic class of its options.
        reads, writes: names of `FaceBatch` fields it needs and fields it changes; the chain checks the order with them.
        generative: True where the stage adds detail that was not in its input (a learned prior), False for pure
            resampling and measurement. Recorded in the provenance.
        carries: fields that the stage brings along to the new size of `image` where an earlier stage wrote them.
        accepts_px: smallest and largest side of the square face crops it takes as first stage; None = any picture.
    """

    Config: ClassVar[type[StageConfig]]
    reads: ClassVar[frozenset[str]]
    writes: ClassVar[frozenset[str]]
    generative: ClassVar[bool] = True
    carries: ClassVar[frozenset[str]] = frozenset()
    accepts_px: ClassVar[tuple[int, int] | None] = None

    def __init__(self, config: ConfigT, device: torch.device, precision: Precision) -> None:
        """Build the stage, loading its weights. Raises `WeightsError` where a card or a weights file is wrong."""
        self.config, self.device, self.precision = config, device, precision

    @abstractmethod
    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Process a batch whose tensors lie on `self.device`; never edits its argument."""

    @classmethod
    def weight_names(cls, config: StageConfig) -> tuple[str, ...]:
        """Names of the cards in `weights/` this stage would load, for checks before anything runs."""
        name = getattr(config, "weights", None)
        return (name,) if name else ()
