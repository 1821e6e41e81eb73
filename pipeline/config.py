"""Chain YAML -> frozen objects. Every mistake is found now and reported together, before any image is touched."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages import STAGES
from stages.base import StageConfig
from stages.weights import WeightsError, read_card, read_checked

GIVEN_FIELDS = frozenset(
    {"image", "observed", "sources", "seeds", "grey", "given_mask"}
)  # there before the first stage
CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """A configuration cannot be used.

    `problems` holds one line per mistake: file, YAML path, value, rule, nearest valid key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class VerdictConfig(StageConfig):
    """When a result counts as not decidable. The values are careful round numbers, not fitted to any set."""

    max_occluded_fraction: float = Field(default=0.6, ge=0, le=1)  # share of the face; above it: `review`
    min_face_score: float = Field(default=0.5, ge=0, le=1)  # below it: `no_face`, nothing is written
    min_consistency_db: float = Field(default=20.0, ge=0, le=100)  # output against input; below it: `review`


class _Document(BaseModel):
    """The top level of a chain YAML; the stages' own options are checked by the classes of the stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    stages: list[dict[str, Any]] = Field(min_length=1)
    verdict: VerdictConfig = VerdictConfig()


@dataclass(frozen=True)
class StageEntry:
    """One checked step: its name in `STAGES` and its options."""

    name: str
    config: StageConfig


@dataclass(frozen=True)
class ChainConfig:
    """A checked chain.

    Attributes:
        name: of the chain, for records.
        seed: run seed; each image draws from (seed, content hash).
        stages: the steps in order.
        verdict: thresholds of the verdict.
        origin: the file it came from, for messages.
    """

    name: str
    seed: int
    stages: tuple[StageEntry, ...]
    verdict: VerdictConfig
    origin: str

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain values: what is recorded, and loads again to the same chain."""
        stages = [{"stage": s.name, **s.config.model_dump(mode="json")} for s in self.stages]
        verdict = self.verdict.model_dump(mode="json")
        return {"version": 1, "name": self.name, "seed": self.seed, "stages": stages, "verdict": verdict}

    def digest(self) -> str:
        """SHA-256 of the resolved chain."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()

    def weight_names(self) -> tuple[str, ...]:
        """Names of the weight cards the chain loads, in order of use."""
        names = [n for s in self.stages for n in STAGES[s.name].weight_names(s.config)]
        return tuple(dict.fromkeys(names))


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which moreover refuses a key given twice: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, origin: str) -> Any:
    """The plain values of a YAML document.

    Raises:
        ConfigError: no YAML, tags other than the plain ones, or a key given twice.
    """
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError([f"{origin}: {where}not valid YAML: {getattr(error, 'problem', None) or error}"]) from error
    finally:
        loader.dispose()


def find_config(path: str | Path) -> Path:
    """A config path as given, or the shipped config of that name (`bicubic`, `configs/bicubic.yaml`).

    Raises:
        ConfigError: there is no such file; the nearest shipped one is named.
    """
    given = Path(path)
    parts = given.parts[1:] if given.parts[:1] == ("configs",) else given.parts
    shipped = CONFIG_DIR.joinpath(*parts)
    for candidate in (given, shipped, shipped.with_suffix(".yaml")):
        if candidate.is_file():
            return candidate
    names = sorted(p.relative_to(CONFIG_DIR).as_posix() for p in CONFIG_DIR.glob("*.yaml"))
    near = difflib.get_close_matches(shipped.with_suffix(".yaml").name, names, 1, 0.4)
    hint = f'; did you mean "configs/{near[0]}"?' if near else f"; shipped: {', '.join(names)}"
    raise ConfigError([f"{path}: no such config file{hint}"])


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), 1, 0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(sorted(known))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _path(prefix: str, loc: Sequence[str | int]) -> str:
    path = prefix
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Names of the options where an unknown key stands, following nested option classes."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def check(model: type[BaseModel], raw: dict[str, Any], origin: str, prefix: str, owner: str) -> tuple[Any, list[str]]:
    """Check plain values against an option class; returns the object (None where wrong) and the problems.

    The check is strict ("yes" is not a number) but takes a YAML list where a tuple or a set is meant.
    """
    try:
        text = json.dumps(raw, default=str)
    except (TypeError, ValueError) as error:
        return None, [f"{origin}: {prefix or 'document'}: holds a value that plain YAML cannot hold: {error}"]
    try:
        return model.model_validate_json(text, strict=True), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    problems = []
    for item in found:
        loc, value = item["loc"], item.get("input")
        path = _path(prefix, loc)
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, loc[:-1])
            problems.append(
                f"{origin}: {path} = {_short(value)}: unknown option of {owner}{_nearest(str(loc[-1]), known)}"
            )
        elif item["type"] == "missing":
            problems.append(f"{origin}: {path}: {owner} needs this option and it is missing")
        else:
            problems.append(
                f"{origin}: {path or 'document'} = {_short(value)}: {item['msg'].removeprefix('Value error, ')}"
            )
    return None, problems


def apply_override(raw: Any, assignment: str) -> None:
    """Carry out one `--set stages.0.fidelity=0.2` on plain values; the right side is read as YAML.

    Raises:
        ConfigError: no "=", or a path that leads nowhere.
    """
    key, sign, text = assignment.partition("=")
    steps: list[str | int] = [int(s) if s.isdigit() else s for s in re.split(r"[.\[\]]+", key.strip().rstrip("]")) if s]
    if not sign or not steps:
        raise ConfigError([f"--set {assignment}: expected PATH=VALUE, for instance stages.0.fidelity=0.2"])
    node = raw
    for depth, step in enumerate(steps):
        here = _path("", steps[:depth]) or "the document"
        if isinstance(step, int) and isinstance(node, list):
            if step >= len(node):
                raise ConfigError([f"--set {assignment}: {here} has {len(node)} entries, counted from 0"])
        elif isinstance(node, dict) and depth < len(steps) - 1:
            node.setdefault(step, {})
        elif not isinstance(node, dict):
            raise ConfigError([f"--set {assignment}: {here} has no {step!r}"])
        if depth == len(steps) - 1:
            node[step] = parse_yaml(text, f"--set {assignment}")
        else:
            node = node[step]


def _order_problems(entries: Sequence[tuple[int, StageEntry]], origin: str) -> list[str]:
    """Stages that read what nobody wrote before them."""
    problems, there = [], set(GIVEN_FIELDS)
    for index, entry in entries:
        stage = STAGES[entry.name]
        for field in sorted(stage.reads - there):
            writers = sorted(name for name, other in STAGES.items() if field in other.writes)
            cure = f"put {' or '.join(writers)} before it" if writers else "no stage writes it"
            problems.append(
                f'{origin}: stages[{index}].stage = {entry.name!r}: reads "{field}", which no earlier stage writes; '
                + cure
            )
        there |= stage.writes
    return problems


def _weight_problems(entries: Sequence[tuple[int, StageEntry]], origin: str) -> list[str]:
    """Weights that are missing, damaged or changed."""
    problems = []
    for index, entry in entries:
        for name in STAGES[entry.name].weight_names(entry.config):
            try:
                read_checked(name)
            except WeightsError as error:
                problems.append(f"{origin}: stages[{index}].weights = {name!r}: {error}")
    return problems


def load_chain(
    source: str | Path | dict[str, Any],
    *,
    fidelity: float | None = None,
    overrides: Sequence[str] = (),
    check_weights: bool = True,
) -> ChainConfig:
    """Read and check a chain.

    Args:
        source: path of a YAML, name of a shipped config, or the plain values themselves.
        fidelity: set for every stage that has such an option, in [0, 1].
        overrides: `PATH=VALUE` assignments, applied before anything is checked.
        check_weights: also find and hash every weights file.

    Raises:
        ConfigError: with every problem found.
    """
    if isinstance(source, dict):
        origin, raw = "config", json.loads(json.dumps(source))
    else:
        path = find_config(source)
        origin = str(path)
        try:
            raw = parse_yaml(path.read_text(encoding="utf-8"), origin)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{origin}: cannot be read: {error}"]) from error
    if not isinstance(raw, dict):
        raise ConfigError([f"{origin}: expected a mapping with version, name and stages, found {type(raw).__name__}"])
    problems: list[str] = []
    for assignment in overrides:
        try:
            apply_override(raw, assignment)
        except ConfigError as error:
            problems += error.problems
    document, found = check(_Document, raw, origin, "", "the chain")
    problems += found

    entries: list[tuple[int, StageEntry]] = []
    listed = raw.get("stages")
    plain = [(i, s) for i, s in enumerate(listed) if isinstance(s, dict)] if isinstance(listed, list) else []
    for index, options in plain:
        name = options.get("stage")
        if not isinstance(name, str) or name not in STAGES:
            hint = _nearest(str(name), STAGES) if name else f"; known: {', '.join(sorted(STAGES))}"
            problems.append(f"{origin}: stages[{index}].stage = {_short(name)}: unknown stage{hint}")
            continue
        cls = STAGES[name].Config
        own = {k: v for k, v in options.items() if k != "stage"}
        if fidelity is not None and "fidelity" in cls.model_fields:
            own["fidelity"] = fidelity
        config, found = check(cls, own, origin, f"stages[{index}]", f'"{name}"')
        problems += found
        if config is not None:
            entries.append((index, StageEntry(name, config)))
    if (
        fidelity is not None
        and plain
        and not any("fidelity" in type(e.config).model_fields for _, e in entries)
        and not problems
    ):
        problems.append(f"{origin}: -w {fidelity}: no stage of this chain has a fidelity")
    if len(entries) == len(plain):
        problems += _order_problems(entries, origin)
    if check_weights:
        problems += _weight_problems(entries, origin)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return ChainConfig(document.name, document.seed, tuple(e for _, e in entries), document.verdict, origin)


def weight_hashes(config: ChainConfig) -> dict[str, str]:
    """SHA-256 of every weights file of the chain, by card name."""
    return {name: read_card(name).sha256 for name in config.weight_names()}
