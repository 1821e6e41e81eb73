"""Stage `levels`: dark and flat recordings made readable by one straight line per picture; nothing is learned."""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stages.base import Stage, StageConfig
from stages.batch import FaceBatch

# Below this range a picture is one flat tone: stretching it would show quantisation and noise. Five of 255 levels.
LEAST_RANGE = 5 / 255


class LevelsConfig(StageConfig):
    """Options of `levels`."""

    black: float | None = Field(default=None, ge=0, le=1)  # input value that becomes 0; None = measured per picture
    white: float | None = Field(default=None, ge=0, le=1)  # input value that becomes 1; None = measured per picture
    clip: float = Field(default=0.005, ge=0, lt=0.5)  # share of the values given up at either end when measuring
    gamma: float = Field(default=1.0, gt=0, le=10)  # exponent is 1 / gamma: above 1 the dark parts become lighter

    @model_validator(mode="after")
    def _in_order(self) -> "LevelsConfig":
        if self.black is not None and self.white is not None and self.white - self.black < LEAST_RANGE:
            raise ValueError(f"white ({self.white}) must exceed black ({self.black}) by {LEAST_RANGE:.3f} or more")
        return self


class Levels(Stage[LevelsConfig]):
    """Stretches the tones of each picture between a black and a white point, alike in all channels, so that hues stay.

    Reads and writes `image`: (B, 3, H, W) RGB in [0, 1] of any size. Writes `notes["levels"]`: the two points and the
    exponent that were used, from which a second program can repeat the step: out = ((in - black) / (white - black)) **
    (1 / gamma), clamped. A picture of one flat tone is left as it is.
    """

    Config = LevelsConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image", "notes"})
    generative: ClassVar[bool] = False

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """True: one formula, nothing learned."""
        return True

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        ends = [self._ends(picture) for picture in batch.image]
        low, high = (torch.tensor([e[i] for e in ends], device=batch.image.device).view(-1, 1, 1, 1) for i in (0, 1))
        image = ((batch.image - low) / (high - low)).clamp(0, 1) ** (1 / self.config.gamma)
        notes = tuple(
            note | {"levels": {"black": round(b, 5), "white": round(w, 5), "gamma": self.config.gamma}}
            for note, (b, w) in zip(batch.notes, ends, strict=True)
        )
        return batch.replace(image=image, notes=notes)

    def _ends(self, picture: Tensor) -> tuple[float, float]:
        """Black and white point of one (3, H, W) picture, to five decimals, as they are recorded."""
        values = picture.flatten().sort().values
        last = len(values) - 1
        give = int(last * self.config.clip)
        black = float(values[give]) if self.config.black is None else self.config.black
        white = float(values[last - give]) if self.config.white is None else self.config.white
        return (0.0, 1.0) if white - black < LEAST_RANGE else (round(black, 5), round(white, 5))
