"""Options of the degradation: how often each fault occurs and how strong it is."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.base import StageConfig

OccluderKind = Literal[
    "surgical_mask", "cloth_mask", "respirator", "sunglasses", "scarf", "hand", "cap", "hood", "hair", "head",
    "brush", "box", "glare", "object",
]  # fmt: skip
Kernel = Literal["area", "bicubic", "bilinear", "lanczos", "subsample"]

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]

# Masks lead: they are what covers faces in the street; the rest keeps the mask head from calling only masks occluders.
OCCLUDER_WEIGHTS: dict[OccluderKind, float] = {
    "surgical_mask": 0.27, "cloth_mask": 0.19, "respirator": 0.06, "sunglasses": 0.08, "scarf": 0.06, "hand": 0.07,
    "cap": 0.035, "hood": 0.02, "hair": 0.025, "head": 0.03, "brush": 0.05, "box": 0.05, "glare": 0.02, "object": 0.04,
}  # fmt: skip

KERNEL_WEIGHTS: dict[Kernel, float] = {"area": 0.4, "bicubic": 0.25, "bilinear": 0.15, "lanczos": 0.1, "subsample": 0.1}


class DegradationConfig(StageConfig):
    """What may happen to a 128 px face on its way to a CCTV thumbnail.

    Every `..._probability` is the chance that a fault occurs at all; the range beside it is then drawn from uniformly.
    Lengths are in pixels of the 128 px frame unless they end in `_lq_px` (pixels of the thumbnail).
    """

    size: int = Field(default=16, ge=12, le=64)  # px, height and width of the thumbnail

    # Occluders
    occluder_probability: Probability = 0.7
    occluder: OccluderKind | None = None  # draw always this kind
    occluder_weights: dict[OccluderKind, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: dict(OCCLUDER_WEIGHTS)
    )
    second_occluder_probability: Probability = 0.06  # a further one of another kind, where the first leaves room
    coverage: Range = (0.05, 0.5)  # share of the face box (landmarks and forehead) that one occluder covers
    donor_probability: Probability = 0.5  # fill a mask from the donor picture, where one is given

    # Framing (drawn by `misframing`, which the caller applies)
    misframing_probability: Probability = 0.8
    misframing_shift_px: float = Field(default=3.0, ge=0, le=16)
    misframing_scale: float = Field(default=0.08, ge=0, le=0.4)  # relative, both ways
    misframing_roll_deg: float = Field(default=8.0, ge=0, le=45)

    # Tone: changes the truth as well, so that the thumbnail can still agree with it
    tone_probability: Probability = 0.3
    brightness: Range = (-20.0, 20.0)  # grey levels of 255
    contrast: Range = (0.8, 1.15)
    gamma: Range = (0.75, 1.35)
    cast: float = Field(default=0.08, ge=0, le=0.5)  # largest relative gain error of a colour channel
    grey_probability: Probability = 0.05
    infrared_probability: Probability = 0.06  # grey with an infra-red channel mix, a gamma and more noise
    infrared_gamma: Range = (0.6, 1.0)

    # Optics
    defocus_probability: Probability = 0.5
    defocus_sigma_px: Range = (0.4, 2.5)
    motion_probability: Probability = 0.12
    motion_length_px: Range = (3.0, 9.0)
    kernel_weights: dict[Kernel, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: dict(KERNEL_WEIGHTS))

    # Sensor
    noise_probability: Probability = 0.6
    read_noise: Range = (0.0, 5.0)  # standard deviation, grey levels of 255, at the thumbnail
    shot_noise: Range = (0.0, 6.0)  # standard deviation at white, grey levels of 255
    interlace_probability: Probability = 0.04
    interlace_shift_lq_px: Range = (0.2, 1.2)

    # Recorder
    text_probability: Probability = 0.03  # burnt-in time stamp or camera name over the face
    jpeg_probability: Probability = 0.5
    jpeg_quality: tuple[int, int] = (30, 95)
    h264_probability: Probability = 0.12  # only where no JPEG was drawn
    h264_step: Range = (4.0, 28.0)  # quantiser step, grey levels of 255
    # The codec ran at twice or four times the thumbnail's size, which was averaged down afterwards.
    codec_at_2x_probability: Probability = 0.25
    codec_at_4x_probability: Probability = 0.15

    @model_validator(mode="after")
    def _ranges_rise(self) -> "DegradationConfig":
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: the first value ({value[0]}) must not exceed the second ({value[1]})")
        for name in ("occluder_weights", "kernel_weights"):
            if sum(getattr(self, name).values()) <= 0:
                raise ValueError(f"{name}: at least one weight must be above 0")
        if self.codec_at_2x_probability + self.codec_at_4x_probability > 1:
            raise ValueError("codec_at_2x_probability and codec_at_4x_probability: their sum must not exceed 1")
        if self.infrared_probability + self.grey_probability > 1:
            raise ValueError("infrared_probability and grey_probability: their sum must not exceed 1")
        for name, low, high in (("coverage", 0, 1), ("jpeg_quality", 1, 100)):
            if getattr(self, name)[0] < low or getattr(self, name)[1] > high:
                raise ValueError(f"{name}: must lie in {low}..{high}")
        for name in (
            "defocus_sigma_px",
            "motion_length_px",
            "read_noise",
            "shot_noise",
            "gamma",
            "infrared_gamma",
            "h264_step",
        ):
            if getattr(self, name)[0] < 0:
                raise ValueError(f"{name}: must not be negative")
        return self

    @classmethod
    def clean(cls, size: int = 16, **changes: object) -> "DegradationConfig":
        """Everything switched off: pure area averaging. `changes` switch single faults on again."""
        off = {name: 0.0 for name in cls.model_fields if name.endswith("_probability")}
        return cls.model_validate({**off, "size": size, "kernel_weights": {"area": 1.0}, **changes})
