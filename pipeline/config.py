"""Chain YAML -> frozen objects. Every mistake is found now and reported together, before any image is touched."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.images import file_sha256
from stages import STAGES
from stages.base import ANY_SIDES, Closing, Opening, Sides, StageConfig
from stages.problems import nearest, path_text, problems_of, short
from stages.weights import WeightsError, read_card, read_checked

GIVEN_FIELDS = frozenset(
    {"image", "observed", "sources", "seeds", "grey", "given_mask"}
)  # there before the first stage
Profile = Literal["forensic", "generative"]
CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """A configuration cannot be used.

    `problems` holds one line per mistake: file, YAML path, value, rule, nearest valid key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class VerdictConfig(StageConfig):
    """When a result counts as not decidable. `evaluation.verdict_thresholds` measures where people cannot be told
    apart (docs/usage.md): by darkness below .055; by size, cover and uncertainty nowhere within what is taken, so that
    these bounds are careful round numbers."""

    max_occluded_fraction: float = Field(default=0.6, ge=0, le=1)  # share of the face; above it: `review`
    min_face_score: float = Field(default=0.5, ge=0, le=1)  # below it: `no_face`, nothing is written
    min_consistency_db: float = Field(default=20.0, ge=0, le=100)  # output against input; below it: `review`
    min_side_px: int = Field(default=12, ge=1)  # shorter side of the face crop; below it: `review`, too small
    min_brightness: float = Field(default=0.1, ge=0, le=1)  # of all but the input's lightest tenth; below it: `review`
    max_uncertainty: float = Field(default=1.0, ge=0, le=1)  # mean over the picture; above it: `review`
    # Of an edited face to the face before, cosine; below it: `review`, no longer the same person. Two photographs of
    # one person lie above it in 99 of 100 cases, of two people in 21 (held-out faces of LFW).
    min_likeness: float = Field(default=0.45, ge=-1, le=1)


class MarkingConfig(StageConfig):
    """How generated pictures are marked for those who see them; what is in the files themselves is always there."""

    # report: a strip with the standing words under every generated picture of the report; copies: moreover a copy with
    # the strip burnt in below the picture, in _run/marked/, to hand out; none: neither
    strip: Literal["report", "copies", "none"] = "report"
    # also write sidecars/NAME.json: what the picture says of itself in its text chunks, and its hash, for programs that
    # read no PNG text or strip it; not beside a signature, which holds all that
    sidecar: bool = False


class CaseConfig(StageConfig):
    """Whose work a run is and what for, as an audit asks for it. It changes no result, and is no part of the chain's
    hash."""

    operator: str | None = None
    reference: str | int | None = None  # of the case, as the house writes it
    remarks: str | None = None


class SigningConfig(StageConfig):
    """C2PA manifests in the outputs, signed with the user's own certificate; needs the extra `c2pa`."""

    certificate: str  # PEM file: the signer's certificate first, then those that vouch for it; relative to the YAML
    key: str  # PEM file of its private key, not encrypted; relative to the YAML
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    timestamp_url: str | None = None  # of a time-stamping service; None: nothing leaves this machine


class ClusterConfig(StageConfig):
    """The pool of workers of `--engine ray`. It changes no result, and is no part of the chain's hash."""

    min_actors: int = Field(default=1, ge=1)  # workers kept even when there is little to do
    max_actors: int | None = Field(default=None, ge=1)  # the pool grows up to this; None: as far as cpus and gpus go
    cpus_per_actor: float = Field(default=1, gt=0)
    gpus_per_actor: float = Field(default=0, ge=0)  # a share such as 0.25 puts four workers on one GPU
    rows_per_task: int = Field(default=64, ge=1)  # inputs a worker is given at a time, and loses when it dies
    address: str | None = None  # of a running cluster, as Ray writes it; None: the one around, else this machine alone

    @model_validator(mode="after")
    def _in_order(self) -> "ClusterConfig":
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is under min_actors ({self.min_actors})")
        return self


