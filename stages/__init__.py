"""The stages a chain is made of. A name in a YAML leads here, and from here to one file."""

from stages.base import Stage
from stages.degrade import Degrade
from stages.prouigan import ProUigan
from stages.resample import Resample

STAGES: dict[str, type[Stage]] = {
    "degrade": Degrade,
    "prouigan": ProUigan,
    "resample": Resample,
}
