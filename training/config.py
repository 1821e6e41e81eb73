"""Training YAML -> checked options."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

ConfigT = TypeVar("ConfigT", bound=BaseModel)
PATH_KEYS = {"start_run", "data", "covered_data", "run", "pack", "covered_pack", "restorer"}


def resolve_paths(node: Any, base: Path, key: str = "") -> Any:
    """Paths in a YAML are relative to that YAML."""
    if isinstance(node, dict):
        return {k: resolve_paths(v, base, k) for k, v in node.items()}
    if isinstance(node, list):
        return [resolve_paths(v, base, key) for v in node]
    return str((base / node).resolve()) if key in PATH_KEYS and isinstance(node, str) else node


def load_training(model: type[ConfigT], path: Path, dry_run: bool = False) -> tuple[ConfigT, dict[str, Any]]:
    """Read a training YAML into `model`; returns it and the plain resolved mapping for the record.

    With `dry_run` the loop is cut to two steps of two samples.

    Raises:
        ValueError (pydantic.ValidationError): unknown keys or bad values; OSError: the file cannot be read.
    """
    plain = resolve_paths(yaml.safe_load(path.read_text(encoding="utf-8")), path.resolve().parent)
    if dry_run:
        plain["loop"] |= {"steps": 2, "batch_size": 2, "workers": 0, "warmup": 0}
    config = model.model_validate(plain)
    return config, config.model_dump(mode="json")
