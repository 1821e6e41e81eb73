"""Verification: are two pictures of one person? Pairs, ROC and its summaries, and accuracy over folds of people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from evaluation.statistics import Finding, bootstrap, bootstrap_together

FOLDS = 10


@dataclass(frozen=True)
class Pairs:
    """Trials: a probe picture against a gallery picture.

    Attributes:
        probe, gallery: (N,) indices into the list of faces; a face is never both in one trial.
        same: (N,) bool, True where both show one person.
        fold: (N,) 0..folds-1; both people of a trial belong to its fold, so that no person is in two folds.
    """

    probe: np.ndarray
    gallery: np.ndarray
    same: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


def verification_pairs(
    people: Sequence[str], probes_per_person: int = 6, galleries_per_probe: int = 4, folds: int = FOLDS, seed: int = 0,
    max_people: int | None = None,
) -> Pairs:  # fmt: skip
    """Seeded trials from faces with known people: for every genuine trial one impostor trial of the same probe.

    People with at least two faces give probes (at most `probes_per_person`, so that nobody dominates), each against at
    most `galleries_per_probe` other faces of the same person, and against as many faces of others in its fold.

    Args:
        people: the person of each face.
        max_people: use only this many people with two faces or more.

    Raises:
        ValueError: fewer people with two faces than folds, or a fold holding one person only.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(people, dtype=str), return_inverse=True)
    faces = [np.flatnonzero(member == i) for i in range(len(names))]
    order = rng.permutation([i for i in range(len(names)) if len(faces[i]) > 1])
    several = order[: len(order) if max_people is None else max_people]
    if len(several) < folds:
        raise ValueError(
            f"verification needs {folds} people with two faces or more, one for each fold; there are {len(several)}"
        )
    rest = rng.permutation([i for i in range(len(names)) if i not in set(several.tolist())])  # impostors only
    fold_of = {int(person): place % folds for part in (several, rest) for place, person in enumerate(part)}
    pool = [np.concatenate([faces[p] for p, f in fold_of.items() if f == fold]) for fold in range(folds)]
    rows: list[tuple[int, int, bool, int]] = []
    for person in several:
        fold = fold_of[int(person)]
        others = np.setdiff1d(pool[fold], faces[person])
        if len(others) == 0:
            raise ValueError(
                f"verification: fold {fold} holds one person only, so it has no impostor trials; use fewer folds"
            )
        for probe in rng.permutation(faces[person])[:probes_per_person]:
            genuine = rng.permutation(faces[person][faces[person] != probe])[:galleries_per_probe]
            impostor = rng.choice(others, len(genuine), replace=len(others) < len(genuine))
            rows += [(int(probe), int(g), True, fold) for g in genuine] + [
                (int(probe), int(g), False, fold) for g in impostor
            ]
    return Pairs(*(np.array(column) for column in zip(*rows, strict=True)))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine of two (N, D) arrays of embeddings, (N,) in [-1, 1]."""
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def roc(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receiver operating characteristic: a trial is accepted where its score is at or above the threshold.

    Args:
        scores: (N,) higher = more alike. same: (N,) bool.

    Returns:
        far (false accepts over impostors), tar (true accepts over genuine), threshold: each (K,), thresholds falling,
        the first +inf (nothing accepted, both rates 0), the last accepting everything.

    Raises:
        ValueError: not both kinds of trial present.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if same.all() or not same.any():
        raise ValueError("roc: needs both genuine and impostor trials")
    order = np.argsort(-scores, kind="stable")
    ranked, accepted = scores[order], same[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores are accepted together
    tar, far = np.cumsum(accepted)[last] / same.sum(), np.cumsum(~accepted)[last] / (~same).sum()
    return np.append(0.0, far), np.append(0.0, tar), np.append(np.inf, ranked[last])


def auc(scores: np.ndarray, same: np.ndarray) -> float:
    """Area under the ROC in [0, 1]: how often a genuine trial scores above an impostor, ties counting half."""
    same = np.asarray(same, bool)
    positive, negative = int(same.sum()), int((~same).sum())
    if not positive or not negative:
        raise ValueError("auc: needs both classes")
    return float((rankdata(scores)[same].sum() - positive * (positive + 1) / 2) / (positive * negative))


def two_class_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """`auc` of two samples of scores."""
    return auc(np.append(positive, negative), np.arange(len(positive) + len(negative)) < len(positive))


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """The error where false accepts equal false rejects, in [0, 1]; linear between the two nearest ROC points."""
    far, tar, _ = roc(scores, same)
    gap = far - (1 - tar)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


def tar_at_far(scores: np.ndarray, same: np.ndarray, far: float) -> float:
    """Share of genuine trials accepted at the lowest threshold that accepts at most `far` of the impostors."""
    rates, tar, _ = roc(scores, same)
    return float(tar[rates <= far].max())


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold with most right decisions; midway to the next lower score, so that near values fall either way."""
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    far, tar, thresholds = roc(scores, same)
    right = tar * same.sum() + (1 - far) * (~same).sum()
    best = int(np.argmax(right))
    if best == 0:  # nothing accepted
        return float(thresholds[1]) + 1.0
    below = thresholds[best + 1] if best + 1 < len(thresholds) else thresholds[best] - 1.0
    return float((thresholds[best] + below) / 2)


