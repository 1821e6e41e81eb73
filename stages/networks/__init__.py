"""Bare networks, one architecture per file, and the table their weight cards refer to."""

from collections.abc import Callable

from torch import nn

from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.prouigan import ProUiganNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "face_parser": FaceParser,
    "identity": IdentityNet,
    "prouigan": ProUiganNet,
}
