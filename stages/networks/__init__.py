"""Bare networks, one architecture per file, and the table their weight cards refer to."""

from collections.abc import Callable

from torch import nn

from stages.networks.classifier import TraitNet
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.prouigan import ProUiganNet
from stages.networks.super_resolution import Inpainter, PlainNet, rcan, rrdb, swinir
from stages.networks.upscaler import Upscaler

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "classifier": TraitNet,
    "coogan": CooganNet,
    "face_parser": FaceParser,
    "identity": IdentityNet,
    "inpainter": Inpainter,
    "plain": PlainNet,
    "prouigan": ProUiganNet,
    "rcan": rcan,
    "rrdb": rrdb,
    "swinir": swinir,
    "upscale": Upscaler,
}
