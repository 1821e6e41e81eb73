"""Stage `aspect`: pixels that are not square, as recorders store them, are made square."""

import math

from pydantic import Field

from stages.base import Sides, StageConfig
from stages.resample import Resizing


class AspectConfig(StageConfig):
    """Options of `aspect`."""

    # Width over height of one stored pixel: 12/11 = 1.0909 for 704x576 shown at 4:3, 0.5455 for 704x288 (one field).
    pixel_aspect: float = Field(gt=0.1, lt=10)


class Aspect(Resizing[AspectConfig]):
    """Stretches the shorter side of the pixels by Lanczos-3, so that no line and no column is lost. For stills; videos
    state their own aspect, which is applied while they are read."""

    Config = AspectConfig
    method = "lanczos"

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        return sides[0], math.inf

    def size(self, height: int, width: int) -> tuple[int, int]:
        aspect = self.config.pixel_aspect
        return (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
