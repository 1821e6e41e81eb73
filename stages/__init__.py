"""The stages a chain is made of. A name in a YAML leads here, and from here to one file."""

from stages.base import Stage
from stages.prouigan import ProUigan

STAGES: dict[str, type[Stage]] = {
    "prouigan": ProUigan,
}
