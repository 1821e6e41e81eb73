"""Recognition protocols over vectors of every row: verification, closed-set and open-set identification."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from evaluation.identification import Search, cmc, detection_identification, ranks, search_split
from evaluation.recognition import (
    NO_FACE,
    Pairs,
    auc,
    closed_finding,
    roc,
    trial_scores,
    verification_findings,
    verification_pairs,
)
from evaluation.statistics import Finding, bootstrap, bootstrap_together
from evaluation.suite.config import EvaluationError, RecognitionOptions
from evaluation.suite.curves import Curve
from evaluation.suite.numbers import MIN_GROUP, ordered
from evaluation.suite.rows import BICUBIC, DEFAULT, NEAREST, ORIGINAL, RESTORED
from evaluation.suite.sources import Loaded

VERIFICATION, CLOSED_SET, OPEN_SET = "Verification", "Closed-set identification", "Open-set identification"


@dataclass(frozen=True)
class Vectors:
    """What one judge says of one condition of one source.

    Attributes:
        source, condition, judge: names; `judge` with its part in training.
        rows: row -> (N, D) unit vectors of every face and then of every reference, NaN where there is none; holds
            "original", the only row with references, and "bicubic".
        undecided: row -> (faces,) bool, the row's own verdict is "not decidable". weights: row -> card it judges or "".
        members: label -> (faces,) name of each face's group, where groups are asked for.
    """

    source: Loaded
    condition: str
    judge: str
    rows: Mapping[str, np.ndarray]
    undecided: Mapping[str, np.ndarray]
    weights: Mapping[str, str]
    members: Mapping[str, np.ndarray] = field(default_factory=dict)


def same_photograph_pairs(people: Sequence[str], folds: int, seed: int) -> Pairs:
    """Each face against the original of its own photograph, and against that of another person.

    Raises:
        ValueError: one person only, so there is nobody else.
    """
    names, count = np.asarray(people, dtype=str), len(people)
    if len(np.unique(names)) < 2:
        raise ValueError("verification needs the photographs of two people or more; all are of one")
    rng = np.random.default_rng(seed)
    probe = np.arange(count)
    other = (probe + rng.integers(1, count, count)) % count
    for i in np.flatnonzero(names[other] == names):  # another photograph of the same person is no impostor
        other[i] = rng.choice(np.flatnonzero(names != names[i]))
    fold = rng.permutation(count) % folds
    same = np.repeat([True, False], count)
    return Pairs(np.tile(probe, 2), np.concatenate([probe, other]), same, np.tile(fold, 2))


def trials(source: Loaded, options: RecognitionOptions, seed: int) -> Pairs:
    """The trials of a source: those of its list, drawn from its people, or each photograph against itself.

    Raises:
        ValueError: too few people with two pictures, or too few photographs.
    """
    if source.pairs is not None:
        return source.pairs if len(np.unique(source.pairs.fold)) > 1 else _folded(source.pairs, options.folds)
    people = [face.group for face in source.faces]
    if options.same_photograph:
        if len(source.faces) < options.folds:
            raise ValueError(
                f"verification needs {options.folds} faces, one for each fold; there are {len(source.faces)}"
            )
        return same_photograph_pairs(people, options.folds, seed)
    return verification_pairs(people, options.probes_per_person, options.galleries_per_probe, options.folds, seed)


def _folded(pairs: Pairs, folds: int) -> Pairs:
    """A list without folds, dealt out evenly within each kind of trial."""
    fold = np.zeros(len(pairs), int)
    for kind in (True, False):
        fold[pairs.same == kind] = np.arange((pairs.same == kind).sum()) % folds
    return Pairs(pairs.probe, pairs.gallery, pairs.same, fold)


def recognition(
    given: Vectors, options: RecognitionOptions, seed: int, why_not: dict[str, str]
) -> tuple[list[Finding], list[Curve]]:
    """Every protocol that the source allows; what it does not allow is put into `why_not` with the reason.

    Raises:
        EvaluationError: a list of trials, or a part of its folds, holds one kind only.
    """
    found: list[Finding] = []
    curves: list[Curve] = []
    people = [face.group for face in (*given.source.faces, *given.source.references)]
    partly = bool(given.source.references)  # nothing but originals is known of them
    galleries = ("original",) if options.same_photograph or partly else options.galleries
    for gallery in galleries:
        label = f"{given.source.name}, {gallery} gallery, {given.judge}"
        if options.same_photograph:
            label = f"{given.source.name}, same photograph, {given.judge}"
        try:
            pairs = trials(given.source, options, seed)
        except ValueError as error:
            why_not[f"{VERIFICATION} on {given.source.name}"] = str(error)
        else:
            try:
                made, lines = _verification(given, pairs, people, gallery, label)
            except ValueError as error:
                raise EvaluationError(f"{VERIFICATION} on {label}: {error}") from error
            found, curves = found + made, curves + lines
        for section, enrolled in ((CLOSED_SET, 1.0), (OPEN_SET, options.enrolled)):
            try:
                if options.same_photograph:
                    raise ValueError("every person has one picture (same_photograph)")
                if partly:
                    raise ValueError("only the probes of its trials are restored (people)")
                split = search_split(people, enrolled, options.search_probes, seed)
            except ValueError as error:
                why_not[f"{section} on {given.source.name}"] = str(error)
            else:
                made, lines = _search(given, split, section, gallery, label, people, options)
                found, curves = found + made, curves + lines
    return found, curves


def _sides(given: Vectors, gallery: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Row, probe vectors, gallery vectors. A degraded gallery went the same way as the probes of the row."""
    for row, vectors in given.rows.items():
        yield row, vectors, given.rows[ORIGINAL] if gallery == "original" else vectors


