"""Evaluation YAML -> frozen objects. Every mistake is reported at once, with file, path and nearest key."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation import rivals
from evaluation.embedders import TEMPLATES
from evaluation.restoring import BENCHMARK
from evaluation.rivals import Untrained
from evaluation.statistics import Finding
from evaluation.suite.measures import FAMILIES
from evaluation.suite.rows import BICUBIC
from pipeline.config import ConfigError, apply_overrides, check, find_config, load_chain, read_mapping
from stages.degradation import DegradationConfig

IDENTITY = "identity"  # the measure that needs embedders: cosine to the original, and distances of distributions
MEASURES = (*FAMILIES, IDENTITY)
Names = str | tuple[str, ...]  # one name, or several


class EvaluationError(RuntimeError):
    """What was asked cannot be measured on these data; the message says why and what to do."""

    exit_code = 2


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Options):
    """Faces to measure with: exactly one of `parquet`, `folder` (alone or with `pairs`) and `examples`."""

    name: str = Field(min_length=1)
    parquet: str | None = None  # file with columns id, image, landmarks, perhaps identity, mask and labels
    folder: str | None = None  # pictures in one folder per person
    pairs: str | None = None  # LFW's pairs.txt; its names are looked up in `folder`
    examples: bool = False  # the astronaut and the LFW subset of scikit-image: nobody's private picture
    held_out: str | None = None  # list of ids or people, one a line: take these only (Parquet); else every face
    framing: Literal["canonical", "dlib"] = "dlib"  # `folder`: pictures are canonical crops, or dlib finds the face
    grey: bool = False  # measure in grey
    limit: int | None = Field(default=None, ge=1)  # faces at most; with `pairs`, trials
    # Parquet: verify this many people with several pictures. Their probes are the faces measured; all other pictures
    # are only compared with. The evaluation's `limit` then counts people.
    people: int | None = Field(default=None, ge=2)
    conditions: tuple[str, ...] | None = None  # of the evaluation's: these only
    measures: tuple[str, ...] | None = None  # of the evaluation's: these only
    optional: bool = False  # leave it out, and say so, where the file is not there

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        kinds = [kind for kind in ("parquet", "folder", "examples") if getattr(self, kind)]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of parquet, folder and examples; found {', '.join(kinds) or 'none'}")
        if self.pairs and not self.folder:
            raise ValueError("pairs needs the folder its names are looked up in")
        if self.people and (not self.parquet or self.limit):
            raise ValueError("people needs a parquet with identities, and takes the place of limit")
        return self


class EmbedderOptions(_Options):
    """One judge of identity."""

    embedder: str = Field(pattern=r"^(dlib|weights:.+|onnx:.+)$")  # dlib, weights:CARD or onnx:FILE
    name: str | None = None  # for tables; the file's name where not given
    template: str | None = None  # ONNX: arcface-112 or sphereface-112x96; not needed where `points` are given
    size: tuple[int, int] | None = None  # ONNX: (height, width) px; the template is scaled to it
    points: tuple[tuple[float, float], ...] | None = None  # ONNX: five points (x, y) px of an own template
    mean: float = 127.5  # ONNX: the network reads (x - mean) / scale, x in 0..255
    scale: float = Field(default=128.0, gt=0)
    colour: Literal["rgb", "bgr"] = "rgb"
    in_training: str | None = None  # ONNX: what part it had in training; "not stated" where not given
    landmarks: Literal["original", "detected"] = "original"  # one alignment for all rows, or dlib's on each picture

    @model_validator(mode="after")
    def _template_is_known(self) -> "EmbedderOptions":
        onnx = self.embedder.startswith("onnx:")
        given = [k for k in ("template", "size", "points", "in_training") if getattr(self, k) is not None]
        if not onnx and given:
            raise ValueError(f"{', '.join(given)}: only for an embedder onnx:FILE")
        if onnx and (self.template is None) == (self.points is None):
            raise ValueError("an embedder onnx:FILE needs its template, or size and points of an own one")
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"template {self.template!r}: known are {', '.join(TEMPLATES)}")
        if self.points is not None and (self.size is None or len(self.points) != 5):
            raise ValueError("points: five (x, y) pairs, and size beside them")
        return self


class RecognitionOptions(_Options):
    """Protocols of verification and identification; everything is drawn from the run's seed."""

    sources: tuple[str, ...] = ()  # every one with identities where none is named
    probes_per_person: int = Field(default=6, ge=1)  # verification: at most, so that nobody dominates
    galleries_per_probe: int = Field(default=4, ge=1)
    folds: int = Field(default=10, ge=2)
    galleries: tuple[Literal["original", "degraded"], ...] = ("original", "degraded")
    search_probes: int = Field(default=5, ge=1)  # identification: of each person, at most
    depth: int = Field(default=20, ge=5)  # of the CMC
    enrolled: float = Field(
        default=0.5, gt=0, lt=1
    )  # open set: share of the people with several pictures in the gallery
    fpir: tuple[float, ...] = (0.1, 0.01)
    same_photograph: bool = False  # one picture a person: compare with the original of the same photograph (easier)