class VideoConfig(StageConfig):
    """How videos are read and their faces followed; for chains that begin with `detect`."""

    # `auto`: frames that the file calls interlaced; `always`: for recorders that do not say so
    deinterlace: Literal["auto", "always", "never"] = "auto"
    every: int = Field(default=1, ge=1)  # look at each n-th frame; what lies between is decoded and passed over
    max_frames: int = Field(default=1_000_000, ge=1)  # what comes after is not read, and noted
    min_iou: float = Field(default=0.3, gt=0, le=1)  # overlap of a face with where its track expects it
    min_similarity: float = Field(default=0.2, ge=-1, le=1)  # correlation with the track's last thumbnail
    max_gap_s: float = Field(default=0.6, ge=0)  # a face not seen for longer begins a new track
    min_seen: int = Field(default=2, ge=1)  # frames a track must be seen in; false findings seldom stay


class _Document(BaseModel):
    """The top level of a chain YAML; the stages' own options are checked by the classes of the stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    stages: list[dict[str, Any]] = Field(min_length=1)
    verdict: VerdictConfig = VerdictConfig()
    video: VideoConfig = VideoConfig()
    profile: Profile | None = None
    marking: MarkingConfig = MarkingConfig()
    signing: SigningConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    case: CaseConfig = CaseConfig()


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
        video: how videos are read.
        profile: `forensic` where the chain says so and holds to it; `generative` where a stage is learned.
        marking, signing, cluster, case: what else the document asks for; they change no pixel.
    """

    name: str
    seed: int
    stages: tuple[StageEntry, ...]
    verdict: VerdictConfig
    origin: str
    video: VideoConfig = VideoConfig()
    profile: Profile | None = None
    marking: MarkingConfig = MarkingConfig()
    signing: SigningConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    case: CaseConfig = CaseConfig()

    @property
    def takes_frames(self) -> bool:
        """Whether its inputs are whole frames and videos, and not face crops."""
        return issubclass(STAGES[self.stages[0].name], Opening)

    def resolved(self) -> dict[str, Any]:
        """Everything that decides an output, defaults included, as plain values: what is recorded, and loads again to
        the same chain."""
        stages = [{"stage": s.name, **s.config.model_dump(mode="json")} for s in self.stages]
        verdict = self.verdict.model_dump(mode="json")
        plain = {
            "version": 1, "name": self.name, "profile": self.profile, "seed": self.seed, "stages": stages,
            "verdict": verdict,
        }  # fmt: skip
        return plain | {"video": self.video.model_dump(mode="json")} if self.takes_frames else plain

    def digest(self) -> str:
        """SHA-256 of the resolved chain."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()

    def weight_names(self) -> tuple[str, ...]:
        """Names of the weight cards the chain loads, in order of use."""
        names = [n for s in self.stages for n in STAGES[s.name].cards(s.config).values()]
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
    try:
        return _StrictLoader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError([f"{origin}: {where}not valid YAML: {getattr(error, 'problem', None) or error}"]) from error
    except (ValueError, RecursionError) as error:  # the 99th of a month, a thousand brackets
        raise ConfigError([f"{origin}: not valid YAML: {error}"]) from error


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
    folder = shipped.parent if shipped.is_relative_to(CONFIG_DIR) and shipped.parent.is_dir() else CONFIG_DIR
    names = sorted(p.relative_to(CONFIG_DIR).as_posix() for p in folder.glob("*.yaml"))
    wanted = folder.joinpath(shipped.name).relative_to(CONFIG_DIR).with_suffix(".yaml").as_posix()
    near = difflib.get_close_matches(wanted, names, 1, 0.4)
    hint = f'; did you mean "configs/{near[0]}"?' if near else f"; shipped: {', '.join(names)}"
    raise ConfigError([f"{path}: no such config file{hint}"])


def check(model: type[BaseModel], raw: dict[str, Any], origin: str, prefix: str, owner: str) -> tuple[Any, list[str]]:
    """Check plain values against an option class; returns the object (None where wrong) and the problems.

    The check is strict ("yes" is not a number) but takes a YAML list where a tuple or a set is meant. Option classes
    find the folder of the YAML, to which its paths are relative, in the `folder` of pydantic's context.
    """
    try:
        text = json.dumps(raw, default=str)
    except (TypeError, ValueError) as error:
        return None, [f"{origin}: {prefix or 'document'}: holds a value that plain YAML cannot hold: {error}"]
    try:
        return model.model_validate_json(text, strict=True, context={"folder": Path(origin).parent}), []
    except ValidationError as error:
        return None, problems_of(error, model, origin, prefix, owner)


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
        here = path_text("", steps[:depth]) or "the document"
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
    """Stages that read what nobody wrote before them, or that take no pictures of the size they would get."""
    problems, there = [], set(GIVEN_FIELDS)
    sides, giver = ANY_SIDES, ""  # of the pictures that the stages so far pass on, and which of them made them so
    opens = bool(entries) and issubclass(STAGES[entries[0][1].name], Opening)
    for place, (index, entry) in enumerate(entries):
        stage = STAGES[entry.name]
        where = f"{origin}: stages[{index}].stage = {entry.name!r}"
        if issubclass(stage, Opening) and place > 0:
            problems.append(f"{where}: takes whole frames, so it must be the first stage")
        if issubclass(stage, Closing) and (place < len(entries) - 1 or not opens):
            problems.append(f'{where}: puts faces back into frames: it must be the last stage of a chain with "detect"')
        for field in sorted(stage.reads - there):
            writers = sorted(name for name, other in STAGES.items() if field in other.writes)
            cure = f"put {' or '.join(writers)} before it" if writers else "no stage writes it"
            problems.append(
                f'{origin}: stages[{index}].stage = {entry.name!r}: reads "{field}", which no earlier stage writes; '
                + cure
            )
        there |= stage.writes
        crops = stage.crops_px(entry.config)
        taken = crops or (stage.least_px, math.inf)
        common = max(sides[0], taken[0]), min(sides[1], taken[1])
        # One size alone, out of many, would pass "64 or more" on to "64 or less": no order that anybody wants.
        if common[0] > common[1] or (common[0] == common[1] and sides[0] < sides[1]):
            kind = "pictures" if crops is None else "face crops"
            problems.append(
                f"{where}: takes {kind} of {_px(taken)} a side, and would get {_px(sides)} from {giver}; "
                'put a stage "resample" between them, or change the order'
            )
            common = taken
        made = stage.makes_px(entry.config, common)
        if made != sides:
            sides, giver = made, f"stages[{index}] ({entry.name})"
    return problems


def _px(sides: Sides) -> str:
    low, high = sides
    return f"{low} px" if low == high else f"{low} px or more" if high == math.inf else f"{low} to {high} px"


def _profile_problems(profile: Profile | None, entries: Sequence[tuple[int, StageEntry]], origin: str) -> list[str]:
    """Stages that do not belong into a chain of this profile."""
    learned = any(STAGES[entry.name].generative for _, entry in entries)
    if profile == "generative" and not learned:
        return [f'{origin}: profile = "generative": no stage of this chain is learned; leave the profile out']
    if profile != "forensic":
        return []
    return [
        f"{origin}: stages[{index}].stage = {entry.name!r}: not for the forensic profile, which takes deterministic, "
        "non-learned stages only; take it out, or say profile: generative"
        for index, entry in entries
        if not STAGES[entry.name].is_forensic(entry.config)
    ]


def _weight_problems(entries: Sequence[tuple[int, StageEntry]], origin: str) -> list[str]:
    """Weights that are missing, damaged or changed, or that cannot do what is asked of them."""
    problems = []
    for index, entry in entries:
        stage, found = STAGES[entry.name], []
        for option, name in stage.cards(entry.config).items():
            try:
                read_checked(name)
            except WeightsError as error:
                recipe = stage.training.get(option)
                cure = "" if recipe is None else f"; to train them: revisage train -c {recipe} (docs/training.md)"
                found += [f"{option} = {name!r}: {line}" for line in f"{error}{cure}".splitlines()]
        if not found and (said := stage.beyond_weights(entry.config)):
            found.append(said)
        problems += [f"{origin}: stages[{index}].{line}" for line in found]
    return problems


def read_mapping(path: Path, parts: str) -> dict[str, Any]:
    """The plain values of a YAML whose top is a mapping with `parts` (in words). Raises `ConfigError`."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected a mapping with {parts}, found {type(raw).__name__}"])
    return raw


