"""Training YAML -> checked options."""

import atexit
import difflib
import inspect
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

from stages.weights import read_card

ConfigT = TypeVar("ConfigT", bound=BaseModel)
PATH_KEYS = {"start_run", "data", "covered_data", "run", "pack", "covered_pack", "restorer"}


class TrainingError(ValueError):
    """A network cannot be trained like this; the message says why."""


class OptionsError(TrainingError):
    """A training YAML does not fit its options.

    Attributes:
        path: the YAML. model: its options. The command line names the wrong keys by them.
    """

    def __init__(self, path: Path, model: type[BaseModel], cause: Exception) -> None:
        super().__init__(f"{path}: {cause}")
        self.path, self.model = path, model


def arguments_of(network: Callable[..., object]) -> AfterValidator:
    """Checks that every key of a mapping is an argument of `network`."""
    known = list(inspect.signature(network).parameters)

    def check(given: dict[str, Any]) -> dict[str, Any]:
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
                raise ValueError(f"the network has no argument {key!r}; {hint}")
        return given

    return AfterValidator(check)


def resolve_paths(node: Any, base: Path, key: str = "") -> Any:
    """Paths in a YAML are relative to that YAML."""
    if isinstance(node, dict):
        return {k: resolve_paths(v, base, k) for k, v in node.items()}
    if isinstance(node, list):
        return [resolve_paths(v, base, key) for v in node]
    return str((base / node).resolve()) if key in PATH_KEYS and isinstance(node, str) else node


def load_training(model: type[ConfigT], path: Path, dry_run: bool = False) -> tuple[ConfigT, dict[str, Any]]:
    """Read a training YAML into `model`; returns it and the plain resolved mapping for the record.

    A run that starts from a card draws samples of its own (`LoopConfig.after`). With `dry_run` the loop is cut to two
    steps of two samples on the CPU, in a run folder that goes with the process.

    Raises:
        OptionsError: no YAML, unknown keys or bad values. OSError: the file cannot be read. WeightsError: no such card.
    """
    text = path.read_text(encoding="utf-8")
    try:
        plain = resolve_paths(yaml.safe_load(text), path.resolve().parent)
        if dry_run and isinstance(plain, dict) and isinstance(plain.get("loop"), dict):
            run = tempfile.mkdtemp(prefix="revisage-dry-run-")
            atexit.register(shutil.rmtree, run, ignore_errors=True)
            plain["loop"] |= {"run": run, "device": "cpu", "steps": 2, "batch_size": 2, "workers": 0, "warmup": 0}
        config = model.model_validate(plain)
    except (yaml.YAMLError, ValidationError) as error:
        raise OptionsError(path, model, error) from error
    if start := getattr(config, "start", None):
        loop = config.loop.after(read_card(start).sha256)  # type: ignore[attr-defined]
        config = config.model_copy(update={"loop": loop})
    return config, config.model_dump(mode="json")