class ParityOptions(_Options):
    """Groups that every measure is given for."""

    sources: tuple[str, ...] = ()
    age_bands: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70)  # first year of each band but the first
    labels: dict[str, dict[str, str]] = Field(
        default_factory=lambda: {
            "gender": {"0": "male", "1": "female"},
            "ethnicity": {"0": "White", "1": "Black", "2": "Asian", "3": "Indian", "4": "other"},
        }
    )  # column -> value -> name; the words are those of the data set


class CoveredOptions(_Options):
    """Really covered faces, without truth: told from bare ones? any cover left? See `evaluation.suite.covered`."""

    covered: dict[str, str] = Field(min_length=1)  # name -> Parquet of really covered faces
    as_found: dict[str, str] = Field(default_factory=dict)  # bare faces framed alike, or nearly so
    canonical: dict[str, str] = Field(min_length=1)  # bare faces with landmarks, for the classifier to learn from
    bare: str = "clean"  # condition of the sources, measured for `cover`: the bare faces they are held against
    held_out: str  # list of ids: measured on these; the classifier learns from the others
    steps: int = Field(default=800, ge=1)  # of the classifier's training
    optional: bool = False  # leave it out, and say so, where a file is not there


class Only(_Options):
    """What a condition is measured for, where it is not everything."""

    rows: tuple[str, ...] | None = None  # beside the original and bicubic
    measures: tuple[str, ...] | None = None


class Bar(_Options):
    """What numbers must reach: those that fit all of the names given."""

    metric: Names
    row: Names
    source: Names | None = None  # every one where not given
    condition: Names | None = None
    subset: str | None = None  # part of the table's heading, e.g. "original gallery"
    group: str | None = None  # e.g. "age: lowest over mean"; all faces where not given
    at_least: float | None = None
    at_most: float | None = None
    surely: bool = False  # the whole interval must reach it, not the value alone

    @model_validator(mode="after")
    def _one_side(self) -> "Bar":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a bar needs at_least or at_most, and not both")
        return self

    def __str__(self) -> str:
        return ", ".join(name for names in (self.metric, self.row) for name in _several(names))

    def fits(self, finding: Finding) -> bool:
        """Whether `finding` is meant."""
        f = finding
        asked = (self.metric, f.metric), (self.row, f.row), (self.source, f.subset.split(",")[0])
        return (
            all(given is None or name in _several(given) for given, name in (*asked, (self.condition, f.condition)))
            and (self.subset is None or self.subset in f.subset or self.subset in f.section)
            and self.group == (f.group or None)
        )


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


