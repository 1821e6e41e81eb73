"""Really covered faces: does the restorer tell them from bare ones, and is any cover left in what it makes of them?

There is no truth for such faces. A small classifier, trained here on covered and bare faces outside the
validation part, says whether a picture shows a cover; it sees no restored one in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.embedders import called_covered, cover_classifier
from evaluation.faces import EvaluationFace, bicubic, load_faces, thumbnail
from evaluation.recognition import two_class_auc
from evaluation.restoring import Restore, restore_all
from evaluation.statistics import Finding, bootstrap, bootstrap_groups, quantile

BARE_TRAINING_FACES = 900  # of each set, for the classifier of covered thumbnails


@dataclass
class RealFaces:
    """Really covered and bare faces as found, for training the classifier and for measuring."""

    covered: dict[str, list[EvaluationFace]]  # validation part, by set
    bare_as_found: dict[str, list[EvaluationFace]]
    bare_canonical: list[EvaluationFace]
    train_covered: list[np.ndarray]
    train_bare: list[np.ndarray]


def load_real(
    covered: Mapping[str, Path], as_found: Mapping[str, Path], canonical: Mapping[str, Path],
    bare_canonical: Sequence[EvaluationFace], listed: frozenset[str], limit: int | None,
) -> RealFaces:  # fmt: skip
    """Read what `real_findings` needs.

    Args:
        covered: name -> Parquet of really covered faces. as_found: of bare faces framed like them, or nearly so.
        canonical: of bare faces with landmarks, for training. bare_canonical: validation faces of these.
        listed: the validation list. limit: faces of each set at most.
    """
    count = BARE_TRAINING_FACES if limit is None else min(BARE_TRAINING_FACES, 4 * limit)

    def train(path: Path, faces: int, found: bool) -> list[np.ndarray]:
        return [f.image for f in load_faces(path, listed, False, faces, as_found=found)] if covered else []

    return RealFaces(
        {name: load_faces(path, listed, limit=limit, as_found=True) for name, path in covered.items()},
        {name: load_faces(path, listed, limit=limit, as_found=True) for name, path in as_found.items()},
        list(bare_canonical),
        [image for path in covered.values() for image in train(path, 3 * count, True)],
        [image for path in canonical.values() for image in train(path, count, False)]
        + [image for path in as_found.values() for image in train(path, count, True)],
    )


def real_findings(
    real: RealFaces,
    bare_fractions: dict[str, np.ndarray],
    restorers: dict[str, Restore],
    folder: Path,
    steps: int = 800,
) -> list[Finding]:
    """Separation by `occluded_fraction`, and whether any cover is left in the output.

    Args:
        bare_fractions: `occluded_fraction` of clean bare faces by set.
        restorers: name -> restorer; the maps of the first one count.
        folder: where the trained classifiers are kept for the next run on the same faces.
    """
    section, main = "Really covered faces", next(iter(restorers))
    found: list[Finding] = []
    covered = [face for part in real.covered.values() for face in part]
    which, lqs = np.array([f.set for f in covered]), [thumbnail(f.image) for f in covered]
    outputs = {name: restore_all(restore, lqs) for name, restore in restorers.items()}
    fraction = np.array([o.occluded_fraction for o in outputs[main]])
    bare, bare_outputs = dict(bare_fractions), []
    for name, part in real.bare_as_found.items():
        made = restore_all(restorers[main], [thumbnail(f.image) for f in part])
        bare_outputs += made
        bare[f"{name} as found"] = np.array([o.occluded_fraction for o in made])
    bare = {name: values[np.isfinite(values)] for name, values in bare.items()}
    bare = {"all bare sets": np.concatenate(list(bare.values()))} | bare
    separation = "AUC of occluded_fraction, covered against bare, 16x16 by area averaging; covered ones framed as found"
    for name in real.covered:
        mine = fraction[(which == name) & np.isfinite(fraction)]
        for other, values in bare.items():
            estimate = bootstrap_groups(two_class_auc, mine, values, resamples=100)
            bar = 0.95 if other == "all bare sets" else None
            found.append(Finding(section, name, f"AUC against {other}", separation, estimate, bar=bar, row=main))
    kinds = {name: fraction[(which == name) & np.isfinite(fraction)] for name in real.covered}
    found += [
        Finding(section, name, "occluded_fraction", "median", quantile(values, 0.5), "up" if name in kinds else "down",
                row=main)
        for name, values in (kinds | bare).items()
    ]  # fmt: skip
    bare_validation = [f.image for part in (*real.bare_as_found.values(), real.bare_canonical) for f in part]
    for size in (16, 64):
        network = cover_classifier(real.train_covered, real.train_bare, size, folder, steps)
        counts = f"{len(real.train_covered)} covered and {len(real.train_bare)} bare faces outside the validation part"
        trained = f"CNN on {size}x{size}, trained on {counts}"
        right = called_covered(network, [f.image for f in covered], size)
        wrong = called_covered(network, bare_validation, size)
        label = f"classifier at {size} px"
        found += [
            Finding(section, label, "finds the cover", trained, bootstrap(right), row="original"),
            Finding(section, label, "calls bare covered", trained, bootstrap(wrong), "down", row="original"),
            Finding(section, label, "balanced accuracy", trained,
                    bootstrap_groups(lambda a, b: (a.mean() + 1 - b.mean()) / 2, right, wrong), row="original"),
        ]  # fmt: skip
        if bare_outputs:
            share = bootstrap(called_covered(network, [o.image for o in bare_outputs], size))
            found.append(Finding(section, label, "calls bare covered", trained, share, "down", row=main))
        pictures = {"bicubic": [bicubic(lq) for lq in lqs]} | {
            n: [o.image for o in outs] for n, outs in outputs.items()
        }
        for name, images in pictures.items():
            left = called_covered(network, images, size)
            for source in real.covered:
                share, bar = bootstrap(left[which == source]), 0.1 if name in outputs else None
                metric = f"still called covered, {source}"
                found.append(Finding(section, label, metric, trained, share, "down", bar=bar, row=name))
    return [f for f in found if f.estimate.n]
