"""Really covered faces: does the restorer tell them from bare ones, and is any cover left in what it makes of them?

There is no truth for such faces. A small classifier, trained here on covered and bare faces outside the
validation part, says whether a picture shows a cover; it sees no restored one in training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.cover_classifier import called_covered, cover_classifier
from evaluation.faces import EvaluationFace, bicubic, load_faces, thumbnail
from evaluation.recognition import two_class_auc
from evaluation.statistics import Finding, bootstrap, bootstrap_groups, quantile
from evaluation.suite.report import Strip
from evaluation.suite.rows import BICUBIC, ORIGINAL, Made

BARE_TRAINING_FACES = 900  # of each set, for the classifier of covered thumbnails


@dataclass(frozen=True)
class Bare:
    """Bare faces of one source: (N,) `occluded_fraction` of their thumbnails, their pictures, and who they show."""

    fractions: np.ndarray
    images: list[np.ndarray]
    people: np.ndarray


@dataclass(frozen=True)
class RealFaces:
    """Really covered and bare faces as found, for training the classifier and for measuring."""

    covered: dict[str, list[EvaluationFace]]  # validation part, by set
    as_found: dict[str, list[EvaluationFace]]  # bare ones
    train_covered: list[np.ndarray]
    train_bare: list[np.ndarray]


def load_real(
    covered: Mapping[str, Path], as_found: Mapping[str, Path], canonical: Mapping[str, Path], listed: frozenset[str],
    limit: int | None,
) -> RealFaces:  # fmt: skip
    """Read what `real_findings` needs.

    Args:
        covered: name -> Parquet of really covered faces. as_found: of bare faces framed like them, or nearly so.
        canonical: of bare faces with landmarks, for training alone.
        listed: the validation list. limit: faces of each set at most.
    """
    count = BARE_TRAINING_FACES if limit is None else min(BARE_TRAINING_FACES, 4 * limit)

    def held_out(path: Path) -> list[EvaluationFace]:
        return load_faces(path, listed, limit=limit, as_found=True)

    def train(path: Path, faces: int, found: bool) -> list[np.ndarray]:
        return [f.image for f in load_faces(path, listed, False, faces, as_found=found)]

    return RealFaces(
        {name: held_out(path) for name, path in covered.items()},
        {name: held_out(path) for name, path in as_found.items()},
        [image for path in covered.values() for image in train(path, 3 * count, True)],
        [image for path in canonical.values() for image in train(path, count, False)]
        + [image for path in as_found.values() for image in train(path, count, True)],
    )


def real_findings(
    real: RealFaces, bare: Mapping[str, Bare], restorers: Mapping[str, Callable[[np.ndarray], Made]], folder: Path,
    steps: int, pictures: int,
) -> tuple[list[Finding], list[Strip]]:  # fmt: skip
    """Separation by `occluded_fraction`, and whether any cover is left in the output; and pictures of it.

    Args:
        bare: bare faces by source.
        restorers: row -> (N, n, n, 3) uint8 thumbnails to what it makes of them; the maps of the first one count.
        folder: where the trained classifiers are kept for the next run on the same faces. steps: of their training.
        pictures: faces of each set shown.
    """
    section, main = "Really covered faces", next(iter(restorers))
    found: list[Finding] = []
    covered = [face for part in real.covered.values() for face in part]
    which = np.repeat(list(real.covered), [len(part) for part in real.covered.values()])
    people = _people(covered)
    lqs = _thumbnails(covered)
    made = {name: restore(lqs) for name, restore in restorers.items()}
    fraction = _fractions(made[main])
    fractions, restored_bare = {name: _known(part.fractions, part.people) for name, part in bare.items()}, []
    for name, part in real.as_found.items():
        of_bare = restorers[main](_thumbnails(part))
        restored_bare += list(of_bare.images)
        fractions[f"{name} as found"] = _known(_fractions(of_bare), _people(part))
    values_of_all, people_of_all = (np.concatenate(column) for column in zip(*fractions.values(), strict=True))
    fractions = {"all bare sets": (values_of_all, people_of_all)} | fractions
    separation = "AUC of occluded_fraction, covered against bare, 16x16 by area averaging; covered ones framed as found"
    kinds = {name: _known(fraction[which == name], people[which == name]) for name in real.covered}
    for name, (mine, own) in kinds.items():
        for other, (values, theirs) in fractions.items():
            estimate = bootstrap_groups(two_class_auc, mine, values, clusters=[own, theirs], resamples=100)
            found.append(Finding(section, name, f"AUC against {other}", separation, estimate, row=main))
    found += [
        Finding(section, name, "occluded_fraction", "median", quantile(values, 0.5, who),
                "up" if name in kinds else "down", row=main)
        for name, (values, who) in (kinds | fractions).items()
    ]  # fmt: skip
    shown = {BICUBIC: [bicubic(lq) for lq in lqs]} | {name: list(of_row.images) for name, of_row in made.items()}
    as_found = [face for part in real.as_found.values() for face in part]
    bare_images = [face.image for face in as_found] + [image for part in bare.values() for image in part.images]
    bare_people = np.concatenate([_people(as_found), *(part.people for part in bare.values())])
    for size in (16, 64):
        network = cover_classifier(real.train_covered, real.train_bare, size, folder, steps)
        counts = f"{len(real.train_covered)} covered and {len(real.train_bare)} bare faces outside the validation part"
        trained = f"CNN on {size}x{size}, trained on {counts}"
        right = called_covered(network, [f.image for f in covered], size)
        wrong = called_covered(network, bare_images, size)
        label = f"classifier at {size} px"
        found += [
            Finding(section, label, "finds the cover", trained, bootstrap(right, clusters=people), row=ORIGINAL),
            Finding(section, label, "calls bare covered", trained, bootstrap(wrong, clusters=bare_people), "down",
                    row=ORIGINAL),
            Finding(section, label, "balanced accuracy", trained,
                    bootstrap_groups(lambda a, b: (a.mean() + 1 - b.mean()) / 2, right, wrong,
                                     clusters=[people, bare_people]), row=ORIGINAL),
        ]  # fmt: skip
        if restored_bare:
            share = bootstrap(called_covered(network, restored_bare, size), clusters=_people(as_found))
            found.append(Finding(section, label, "calls bare covered", trained, share, "down", row=main))
        for name, images in shown.items():
            left = called_covered(network, images, size)
            for source in real.covered:
                share = bootstrap(left[which == source], clusters=people[which == source])
                metric = f"still called covered, {source}"
                found.append(Finding(section, label, metric, trained, share, "down", row=name))
    first = (i for name in real.covered for i in np.flatnonzero(which == name)[:pictures])
    strips = [_strip(str(which[i]), covered[i], lqs[i], made, int(i)) for i in first]
    return [f for f in found if f.estimate.n], strips


def _thumbnails(faces: list[EvaluationFace]) -> np.ndarray:
    """(N, 16, 16, 3) uint8, by area averaging."""
    return np.stack([thumbnail(face.image) for face in faces])


def _people(faces: Sequence[EvaluationFace]) -> np.ndarray:
    """(N,) the person of each face."""
    return np.array([face.group for face in faces], str)


def _known(fractions: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fractions that are numbers, and the people they are of."""
    known = np.isfinite(fractions)
    return fractions[known], people[known]


def _fractions(made: Made) -> np.ndarray:
    """(N,) `occluded_fraction`, NaN where there is none."""
    return np.full(len(made.images), np.nan) if made.occluded_fraction is None else made.occluded_fraction


def _strip(name: str, face: EvaluationFace, lq: np.ndarray, made: Mapping[str, Made], i: int) -> Strip:
    """The picture, its thumbnail, what each row made of it, and the maps of the first row."""
    first = next(iter(made.values()))
    pictures = [(ORIGINAL, face.image), ("thumbnail", lq), *((row, of_row.images[i]) for row, of_row in made.items())]
    maps = (("cover found", first.occlusion), ("uncertainty", first.uncertainty))
    pictures += [(title, values[i]) for title, values in maps if values is not None]
    return Strip(name, "as found", tuple(pictures))
