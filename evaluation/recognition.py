"""Verification: are two pictures of one person? Pairs, ROC and its summaries, and accuracy over folds of people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from evaluation.embedders import Embedder
from evaluation.statistics import Estimate, Finding, bootstrap, bootstrap_groups

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
    """
    scores, same, fold = np.asarray(scores), np.asarray(same, bool), np.asarray(fold)
    right = np.zeros(len(scores), bool)
    for held in np.unique(fold):
        test = fold == held
        right[test] = (scores[test] >= best_threshold(scores[~test], same[~test])) == same[test]
    return right


def share_closed(
    original: float | np.ndarray, baseline: float | np.ndarray, restored: float | np.ndarray
) -> np.ndarray:
    """(restored - baseline) / (original - baseline): 1 = all of the lost accuracy is back, negative = made worse."""
    lost = np.asarray(original, np.float64) - baseline
    return np.where(np.abs(lost) > 1e-9, (restored - baseline) / np.where(np.abs(lost) > 1e-9, lost, 1.0), np.nan)


def _of_trials(statistic: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, same: np.ndarray) -> Estimate:
    """A statistic of (scores, same) with an interval that draws genuine and impostor trials apart."""

    def joined(genuine: np.ndarray, impostor: np.ndarray) -> float:
        return statistic(np.append(genuine, impostor), np.arange(len(genuine) + len(impostor)) < len(genuine))

    return bootstrap_groups(joined, scores[same], scores[~same], resamples=100)


def _embed(
    embedder: Embedder, images: Mapping[int, np.ndarray], landmarks: Sequence[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Embed pictures by index of their face; returns a lookup from (N,) indices to (N, D) vectors."""
    keys = sorted(images)
    vectors = embedder([images[i] for i in keys], [landmarks[i] for i in keys])
    place = {key: row for row, key in enumerate(keys)}
    return lambda indices: vectors[[place[int(i)] for i in indices]]


def probe_findings(
    section: str, pairs: Pairs, people: Sequence[str], originals: Sequence[np.ndarray], landmarks: Sequence[np.ndarray],
    variants: Mapping[str, Mapping[int, np.ndarray]], embedder: Embedder, default: str, bars: Mapping[str, float],
) -> list[Finding]:  # fmt: skip
    """Verification with each variant of the probes against original galleries: what of the lost accuracy comes back.

    Args:
        people, originals, landmarks: of every face; pictures uint8 RGB, points (68, 2) px of the original.
        variants: name -> pictures by index, for every probe of `pairs`; must hold "bicubic" and `default`.
        bars: metric -> bar, applied to the `default` variant.
    """
    needed = set(pairs.probe.tolist()) | set(pairs.gallery.tolist())
    original = _embed(embedder, {i: originals[i] for i in needed}, landmarks)
    gallery, who = original(pairs.gallery), np.asarray(people)[pairs.probe]
    judge = f"embedder {embedder.name} (part in training: {embedder.in_training})"
    how = f"probe as named against original gallery; {FOLDS} folds of people, threshold from the other folds; {judge}"
    found: list[Finding] = []
    right: dict[str, np.ndarray] = {}
    for name in ("original", *variants):
        probe = (
            original(pairs.probe) if name == "original" else _embed(embedder, variants[name], landmarks)(pairs.probe)
        )
        scores = cosine(probe, gallery)
        right[name] = fold_decisions(scores, pairs.same, pairs.fold).astype(np.float64)
        found += [
            Finding(section, name, "accuracy", f"{how}; interval draws people", bootstrap(right[name], clusters=who)),
            Finding(section, name, "AUC", how, _of_trials(auc, scores, pairs.same)),
            Finding(
                section,
                name,
                "TAR at FAR 1e-2",
                how,
                _of_trials(lambda s, y: tar_at_far(s, y, 0.01), scores, pairs.same),
            ),
            Finding(section, name, "EER", how, _of_trials(equal_error_rate, scores, pairs.same), "down"),
        ]
    restored = [name for name in variants if name != "bicubic"]
    for name in restored:
        metric, columns = (
            "share of lost accuracy closed",
            np.stack([right["original"], right["bicubic"], right[name]], axis=1),
        )
        closed = bootstrap(columns, lambda m: share_closed(m[:, 0], m[:, 1], m[:, 2]), who)
        definition = "(restored - bicubic) / (original - bicubic), accuracies as above, drawn together"
        found.append(
            Finding(section, name, metric, definition, closed, bar=bars.get(metric) if name == default else None)
        )
    others = [name for name in restored if name != default]
    if others:
        metric, best = "lead of the default", max(others, key=lambda name: right[name].mean())
        lead = bootstrap(right[default] - right[best], clusters=who)
        definition = f"accuracy of {default} less that of the best other one"
        found.append(Finding(section, f"{default} over {best}", metric, definition, lead, bar=bars.get(metric)))
    return found
