"""Stage `aspect`: pixels that are not square, as recorders store them, are made square."""

from typing import ClassVar

from pydantic import Field

from stages.base import Stage, StageConfig
from stages.batch import FaceBatch
from stages.resample import carried, resample


class AspectConfig(StageConfig):
    """Options of `aspect`."""

    # Width over height of one stored pixel: 12/11 = 1.0909 for 704x576 shown at 4:3, 0.5455 for 704x288 (one field).
    pixel_aspect: float = Field(gt=0.1, lt=10)


class Aspect(Stage[AspectConfig]):
    """Stretches the shorter side of the pixels by Lanczos-3, so that no line and no column is lost.

    Reads and writes `image`: (B, 3, H, W) RGB in [0, 1] of any size. Landmarks, maps and `to_source` that an earlier
    stage wrote are brought to the new size with it. For stills; videos state their own aspect, which is applied while
    they are read.
    """

    Config = AspectConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image"})
    carries: ClassVar[frozenset[str]] = frozenset({"landmarks", "occlusion", "uncertainty", "to_source"})
    generative: ClassVar[bool] = False

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        """True: one formula, nothing learned."""
        return True

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        height, width = batch.image.shape[-2:]
        aspect = self.config.pixel_aspect
        size = (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
        return batch.replace(image=resample(batch.image, size, "lanczos"), **carried(batch, size))
