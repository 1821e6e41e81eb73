"""Weight cards and files: find, check, load. Nothing is ever downloaded and no pickle is ever read."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import nn

from stages.networks import NETWORKS
from stages.problems import problems_of

WEIGHTS_ENV = "REVISAGE_WEIGHTS"


class WeightsError(RuntimeError):
    """A card or weights file is missing, damaged or does not fit its network."""


class WeightCard(BaseModel):
    """`weights/<name>.json`: everything needed to rebuild, trust and judge a weights file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    architecture: str  # a key of `stages.networks.NETWORKS`
    arguments: dict[str, Any]
    input: dict[str, Any]  # size, range, alignment
    data: dict[str, Any]  # sets, licences, split, counts
    recipe: dict[str, Any]  # config, commit, seed, steps, hardware, hours
    metrics: list[dict[str, Any]]  # set, n, metric, value, interval, baseline
    sha256: str
    licence: str
    limits: str


def weights_dir() -> Path:
    """The one folder weights are read from: $REVISAGE_WEIGHTS, else `weights/` beside the code."""
    return Path(os.environ.get(WEIGHTS_ENV) or Path(__file__).resolve().parent.parent / "weights")


def card_names() -> list[str]:
    """Names of all cards in the weights folder, sorted."""
    return sorted(p.stem for p in weights_dir().glob("*.json"))


def read_card(name: str) -> WeightCard:
    """Read and check `weights/<name>.json`.

    Raises:
        WeightsError: no such card (the names there are listed), or it does not hold the expected fields, one line each.
    """
    path = weights_dir() / f"{name}.json"
    if not path.is_file():
        raise WeightsError(f"no card {path}; cards there: {', '.join(card_names()) or 'none'}")
    try:
        return WeightCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise WeightsError("\n".join(problems_of(error, WeightCard, str(path), "", "the card"))) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a weight card: {error}") from error


def weights_file(name: str) -> Path:
    """Where the tensors of card `name` are expected."""
    return weights_dir() / f"{name}.safetensors"


def read_checked(name: str) -> bytes:
    """The bytes of a weights file, after their SHA-256 was found equal to the card's.

    Raises:
        WeightsError: the file is missing or its hash differs; the message names both hashes and the path.
    """
    card, path = read_card(name), weights_file(name)
    if not path.is_file():
        raise WeightsError(f"{path} is missing; the card {path.with_suffix('.json')} expects it there")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != card.sha256:
        raise WeightsError(
            f"{path}: SHA-256 is {found}, the card says {card.sha256}; restore the file from the repository"
        )
    return data


def load_network(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the network of card `name`, load its tensors strictly, cast once to `dtype`, set eval mode.

    Raises:
        WeightsError: missing or damaged files, an unknown architecture, tensors that do not fit.
    """
    card = read_card(name)
    if card.architecture not in NETWORKS:
        raise WeightsError(f"{name}: unknown architecture {card.architecture!r}; known: {', '.join(sorted(NETWORKS))}")
    data = read_checked(name)
    network = NETWORKS[card.architecture](**card.arguments)
    try:
        network.load_state_dict({k: v.float() for k, v in load_safetensors(data).items()}, strict=True)
    except Exception as error:  # safetensors and torch raise several types; all mean the same to the user
        raise WeightsError(
            f"{weights_file(name)}: does not fit {card.architecture}{card.arguments}: {error}"
        ) from error
    network.requires_grad_(False)
    return network.eval().to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def save_weights(name: str, network: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write `weights/<name>.safetensors` and its card; `card` holds every field but `name` and `sha256`."""
    folder = weights_dir()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in network.state_dict().items()}
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
    full = WeightCard(name=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), **card)
    path.with_suffix(".json").write_text(
        json.dumps(full.model_dump(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return path
