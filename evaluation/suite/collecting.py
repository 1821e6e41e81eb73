"""Every row and every measure over the faces, chunk by chunk, through the cache; pictures are not kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation.faces import EvaluationFace, as_rgb, chunks, to_grey
from evaluation.restoring import AnyPrecision, Device
from evaluation.suite.cache import Cache, fingerprint
from evaluation.suite.config import EvaluationConfig, EvaluationError
from evaluation.suite.judges import Judge
from evaluation.suite.measures import FAMILIES, Columns, Sample
from evaluation.suite.report import Strip
from evaluation.suite.rows import (
    DEFAULT,
    ORIGINAL,
    RESTORED,
    Made,
    Row,
    Views,
    baselines,
    chain_row,
    degraded,
    measured,
    rival_row,
)
from evaluation.suite.sources import Loaded
from pipeline.config import ConfigError
from stages.weights import WeightsError

Log = Callable[[str], None]
FACES = "faces"  # a column that every part has, so that its length is known


@dataclass
class Collected:
    """What is kept of one source and one condition: columns, vectors, costs; no pictures but those of the report."""

    columns: dict[str, dict[str, list[Columns]]] = field(default_factory=dict)  # family -> row -> chunks
    vectors: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)  # judge -> row -> chunks
    references: dict[str, list[np.ndarray]] = field(default_factory=dict)  # judge -> chunks of originals
    undecided: dict[str, list[np.ndarray]] = field(default_factory=dict)  # row -> chunks
    failed: int = 0
    costs: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)  # row -> s, MiB, load
    covers: list[str] = field(default_factory=list)  # kind of painted cover of each face
    strips: list[Strip] = field(default_factory=list)


def build_rows(
    config: EvaluationConfig, device: Device, precision: AnyPrecision, not_measured: dict[str, str]
) -> list[Row]:
    """Every row but the original, in the order of the tables.

    A rival whose package or card is not on this machine is put into `not_measured` with the reason.

    Raises:
        ConfigError: a rival cannot be built, or two rows have one name.
    """
    options = config.options
    chain = config.path(options.chain)
    rows = baselines()
    for fidelity in options.fidelities:
        name = DEFAULT if fidelity == "default" else f"{RESTORED}{fidelity:g}"
        rows.append(chain_row(name, chain, None if fidelity == "default" else float(fidelity), device, precision))
    rows += [chain_row(name, config.path(path), None, device, precision) for name, path in options.chains.items()]
    for i, spec in enumerate(options.rivals):
        try:
            rows.append(rival_row(spec, config.origin.parent, device))
        except (ImportError, WeightsError) as error:
            not_measured[f"rival {spec}"] = str(error)
        except (ValueError, OSError) as error:
            raise ConfigError([f"{config.origin}: rivals[{i}] = {spec}: {error}"]) from error
    names = [ORIGINAL, *(row.name for row in rows)]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ConfigError([f"{config.origin}: two rows are called {n!r}" for n in doubled])
    return rows


def made_by(row: Row, lq: np.ndarray, cache: Cache, warm: set[str]) -> Made:
    """What a row makes of (N, n, n, 3) uint8 thumbnails, from the cache where it is there.

    Raises:
        EvaluationError: the row failed.
    """
    try:
        key = fingerprint(row.fingerprint, lq)
        return Made.from_arrays(cache.get("restored", key, lambda: measured(row, lq, warm).arrays()))
    except (RuntimeError, ValueError) as error:
        raise EvaluationError(f"row {row.name!r} failed: {error}") from error


def made_in_parts(row: Row, lq: np.ndarray, size: int, cache: Cache, warm: set[str]) -> Made:
    """`made_by` in parts of at most `size` thumbnails, joined."""
    parts = [made_by(row, lq[i : i + size], cache, warm).arrays() for i in range(0, len(lq), size)]
    joined = {name: np.concatenate([p[name] for p in parts], axis=int(name == "flags")) for name in parts[0]}
    return Made.from_arrays(joined | {"cost": parts[0]["cost"]})


def _columns(name: str, views: Views, made: Made, content: str, cache: Cache) -> Columns:
    family = FAMILIES[name]
    key = fingerprint(name, family.version, family.depends(), content)
    columns = cache.get(name, key, lambda: family.measure(Sample(views, made)))
    return columns | {FACES: np.ones(len(views.faces))}


def _vectors(judge: Judge, faces: Sequence[EvaluationFace], made: Made, cache: Cache) -> np.ndarray:
    points = [face.landmarks for face in faces if face.landmarks is not None]
    key = fingerprint(judge.fingerprint, made.images, made.refused, *points)
    try:
        return cache.get("vectors", key, lambda: {"vectors": judge.vectors(made.images, faces, made.refused)})[
            "vectors"
        ]
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def _content(views: Views, made: Made) -> str:
    """Fingerprint of everything a measure may look at."""
    faces = [[f.id, f.labels] for f in views.faces]
    stacks = [v for v in (f.landmarks for f in views.faces) if v is not None]
    masks = [v for v in (f.parsing for f in views.faces) if v is not None]
    arrays = made.arrays()
    arrays.pop("cost")
    names = sorted(arrays)
    return fingerprint(
        faces, *stacks, *masks, views.lq, views.truth, views.mask, views.mask_lq, names, *(arrays[n] for n in names)
    )


def collect(
    source: Loaded, condition: str, config: EvaluationConfig, rows: Sequence[Row], judges: Sequence[Judge],
    families: Sequence[str], cache: Cache, warm: set[str], log: Log,
) -> Collected:  # fmt: skip
    """Run rows, measures and judges over one source in one condition, chunk by chunk."""
    kept, options = Collected(), config.options
    every: list[Row | None] = [None, *rows]
    done = 0
    for part in chunks(source.faces, options.chunk):
        views = degraded(part, config.degradations[condition], source.grey)
        pictures: dict[str, np.ndarray] = {"thumbnail": views.lq}
        kept.covers += views.covers
        for row in every:
            name = ORIGINAL if row is None else row.name
            made = Made.plain(views.truth) if row is None else made_by(row, views.lq, cache, warm)
            content = _content(views, made)
            for family in families:
                columns = _columns(family, views, made, content, cache)
                kept.columns.setdefault(family, {}).setdefault(name, []).append(columns)
            for judge in judges:
                kept.vectors.setdefault(judge.title, {}).setdefault(name, []).append(_vectors(judge, part, made, cache))
            kept.undecided.setdefault(name, []).append(made.undecided | made.refused)
            kept.failed += int(made.failed.sum())
            if row is not None:
                kept.costs.setdefault(name, []).append((made.seconds, made.peak_mib, made.load))
            pictures[name] = made.images
        first = [ORIGINAL, "thumbnail", *(row.name for row in rows)]
        for i in range(min(len(part), options.pictures - len(kept.strips))):
            kept.strips.append(Strip(source.name, condition, tuple((n, pictures[n][i]) for n in first)))
        done += len(part)
        log(f"{source.name}, {condition}: {done} of {len(source.faces)} faces")
    for part in chunks(source.references, options.chunk) if judges else ():
        made = Made.plain(np.stack([as_rgb(to_grey(f.image)) if source.grey else f.image for f in part]))
        for judge in judges:
            kept.references.setdefault(judge.title, []).append(_vectors(judge, part, made, cache))
    return kept
