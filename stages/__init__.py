"""The stages a chain is made of. A name in a YAML leads here, and from here to one file."""

from stages.aspect import Aspect
from stages.base import Step
from stages.coogan import Coogan
from stages.degrade import Degrade
from stages.deinterlace import Deinterlace
from stages.detect import Detect
from stages.fuse import Fuse
from stages.levels import Levels
from stages.paste import Paste
from stages.prouigan import ProUigan
from stages.resample import Resample
from stages.upscale import Upscale

STAGES: dict[str, type[Step]] = {
    "aspect": Aspect,
    "coogan": Coogan,
    "degrade": Degrade,
    "deinterlace": Deinterlace,
    "detect": Detect,
    "fuse": Fuse,
    "paste": Paste,
    "levels": Levels,
    "prouigan": ProUigan,
    "resample": Resample,
    "upscale": Upscale,
}