def _verification(
    given: Vectors, pairs: Pairs, people: Sequence[str], gallery: str, label: str
) -> tuple[list[Finding], list[Curve]]:
    who = [people[i] for i in pairs.probe]
    how = f"probe of the row against {gallery} gallery; intervals draw people; {given.judge}"
    found: list[Finding] = []
    curves: list[Curve] = []
    right: dict[str, np.ndarray] = {}
    lost = given.source.undecided_pairs
    for row, probes, others in _sides(given, gallery):
        scores = trial_scores(probes, others, pairs)
        made, right[row] = verification_findings(
            scores, pairs, who, how, given.undecided[row][pairs.probe], lost, section=VERIFICATION, subset=label,
            condition=given.condition, row=row, weights=given.weights[row],
        )  # fmt: skip
        found += made
        filled = np.nan_to_num(scores, nan=NO_FACE)
        found += _by_group(
            given, pairs.probe, who, _accuracy_and_auc, {
                "accuracy": f"of the trials whose probe is of the group, by the thresholds of all; {how}",
                "AUC": f"of the trials whose probe is of the group, impostors as drawn for all; {how}",
            }, right[row][: len(pairs)], filled, pairs.same, section=VERIFICATION, subset=label,
            condition=given.condition, row=row, weights=given.weights[row],
        )  # fmt: skip
        far, tar, _ = roc(filled, pairs.same)
        plot = f"ROC, {label}, {given.condition}"
        curves.append(Curve(plot, "false accepts", "true accepts", row, far, tar, log_x=True))
    who += [f"lost {i}" for i in range(sum(lost))]
    for row in (r for r in given.rows if r not in (ORIGINAL, BICUBIC, NEAREST)):
        found.append(
            closed_finding(right, row, who, section=VERIFICATION, subset=label, condition=given.condition, row=row,
                           weights=given.weights[row])
        )  # fmt: skip
    fidelities = [row for row in right if row.startswith(RESTORED) and row != DEFAULT]
    if DEFAULT in right and fidelities:
        best = max(fidelities, key=lambda row: right[row].mean())
        lead = bootstrap(right[DEFAULT] - right[best], clusters=who)
        definition = f"accuracy of the default fidelity less that of the best other one, here {best}"
        found.append(Finding(VERIFICATION, label, "lead of the default", definition, lead, condition=given.condition,
                             row=DEFAULT, weights=given.weights[DEFAULT]))  # fmt: skip
    return found, curves


def _accuracy_and_auc(right: np.ndarray, scores: np.ndarray, same: np.ndarray) -> list[float]:
    """Of some trials; no AUC where they are of one kind."""
    return [float(right.mean()), np.nan if same.all() or not same.any() else auc(scores, same)]


def _of_groups(
    names: Sequence[str], large: Sequence[bool], rates: Callable[..., Sequence[float]], width: int, mine: np.ndarray,
    *columns: np.ndarray,
) -> list[float]:  # fmt: skip
    """`width` rates of the rows of each name in turn, NaN where it has none, then their gaps over the `large` names."""
    table = np.full((len(names), width), np.nan)
    for i, name in enumerate(names):
        if (inside := mine == name).any():
            table[i] = rates(*(column[inside] for column in columns))
    gaps = np.ptp(table[list(large)], axis=0) if sum(large) > 1 else np.full(width, np.nan)
    return [*table.ravel().tolist(), *gaps.tolist()]