def fold_decisions(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Whether each trial is decided rightly, (N,) bool, with the threshold chosen on the other folds.

    The mean is the accuracy of the LFW protocol. Method: Huang et al., LFW technical report 07-49, 2007.

    Raises:
        ValueError: the other folds of one hold genuine trials only, or impostor trials only.
    """
    scores, same, fold = np.asarray(scores), np.asarray(same, bool), np.asarray(fold)
    right = np.zeros(len(scores), bool)
    for held in np.unique(fold):
        test = fold == held
        if same[~test].all() or not same[~test].any():
            raise ValueError(
                f"no threshold can be chosen for fold {held}: the others hold {int(same[~test].sum())} genuine and "
                f"{int((~same[~test]).sum())} impostor trials, and both kinds are needed"
            )
        right[test] = (scores[test] >= best_threshold(scores[~test], same[~test])) == same[test]
    return right


def share_closed(
    original: float | np.ndarray, baseline: float | np.ndarray, restored: float | np.ndarray
) -> np.ndarray:
    """(restored - baseline) / (original - baseline): 1 = all of the lost accuracy is back, negative = made worse."""
    lost = np.asarray(original, np.float64) - baseline
    return np.where(np.abs(lost) > 1e-9, (restored - baseline) / np.where(np.abs(lost) > 1e-9, lost, 1.0), np.nan)


FARS = (1e-1, 1e-2, 1e-3)
NO_FACE = -2.0  # below every cosine: a trial without an embedding is never accepted


def trial_scores(probes: np.ndarray, galleries: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(M,) cosines of the trials from (N, D) vectors of every face; NaN where one of the two has no embedding."""
    return cosine(probes[pairs.probe], galleries[pairs.gallery])


def _rates(scores: np.ndarray, same: np.ndarray) -> list[float]:
    """AUC, EER and TAR at each of `FARS`; NaN where a resample holds one kind of trial only."""
    if same.all() or not same.any():
        return [np.nan] * (2 + len(FARS))
    return [auc(scores, same), equal_error_rate(scores, same), *(tar_at_far(scores, same, far) for far in FARS)]


def verification_findings(
    scores: np.ndarray, pairs: Pairs, people: Sequence[str], how: str, undecided: np.ndarray | None = None,
    lost: tuple[int, int] = (0, 0), **labels: Any,
) -> tuple[list[Finding], np.ndarray]:  # fmt: skip
    """Accuracy, ROC summaries and the third verdict of one row's trials.

    Args:
        scores: (M,) from `trial_scores`. people: of the probe of each trial; intervals draw people.
        how: words for the definitions. undecided: (M,) bool, the restorer itself calls the probe not decidable.
        lost: genuine and impostor trials beside these in which a picture shows no face.
        labels: section, subset and the like, for every finding.

    Returns:
        findings, and whether each trial was decided rightly, (M + lost,) float, lost ones last.
    """
    known = np.isfinite(scores)
    filled = np.where(known, scores, NO_FACE)
    right = (fold_decisions(filled, pairs.same, pairs.fold) & known).astype(np.float64)
    doubtful = ~known if undecided is None else ~known | undecided
    right, doubtful = np.append(right, np.zeros(sum(lost))), np.append(doubtful, np.ones(sum(lost), bool))
    who = [*people, *(f"lost {i}" for i in range(sum(lost)))]
    faceless = np.append(~known, np.ones(sum(lost), bool))
    same = np.append(pairs.same, np.repeat([True, False], lost))
    rates = bootstrap_together(
        _rates, np.append(filled, np.full(sum(lost), NO_FACE)), same, clusters=who, resamples=100
    )
    names = ["AUC", "EER", *(f"TAR at FAR {far:.0e}".replace("e-0", "e-") for far in FARS)]
    folds = f"{len(np.unique(pairs.fold))} folds, threshold from the other folds; {how}"
    accuracy = bootstrap(right, clusters=who)
    sure = bootstrap(right[~doubtful], clusters=np.array(who)[~doubtful])
    never = f"a trial without a face on both sides is never accepted; {how}"
    found = [
        Finding(metric="accuracy", definition=f"a trial without a face on both sides counts as wrong; {folds}",
                estimate=accuracy, **labels),
        *(Finding(metric=name, definition=never, estimate=rate, direction="down" if name == "EER" else "up", **labels)
          for name, rate in zip(names, rates, strict=True)),
        Finding(metric="not decidable", estimate=bootstrap(doubtful.astype(float), clusters=who), direction="down",
                definition="share of trials without a face on both sides, or whose probe the row calls not decidable",
                **labels),
        Finding(metric="no face", estimate=bootstrap(faceless.astype(float), clusters=who), direction="down",
                definition="share of trials without a face on both sides", **labels),
        Finding(metric="accuracy where decidable", estimate=sure, definition=f"of the other trials; {folds}", **labels),
    ]  # fmt: skip
    return found, right


def closed_finding(
    right: Mapping[str, np.ndarray], variant: str, people: Sequence[str],
    metric: str = "share of lost accuracy closed", **labels: Any,
) -> Finding:  # fmt: skip
    """Share of what was lost between original and bicubic that `variant` brings back; (M,) right decisions by row."""
    columns = np.stack([right["original"], right["bicubic"], right[variant]], axis=1)
    estimate = bootstrap(columns, lambda m: share_closed(m[:, 0], m[:, 1], m[:, 2]), people)
    definition = "(row - bicubic) / (original - bicubic), each as above, drawn together; negative = made worse"
    return Finding(metric=metric, definition=definition, estimate=estimate, **labels)