class _Document(_Options):
    version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")  # of the output folder
    seed: int = Field(default=0, ge=0)
    folders: dict[str, str] = Field(default_factory=dict)  # names that paths may begin with: {shared: ../../data}
    sources: tuple[Source, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)  # faces of each source at most
    conditions: dict[str, Literal["benchmark"] | dict[str, Any]] = Field(
        min_length=1
    )  # benchmark, or degradation options
    only: dict[str, Only] = Field(default_factory=dict)  # by condition
    chain: str  # the restorer
    fidelities: tuple[float | Literal["default"], ...] = (1, "default", 0)
    chains: dict[str, str] = Field(default_factory=dict)  # further rows: name -> chain, e.g. one that edits
    rivals: tuple[str | dict[str, Any], ...] = ()  # for evaluation/rivals.py
    untrained: tuple[Untrained, ...] = ()  # timed with random weights, for want of their checkpoints
    embedders: tuple[EmbedderOptions, ...] = ()
    measures: tuple[str, ...] = MEASURES
    recognition: RecognitionOptions | None = None  # not measured where not given
    parity: ParityOptions = ParityOptions()
    really_covered: CoveredOptions | None = None
    bars: tuple[Bar, ...] = ()
    plots: bool = True  # draw the curves; their points are in curves.json all the same
    pictures: int = Field(default=8, ge=0)  # faces of each source shown in the report
    chunk: int = Field(default=64, ge=1)  # faces at a time: bounds memory, and what an interruption costs


@dataclass(frozen=True)
class EvaluationConfig:
    """A checked evaluation.

    Attributes:
        options: the document, paths still as written. origin: its file. degradations: by name of condition.
    """

    options: _Document
    origin: Path
    degradations: dict[str, DegradationConfig]

    def path(self, text: str) -> Path:
        """A path of the document: absolute, below one of its named folders, or relative to the YAML."""
        return _resolve(text, self.options.folders, self.origin)

    def measures(self, source: Source, condition: str) -> frozenset[str]:
        """The measures of one source in one condition."""
        only = self.options.only.get(condition, Only())
        given = (self.options.measures, source.measures, only.measures)
        return frozenset(MEASURES).intersection(*(names for names in given if names is not None))

    def has_row(self, condition: str, row: str) -> bool:
        """Whether a row is measured in a condition."""
        rows = self.options.only.get(condition, Only()).rows
        return rows is None or row == BICUBIC or row in rows

    def recognised(self, source: Source) -> bool:
        """Whether verification and identification are asked of a source."""
        asked = self.options.recognition
        return asked is not None and (not asked.sources or source.name in asked.sources)

    def resolved(self) -> dict[str, Any]:
        """Everything, defaults included, as plain values, for the record."""
        return self.options.model_dump(mode="json")


def _resolve(text: str, folders: dict[str, str], origin: Path) -> Path:
    first, _, rest = text.partition("/")
    base = origin.parent
    return base / folders[first] / rest if first in folders and rest else base / text


def _paths(document: _Document) -> Iterator[tuple[str, str, bool]]:
    """YAML path, value and whether the file may be missing, of every path in the document."""
    for i, source in enumerate(document.sources):
        for key in ("parquet", "folder", "pairs", "held_out"):
            if text := getattr(source, key):
                yield f"sources[{i}].{key}", text, source.optional and key != "held_out"
    if document.really_covered is not None:
        given = document.really_covered
        yield "really_covered.held_out", given.held_out, False
        for key in ("covered", "as_found", "canonical"):
            for name, text in getattr(given, key).items():
                yield f"really_covered.{key}.{name}", text, given.optional
    for i, embedder in enumerate(document.embedders):
        if embedder.embedder.startswith("onnx:"):
            yield f"embedders[{i}].embedder", embedder.embedder.removeprefix("onnx:"), False


def _names(
    document: _Document, sources: Sequence[str], conditions: Sequence[str]
) -> Iterator[tuple[str, Sequence[str] | None, Sequence[str]]]:
    """YAML path, names given and names known, of every list that names measures, conditions or sources."""
    yield "measures", document.measures, MEASURES
    yield "only", tuple(document.only), conditions
    yield "parity.sources", document.parity.sources, sources
    if document.recognition is not None:
        yield "recognition.sources", document.recognition.sources, sources
    if document.really_covered is not None:
        yield "really_covered.bare", (document.really_covered.bare,), conditions
    for i, source in enumerate(document.sources):
        yield f"sources[{i}].measures", source.measures, MEASURES
        yield f"sources[{i}].conditions", source.conditions, conditions
    for name, only in document.only.items():
        yield f"only.{name}.measures", only.measures, MEASURES