def _by_group(
    given: Vectors, probes: np.ndarray, people: Sequence[str], rates: Callable[..., Sequence[float]],
    metrics: Mapping[str, str], *columns: np.ndarray, **labels: Any,
) -> list[Finding]:  # fmt: skip
    """Rates of each group of probes, and the largest gap over groups of ten probes or more; intervals draw people.

    Args:
        probes: (M,) face of each trial or search. people: its person. columns: (M,) each, for `rates`.
        rates: takes the columns of one group to a number for each of `metrics`, name -> definition.
        labels: section, subset and the like, for every finding.
    """
    found: list[Finding] = []
    for label, of_faces in given.members.items():
        mine = of_faces[probes]
        names, width = ordered(mine), len(metrics)
        large = [len(np.unique(probes[mine == name])) >= MIN_GROUP for name in names]
        counts = [int((mine == name).sum()) for name in names]
        each = partial(_of_groups, names, large, rates, width)
        estimates = bootstrap_together(each, mine, *columns, clusters=people, resamples=100)
        for k, (metric, words) in enumerate(metrics.items()):
            *values, gap = estimates[k::width]
            for value, name, n in zip(values, names, counts, strict=True):
                found.append(Finding(metric=metric, definition=words, estimate=replace(value, n=n),
                                     group=f"{label} {name}", **labels))  # fmt: skip
            if sum(large) > 1:
                gap = replace(gap, n=sum(compress(counts, large)))
                words = f"largest less smallest {metric} over groups of {MIN_GROUP} probes or more; {words}"
                found.append(Finding(metric=metric, definition=words, estimate=gap, group=f"{label}: largest gap",
                                     direction="down", **labels))  # fmt: skip
    return found


def _search(
    given: Vectors, split: Search, section: str, gallery: str, label: str, people: Sequence[str],
    options: RecognitionOptions,
) -> tuple[list[Finding], list[Curve]]:  # fmt: skip
    found: list[Finding] = []
    curves: list[Curve] = []
    who = [people[i] for i in split.probes]
    size = (
        f"{len(split.gallery)} people enrolled with one picture each, {gallery}; intervals draw people; {given.judge}"
    )
    closed = section == CLOSED_SET
    first: dict[str, np.ndarray] = {}
    for row, probes, others in _sides(given, gallery):
        scores = probes[split.probes] @ others[split.gallery].T
        place = ranks(scores, split.mate)
        top = np.nan_to_num(scores, nan=-np.inf).max(1)
        names = ["rank-1", "rank-5"] if closed else [f"DIR at FPIR {f:g}" for f in options.fpir]

        def rates(place: np.ndarray, top: np.ndarray, mate: np.ndarray) -> list[float]:
            if closed:
                return [float((place <= 1).mean()), float((place <= 5).mean())]
            if (mate < 0).all() or (mate >= 0).all():
                return [np.nan] * len(options.fpir)
            return [detection_identification(top, place, mate, f) for f in options.fpir]

        definition = (
            "share of probes whose own person stands at that rank or before; a probe without a face counts as missed"
            if closed
            else "share of enrolled probes that come first, above the score that lets that share of strangers through"
        )
        estimates = bootstrap_together(rates, place, top, split.mate, clusters=who, resamples=100)
        found += [
            Finding(section, label, name, f"{definition}; {size}", estimate, condition=given.condition, row=row,
                    weights=given.weights[row])
            for name, estimate in zip(names, estimates, strict=True)
        ]  # fmt: skip
        first[row] = (place <= 1).astype(float)
        missing = np.isnan(probes[split.probes]).any(1)
        missing |= (split.mate >= 0) & np.isnan(others[split.gallery[np.maximum(split.mate, 0)]]).any(1)
        without = "share of probes without a face there, or on their person's enrolled picture"
        for name, words, lost in (
            ("not decidable", f"{without}, or that the row calls not decidable",
             missing | given.undecided[row][split.probes]),
            ("no face", without, missing),
        ):  # fmt: skip
            share = bootstrap(lost.astype(float), clusters=who)
            found.append(Finding(section, label, name, f"{words}; {size}", share, "down", condition=given.condition,
                                 row=row, weights=given.weights[row]))  # fmt: skip
        if closed:
            found += _by_group(
                given, split.probes, who, lambda hit: [float(hit.mean())], {"rank-1": f"{definition}; {size}"},
                first[row], section=section, subset=label, condition=given.condition, row=row,
                weights=given.weights[row],
            )  # fmt: skip
            depth = min(options.depth, len(split.gallery))
            plot = f"CMC, {label}, {given.condition}"
            curves.append(Curve(plot, "rank", "found", row, np.arange(1, depth + 1), cmc(place, depth)))
    if closed:
        for row in (r for r in given.rows if r not in (ORIGINAL, BICUBIC, NEAREST)):
            found.append(
                closed_finding(first, row, who, metric="share of lost rank-1 closed", section=section, subset=label,
                               condition=given.condition, row=row, weights=given.weights[row])
            )  # fmt: skip
    return found, curves
