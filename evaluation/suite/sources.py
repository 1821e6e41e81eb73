"""Faces to measure with: from Parquet, from a folder per person, from LFW's pairs, or the examples of scikit-image."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.faces import (
    EvaluationFace,
    canonical_face,
    central_square,
    decode,
    example_faces,
    load_faces,
    read_validation_list,
)
from evaluation.recognition import Pairs, verification_pairs
from evaluation.suite.config import EvaluationConfig, EvaluationError, RecognitionOptions, Source
from landmarks.backends import BackendUnavailable, create
from pipeline.images import READ_ENDINGS

_SHOWN = 5  # missing files that an error names


@dataclass(frozen=True)
class Loaded:
    """One source, read.

    Attributes:
        name: of the source. grey: measured in grey. faces: what could be read and has a face. references: faces that
            are only compared with, as originals. identified: whether `group` names people. pairs: trials of a pair list
            or of a number of people, indices into faces and references one after the other; else None.
        undecided_pairs: its genuine and impostor trials with a picture in which no face was found: counted, never
            compared.
        counts: what happened to the pictures that gave no face, by reason.
    """

    name: str
    grey: bool
    faces: list[EvaluationFace]
    identified: bool
    pairs: Pairs | None = None
    undecided_pairs: tuple[int, int] = (0, 0)
    counts: Counter[str] = field(default_factory=Counter)
    references: Sequence[EvaluationFace] = ()


def load_source(source: Source, config: EvaluationConfig) -> Loaded | None:
    """Read a source; None where it is optional and its file is not there.

    Raises:
        EvaluationError: nothing to measure with, or a pair list that does not fit its folder.
    """
    limit = min((n for n in (source.limit, config.options.limit) if n is not None), default=None)
    if source.examples:
        faces = [
            EvaluationFace(f"example {i}", f"example {i}", source.name, image, None, {})
            for i, image in enumerate(example_faces()[:limit])
        ]
        return Loaded(source.name, source.grey, faces, True)
    place = config.path(source.parquet or source.folder or "")
    if not place.exists() and source.optional:
        return None
    if source.parquet:
        return _from_parquet(source, config, place, limit)
    if source.pairs:
        return _from_pairs(source, config.path(source.pairs), place, limit)
    return _from_folder(source, place, limit)


def _from_parquet(source: Source, config: EvaluationConfig, path: Path, limit: int | None) -> Loaded:
    listed = read_validation_list(config.path(source.held_out)) if source.held_out else frozenset()
    try:
        faces = load_faces(
            path, listed, validation=bool(source.held_out), limit=None if source.people else limit,
            by_person=config.recognised(source),
        )  # fmt: skip
    except ImportError as error:
        raise EvaluationError(f"source {source.name}: {error}; Parquet needs the extra evaluate") from error
    except (ValueError, KeyError) as error:
        raise EvaluationError(f"source {source.name}: {path}: {error}") from error
    if not faces:
        why = f"none of its ids is in {source.held_out}" if source.held_out else "it has no rows"
        raise EvaluationError(f"source {source.name}: no face in {path}: {why}")
    if source.people and config.options.recognition is not None:
        people = min(n for n in (source.people, config.options.limit) if n is not None)
        return _with_trials(source, faces, people, config.options.recognition, config.options.seed)
    return Loaded(source.name, source.grey, faces, any(f.group != f.id for f in faces))


def _with_trials(
    source: Source, faces: Sequence[EvaluationFace], people: int, options: RecognitionOptions, seed: int
) -> Loaded:
    """The probes of `people` people, one for each fold at least, with the originals they are compared with."""
    try:
        pairs = verification_pairs(
            [face.group for face in faces], options.probes_per_person, options.galleries_per_probe, options.folds, seed,
            max_people=max(people, options.folds),
        )  # fmt: skip
    except ValueError as error:
        raise EvaluationError(f"source {source.name}: {error}") from error
    probes = np.unique(pairs.probe)
    order = np.append(probes, np.setdiff1d(pairs.gallery, probes))
    place = np.zeros(len(faces), int)
    place[order] = np.arange(len(order))
    chosen = [faces[i] for i in order]
    moved = Pairs(place[pairs.probe], place[pairs.gallery], pairs.same, pairs.fold)
    return Loaded(source.name, source.grey, chosen[: len(probes)], True, moved, references=chosen[len(probes) :])


def _read(path: Path, name: str, person: str, source: Source) -> EvaluationFace | str:
    """One picture as a canonical face, or the reason why there is none."""
    try:
        picture = decode(path.read_bytes())
    except (OSError, ValueError):
        return "unreadable picture"
    if source.framing == "canonical":
        return EvaluationFace(name, person, source.name, central_square(picture), None, {})
    height, width = picture.shape[:2]
    found = [face for face in create("dlib").detect(picture) if face.landmarks is not None]
    if not found:
        return "no face found"
    # LFW and its like show the person in the middle; others may stand beside.
    nearest = min(found, key=lambda f: float(np.hypot(*(f.bbox.reshape(2, 2).mean(0) - (width / 2, height / 2)))))
    crop, points = canonical_face(picture, np.asarray(nearest.landmarks, np.float64))
    return EvaluationFace(name, person, source.name, crop, points, {})


def _read_all(files: Sequence[tuple[Path, str, str]], source: Source) -> tuple[list[EvaluationFace], Counter[str]]:
    """Canonical faces of (path, name, person) entries, and why others gave none."""
    faces, counts = [], Counter[str]()
    try:
        for path, name, person in files:
            face = _read(path, name, person, source)
            if isinstance(face, str):
                counts[face] += 1
            else:
                faces.append(face)
    except BackendUnavailable as error:
        raise EvaluationError(f"source {source.name}: framing dlib: {error}; or framing: canonical") from error
    if not faces:
        what = ", ".join(f"{n} x {reason}" for reason, n in counts.items()) or "no pictures"
        raise EvaluationError(f"source {source.name}: nothing to measure with in {source.folder}: {what}")
    return faces, counts


def _from_folder(source: Source, folder: Path, limit: int | None) -> Loaded:
    files = [
        (path, path.relative_to(folder).as_posix(), path.relative_to(folder).parts[0])
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READ_ENDINGS and path.is_file() and path.parent != folder
    ]
    if not files:
        raise EvaluationError(
            f"source {source.name}: no picture in {folder}; expected one folder per person with pictures"
        )
    faces, counts = _read_all(files[:limit], source)
    return Loaded(source.name, source.grey, faces, True, counts=counts)


def read_pairs(path: Path) -> Iterator[tuple[int, int, tuple[str, int], tuple[str, int]]]:
    """Line number, fold and the two pictures (person, number) of each trial of a file in LFW's format.

    The first line holds the folds and the trials of each kind in a fold (`10 300`), or only the latter; then come, for
    each fold, the genuine trials (`name n1 n2`) and the impostor ones (`name1 n1 name2 n2`), between tabs or spaces.

    Raises:
        EvaluationError: another format, or fewer or more trials than the first line says.
    """
    lines = [
        (i, line.split()) for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if line.strip()
    ]
    try:
        head = [int(word) for word in lines[0][1]]
        folds, per_kind = head if len(head) == 2 else (1, *head)
    except (IndexError, ValueError) as error:
        raise EvaluationError(f"{path}: line 1: expected the numbers of folds and of trials, e.g. `10 300`") from error
    if len(lines) - 1 != 2 * folds * per_kind:
        raise EvaluationError(f"{path}: line 1 promises {2 * folds * per_kind} trials, there are {len(lines) - 1}")
    for place, (number, words) in enumerate(lines[1:]):
        try:
            if len(words) == 3:
                one, two = (words[0], int(words[1])), (words[0], int(words[2]))
            else:
                one, two = (words[0], int(words[1])), (words[2], int(words[3]))
                if len(words) != 4:
                    raise ValueError("four words")
        except (ValueError, IndexError) as error:
            raise EvaluationError(f"{path}: line {number}: expected `name n1 n2` or `name1 n1 name2 n2`") from error
        yield number, place // (2 * per_kind), one, two


def _from_pairs(source: Source, path: Path, folder: Path, limit: int | None) -> Loaded:
    """Trials of a pair list with the pictures it names; `limit` takes the first trials of each kind in each fold."""
    trials = list(read_pairs(path))
    if limit is not None:
        taken: Counter[tuple[int, bool]] = Counter()
        kept = []
        for trial in trials:
            kind = (trial[1], trial[2][0] == trial[3][0])
            taken[kind] += 1
            kept += [trial] if 2 * taken[kind] * len({t[1] for t in trials}) <= limit else []
        trials = kept
    pictures = (p for p in folder.rglob("*") if p.suffix.lower() in READ_ENDINGS)
    endings = {p.with_suffix("").relative_to(folder).as_posix(): p for p in pictures}
    names = {picture: f"{picture[0]}/{picture[0]}_{picture[1]:04d}" for t in trials for picture in t[2:]}
    missing = [f"line {t[0]}: {names[p]}" for t in trials for p in t[2:] if names[p] not in endings]
    if missing:
        more = f" (and {len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        raise EvaluationError(f"source {source.name}: {path} names pictures that are not in {folder}: "
                              f"{'; '.join(missing[:_SHOWN])}{more}")  # fmt: skip
    if not trials:
        raise EvaluationError(f"source {source.name}: {path} leaves no trial; raise the limit")
    faces, counts = _read_all([(endings[name], name, picture[0]) for picture, name in sorted(names.items())], source)
    place = {face.id: i for i, face in enumerate(faces)}
    rows, lost = [], [0, 0]
    for _, fold, one, two in trials:
        same = one[0] == two[0]
        if names[one] in place and names[two] in place:
            rows.append((place[names[one]], place[names[two]], same, fold))
        else:
            lost[0 if same else 1] += 1
    if not rows:
        raise EvaluationError(f"source {source.name}: no trial of {path} has a face in both pictures")
    pairs = Pairs(*(np.array(column) for column in zip(*rows, strict=True)))
    if pairs.same.all() or not pairs.same.any():
        only = "genuine" if pairs.same.all() else "impostor"
        raise EvaluationError(f"source {source.name}: {path} leaves {only} trials only; both kinds are needed")
    return Loaded(source.name, source.grey, faces, True, pairs, (lost[0], lost[1]), counts)