def _problems(document: _Document, origin: Path) -> list[str]:
    """What only the whole document shows: doubled names, unknown measures, files that are not there, wrong chains."""
    found = []
    for key, names in (
        ("sources", [s.name for s in document.sources]),
        ("embedders", [e.name or e.embedder for e in document.embedders]),
    ):
        found += [
            f"{origin}: {key}: the name {n!r} is given twice" for n in sorted({n for n in names if names.count(n) > 1})
        ]
    sources, conditions = [s.name for s in document.sources], tuple(document.conditions)
    for where, given, known in _names(document, sources, conditions):
        for i, name in enumerate(given or ()):
            if name not in known:
                found.append(f"{origin}: {where}[{i}] = {name!r}: unknown; known: {', '.join(known)}")
    for i, fidelity in enumerate(document.fidelities):
        if fidelity != "default" and not 0 <= float(fidelity) <= 1:
            found.append(f"{origin}: fidelities[{i}] = {fidelity}: expected 0 (sharpest) to 1, or default")
    for i, source in enumerate(document.sources):
        if source.people and (document.recognition is None or source.name not in document.recognition.sources):
            found.append(f"{origin}: sources[{i}].people: name {source.name!r} in recognition.sources too")
    for i, rival in enumerate(document.rivals):
        try:
            rivals.read(rival)
        except ValueError as error:
            found.append(f"{origin}: rivals[{i}]: {error}")
    for where, text, optional in _paths(document):
        if not optional and not _resolve(text, document.folders, origin).exists():
            found.append(f"{origin}: {where} = {text!r}: {_resolve(text, document.folders, origin)} does not exist")
    for where, text in [("chain", document.chain), *((f"chains.{n}", c) for n, c in document.chains.items())]:
        try:
            load_chain(_resolve(text, document.folders, origin))
        except ConfigError as error:
            found += [f"{origin}: {where}: {problem}" for problem in error.problems]
    return found


def _degradation(options: str | dict[str, Any], origin: Path, where: str) -> tuple[DegradationConfig | None, list[str]]:
    """Options of a condition over the plain area average."""
    changes = BENCHMARK if isinstance(options, str) else options
    plain = DegradationConfig.clean().model_dump(mode="json") | changes
    config, problems = check(DegradationConfig, plain, str(origin), where, '"degrade"')
    if config is not None and config.misframing_probability:
        problems.append(
            f"{origin}: {where}.misframing_probability: not measured here; the truth would have to move along"
        )
    return config, problems


def load_evaluation(source: str | Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read and check an evaluation.

    Args:
        source: path of a YAML, or name of a shipped one. overrides: `PATH=VALUE` assignments, applied first.

    Raises:
        ConfigError: with every problem found.
    """
    path = find_config(source)
    raw = read_mapping(path, "version, name and sources")
    problems = apply_overrides(raw, overrides)
    document, found = check(_Document, raw, str(path), "", "the evaluation")
    problems += found
    degradations = {}
    conditions = raw.get("conditions")
    for name, options in conditions.items() if isinstance(conditions, dict) else ():
        if re.fullmatch(r"[A-Za-z0-9_ .-]+", str(name)) is None:
            problems.append(f"{path}: conditions: the name {name!r} may hold letters, digits, space, _ . - only")
        if isinstance(options, dict) or options == "benchmark":
            config, found = _degradation(options, path, f"conditions.{name}")
            problems += found
            degradations[str(name)] = config
    if document is not None:
        problems += _problems(document, path)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return EvaluationConfig(document, path, {k: v for k, v in degradations.items() if v is not None})
