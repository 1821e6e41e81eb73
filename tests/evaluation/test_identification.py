"""Identification: ranks, CMC and DIR by hand and against a brute-force count; galleries hold one picture a person."""

import numpy as np
import pytest

from evaluation.identification import cmc, detection_identification, ranks, search_split

PEOPLE = ["a", "a", "a", "b", "b", "c", "d", "d", "e"]


def test_a_closed_set_enrols_everybody_once_and_searches_the_other_pictures() -> None:
    split = search_split(PEOPLE)
    enrolled = [PEOPLE[i] for i in split.gallery]
    assert sorted(enrolled) == ["a", "b", "c", "d", "e"]
    assert not set(split.probes) & set(split.gallery) and len(split.probes) == 4
    assert all(PEOPLE[probe] == enrolled[mate] for probe, mate in zip(split.probes, split.mate, strict=True))


def test_an_open_set_leaves_people_out_and_searches_them_too() -> None:
    split = search_split(PEOPLE, enrolled=0.5)
    known = {PEOPLE[i] for i in split.gallery}
    strangers = {PEOPLE[p] for p, mate in zip(split.probes, split.mate, strict=True) if mate < 0}
    assert known and strangers and not known & strangers and {"c", "e"} <= strangers
    assert search_split(PEOPLE, enrolled=0.5).probes.tolist() == split.probes.tolist()


@pytest.mark.parametrize("people", [["a", "b", "c"], []])
def test_a_gallery_without_second_pictures_is_refused(people: list[str]) -> None:
    with pytest.raises(ValueError, match="needs a person with two pictures"):
        search_split(people)


def test_everybody_enrolled_is_no_open_set() -> None:
    with pytest.raises(ValueError, match="everybody is enrolled"):
        search_split(["a", "a"], enrolled=0.9)


def test_ranks_by_hand_ties_count_against_the_mate_and_a_lost_face_is_nowhere() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.1], [np.nan] * 3, [0.1, np.nan, 0.0], [0.9, np.nan, 0.2]])
    mate = np.array([0, 0, 1, 1, 2])
    np.testing.assert_array_equal(ranks(scores, mate), [1, 2, np.inf, np.inf, 2])
    assert ranks(scores[:1], np.array([-1])) == np.inf
    np.testing.assert_allclose(cmc(ranks(scores, mate), 3), [0.2, 0.6, 0.6])


def test_the_cmc_equals_a_count_by_sorting() -> None:
    rng = np.random.default_rng(0)
    scores, mate = rng.normal(size=(200, 30)), rng.integers(0, 30, 200)
    order = np.argsort(-scores, axis=1)
    expected = [np.mean([m in row[:k] for m, row in zip(mate, order, strict=True)]) for k in range(1, 11)]
    np.testing.assert_allclose(cmc(ranks(scores, mate), 10), expected)


def test_dir_takes_the_score_that_keeps_strangers_out() -> None:
    mate = np.array([0, 1, 2, -1, -1, -1, -1])
    place = np.array([1.0, 1.0, 2.0, np.inf, np.inf, np.inf, np.inf])
    top = np.array([0.9, 0.5, 0.95, 0.8, 0.4, 0.3, -np.inf])  # the second mated probe lies below the best stranger
    assert detection_identification(top, place, mate, 0.1) == pytest.approx(1 / 3)
    assert detection_identification(top, place, mate, 0.25) == pytest.approx(2 / 3)
    assert detection_identification(top, place, mate, 1.0) == pytest.approx(2 / 3)
