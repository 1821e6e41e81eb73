"""Verification against scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation import recognition
from evaluation.recognition import Pairs


def trials(seed: int = 0, count: int = 400, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    return np.round(rng.normal(0, 1, count) + shift * same, 1), same  # rounding makes ties


def test_roc_passes_through_every_point_of_scikit_learns() -> None:
    scores, same = trials()
    far, tar, _ = recognition.roc(scores, same)
    expected_far, expected_tar, _ = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(far, expected_far)
    np.testing.assert_allclose(tar, expected_tar)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-2, 2))
def test_auc_equals_scikit_learn(seed: int, shift: float) -> None:
    scores, same = trials(seed, 60, shift)
    if same.all() or not same.any():
        return
    assert recognition.auc(scores, same) == pytest.approx(roc_auc_score(same, scores), abs=1e-12)


def test_perfect_scores_have_no_error_and_useless_ones_half() -> None:
    same = np.array([True, True, False, False])
    assert recognition.auc(np.array([4, 3, 2, 1.0]), same) == 1.0
    assert recognition.equal_error_rate(np.array([4, 3, 2, 1.0]), same) == 0.0
    assert recognition.auc(np.ones(4), same) == 0.5
    assert recognition.equal_error_rate(np.ones(4), same) == pytest.approx(0.5)


def test_equal_error_rate_of_a_hand_made_case() -> None:
    # One genuine of four below one impostor of four: at the threshold between, both errors are a quarter.
    same = np.array([True] * 4 + [False] * 4)
    assert recognition.equal_error_rate(np.array([9, 8, 7, 3, 5, 2, 1, 0.0]), same) == pytest.approx(0.25)


def test_tar_at_far_takes_no_more_impostors_than_allowed() -> None:
    same = np.array([True] * 4 + [False] * 10)
    scores = np.array([9, 8, 5, 4.5, 7, *np.zeros(9)])  # one impostor above two genuine trials
    assert recognition.tar_at_far(scores, same, 0.05) == 0.5
    assert recognition.tar_at_far(scores, same, 0.10) == 1.0


def test_fold_decisions_choose_the_threshold_on_the_other_folds() -> None:
    same = np.tile([True, False], 20)
    fold = np.repeat(np.arange(10), 4)
    scores = np.where(same, 0.8, 0.2)
    assert recognition.fold_decisions(scores, same, fold).all()
    scores[fold == 3] += 10  # that fold alone lies elsewhere: its impostors pass, every other fold is untouched
    right = recognition.fold_decisions(scores, same, fold)
    assert right[fold != 3].all()
    np.testing.assert_array_equal(right[fold == 3], same[fold == 3])


def test_the_best_threshold_may_be_to_accept_nothing() -> None:
    scores, same = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, False, False])
    assert not (scores >= recognition.best_threshold(scores, same)).any()


def test_one_kind_of_trial_is_refused() -> None:
    with pytest.raises(ValueError, match="both genuine and impostor"):
        recognition.roc(np.ones(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="both classes"):
        recognition.auc(np.ones(3), np.zeros(3, bool))


def pairs(people: list[str]) -> Pairs:
    return recognition.verification_pairs(people, probes_per_person=3, galleries_per_probe=2)


def test_pairs_are_seeded_balanced_and_cut_no_person() -> None:
    people = [f"p{i}" for i in range(40) for _ in range(1 + i % 4)]
    made, again = pairs(people), pairs(people)
    names = np.array(people)
    np.testing.assert_array_equal(made.probe, again.probe)
    np.testing.assert_array_equal(made.gallery, again.gallery)
    assert made.same.sum() * 2 == len(made)
    np.testing.assert_array_equal(names[made.probe] == names[made.gallery], made.same)
    assert (made.probe != made.gallery).all()
    folds: dict[str, set[int]] = {}
    for side in (made.probe, made.gallery):
        for index, fold in zip(side, made.fold, strict=True):
            folds.setdefault(names[index], set()).add(int(fold))
    assert all(len(f) == 1 for f in folds.values())
    _, probes = np.unique(names[np.unique(made.probe)], return_counts=True)
    assert probes.max() <= 3


def test_too_few_people_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 10 people with two faces or more"):
        pairs(["a", "a", "b", "b", "c"])


def test_share_closed_of_known_accuracies() -> None:
    assert recognition.share_closed(0.97, 0.79, 0.88) == pytest.approx(0.5)
    assert recognition.share_closed(0.97, 0.79, 0.70) < 0
    assert np.isnan(recognition.share_closed(0.9, 0.9, 0.9))