def apply_overrides(raw: dict[str, Any], assignments: Sequence[str]) -> list[str]:
    """Carry out every `--set`; returns the problems of those that do not fit."""
    problems: list[str] = []
    for assignment in assignments:
        try:
            apply_override(raw, assignment)
        except ConfigError as error:
            problems += error.problems
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
        raw = read_mapping(path, "version, name and stages")
    problems = apply_overrides(raw, overrides)
    document, found = check(_Document, raw, origin, "", "the chain")
    problems += found

    entries: list[tuple[int, StageEntry]] = []
    classes: list[type[StageConfig]] = []
    listed = raw.get("stages")
    plain = [(i, s) for i, s in enumerate(listed) if isinstance(s, dict)] if isinstance(listed, list) else []
    for index, options in plain:
        name = options.get("stage")
        if not isinstance(name, str) or name not in STAGES:
            hint = nearest(str(name), STAGES) if name else f"; known: {', '.join(sorted(STAGES))}"
            problems.append(f"{origin}: stages[{index}].stage = {short(name)}: unknown stage{hint}")
            continue
        cls = STAGES[name].Config
        classes.append(cls)
        own = {k: v for k, v in options.items() if k != "stage"}
        if fidelity is not None and "fidelity" in cls.model_fields:
            own["fidelity"] = fidelity
        config, found = check(cls, own, origin, f"stages[{index}]", f'"{name}"')
        problems += found
        if config is not None:
            entries.append((index, StageEntry(name, config)))
    all_known = bool(plain) and len(classes) == len(plain)
    if fidelity is not None and all_known and not any("fidelity" in cls.model_fields for cls in classes):
        problems.append(f"{origin}: -w {fidelity}: no stage of this chain has a fidelity")
    if len(entries) == len(plain):
        problems += _order_problems(entries, origin)
        problems += _profile_problems(document.profile if document else None, entries, origin)
        if "video" in raw and not (entries and issubclass(STAGES[entries[0][1].name], Opening)):
            problems.append(f'{origin}: video: only a chain that begins with "detect" reads videos')
    if document is not None and document.signing is not None and document.marking.sidecar:
        problems.append(f"{origin}: marking.sidecar: a signed picture carries its record; leave sidecar or signing out")
    if check_weights:
        problems += _weight_problems(entries, origin)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    stages = tuple(e for _, e in entries)
    learned = any(STAGES[entry.name].generative for entry in stages)
    return ChainConfig(
        document.name, document.seed, stages, document.verdict, origin, document.video,
        document.profile or ("generative" if learned else None), document.marking,
        _beside(document.signing, origin), document.cluster, document.case,
    )  # fmt: skip


def _beside(signing: SigningConfig | None, origin: str) -> SigningConfig | None:
    """The same with the paths taken from the folder of the YAML."""
    if signing is None:
        return None
    folder = Path(origin).parent
    return signing.model_copy(
        update={"certificate": str(folder / signing.certificate), "key": str(folder / signing.key)}
    )


def weight_hashes(config: ChainConfig) -> dict[str, str]:
    """SHA-256 of every weights file of the chain, by card name, and of other model files, by file name."""
    files = [path for entry in config.stages for path in STAGES[entry.name].model_files(entry.config)]
    cards = {name: read_card(name).sha256 for name in config.weight_names()}
    return cards | {path.name: file_sha256(str(path)) for path in files}
