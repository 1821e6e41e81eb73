"""Recognition by hand-made vectors: a perfect row closes everything, lost faces are counted, gaps are named."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.faces import EvaluationFace
from evaluation.recognition import Pairs, verification_findings, verification_pairs
from evaluation.suite.config import EvaluationError, RecognitionOptions
from evaluation.suite.recognition import Vectors, recognition, same_photograph_pairs
from evaluation.suite.sources import Loaded

BLANK = np.zeros((128, 128, 3), np.uint8)


def source(people: list[str], lost: tuple[int, int] = (0, 0), pairs: Pairs | None = None) -> Loaded:
    faces = [EvaluationFace(f"{p}{i}", p, "s", BLANK, None, {}) for i, p in enumerate(people)]
    return Loaded("set", False, faces, True, pairs, lost)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors(
    people: list[str], noise: dict[str, float], lost: dict[str, list[int]] | None = None
) -> dict[str, np.ndarray]:
    """Row -> vectors around a direction for each person; `lost` faces are NaN."""
    rng = np.random.default_rng(0)
    names = sorted(set(people))
    own = {p: rng.normal(size=16) for p in names}
    made = {}
    for row, amount in noise.items():
        made[row] = unit(np.array([own[p] for p in people]) + amount * rng.normal(size=(len(people), 16)))
        made[row][(lost or {}).get(row, [])] = np.nan
    return made


PEOPLE = [f"p{i:02d}" for i in range(30) for _ in range(4)]
NOISE = {
    "original": 0.1, "nearest": 3.0, "bicubic": 3.0, "restored at 1": 0.2, "restored at default": 0.8,
    "restored at 0": 6.0,
}  # fmt: skip


def measured(
    rows: dict[str, np.ndarray], undecided: dict[str, np.ndarray] | None = None,
    options: RecognitionOptions | None = None,
    given: Loaded | None = None,
) -> tuple[dict[tuple[str, str, str, str], object], dict[str, str], list]:  # fmt: skip
    given = given or source(PEOPLE)
    never = {row: np.zeros(len(given.faces), bool) for row in rows}
    why_not: dict[str, str] = {}
    judged = Vectors(
        given, "clean", "judge (part in training: none)", rows, never | (undecided or {}), dict.fromkeys(rows, "")
    )
    found, curves = recognition(judged, options or RecognitionOptions(), 0, why_not)
    table = {
        (f.section, "original" if "original" in f.subset else "degraded", f.row, f.metric): f.estimate for f in found
    }
    return table, why_not, curves


def test_a_perfect_row_closes_what_was_lost_and_a_bad_one_makes_it_worse() -> None:
    table, why_not, curves = measured(vectors(PEOPLE, NOISE))
    assert not why_not
    value = {key: e.value for key, e in table.items()}
    assert (
        value["Verification", "original", "original", "accuracy"]
        > 0.97
        > 0.8
        > value["Verification", "original", "bicubic", "accuracy"]
    )
    assert value["Verification", "original", "restored at 1", "share of lost accuracy closed"] > 0.9
    assert value["Verification", "original", "restored at 0", "share of lost accuracy closed"] < 0
    lead = value["Verification", "original", "restored at default", "lead of the default"]
    accuracy = {row: value["Verification", "original", row, "accuracy"] for row in NOISE}
    assert lead == pytest.approx(accuracy["restored at default"] - accuracy["restored at 1"]) and lead < 0
    assert {f"TAR at FAR 1e-{i}" for i in (1, 2, 3)} <= {key[3] for key in table}
    closed, opened = "Closed-set identification", "Open-set identification"
    assert value[closed, "original", "original", "rank-1"] > 0.97
    assert value[closed, "original", "bicubic", "rank-5"] >= value[closed, "original", "bicubic", "rank-1"]
    assert value[closed, "original", "restored at 1", "share of lost rank-1 closed"] > 0.9
    assert (
        value[opened, "original", "restored at 1", "DIR at FPIR 0.1"]
        > value[opened, "original", "bicubic", "DIR at FPIR 0.1"]
    )
    assert {c.plot.split(",")[0] for c in curves} == {"ROC", "CMC"}
    assert all(key[3] for key in table if key[1] == "degraded")
    assert (
        value["Verification", "degraded", "bicubic", "accuracy"]
        < value["Verification", "original", "bicubic", "accuracy"] + 0.05
    )


def test_faces_that_are_lost_are_counted_and_never_accepted() -> None:
    rows = vectors(PEOPLE, NOISE, {"restored at 1": list(range(0, 120, 2))})
    table, _, _ = measured(rows)
    lost = table["Verification", "original", "restored at 1", "no face"]
    assert lost.value == pytest.approx(0.5, abs=0.1)
    assert table["Verification", "original", "original", "no face"].value == 0
    assert table["Verification", "original", "restored at 1", "accuracy"].value < 0.6
    assert table["Verification", "original", "restored at 1", "accuracy where decidable"].value > 0.95
    assert table["Verification", "original", "restored at 1", "TAR at FAR 1e-1"].value < 0.6
    assert table["Closed-set identification", "original", "restored at 1", "rank-5"].value < 0.7
    for section in ("Closed-set identification", "Open-set identification"):
        assert table[section, "original", "restored at 1", "no face"].value == pytest.approx(0.5, abs=0.1)
        assert table[section, "original", "original", "no face"].value == 0
        own = table[section, "degraded", "restored at 1", "no face"]  # the enrolled picture may be lost as well
        assert own.value > table[section, "original", "restored at 1", "no face"].value


def test_the_restorers_own_verdict_is_a_third_answer_with_its_rate() -> None:
    doubt = np.zeros(120, bool)
    doubt[:30] = True
    table, _, _ = measured(vectors(PEOPLE, NOISE), {"restored at 0": doubt})
    assert table["Verification", "original", "restored at 0", "not decidable"].value == pytest.approx(0.25, abs=0.08)
    assert table["Verification", "original", "restored at 0", "no face"].value == 0
    closed = "Closed-set identification"
    assert table[closed, "original", "restored at 0", "not decidable"].value == pytest.approx(0.25, abs=0.05)
    assert table[closed, "original", "restored at 0", "no face"].value == 0
    whole = table["Verification", "original", "restored at 0", "accuracy"]
    assert (
        whole.n == table["Verification", "original", "bicubic", "accuracy"].n
    )  # nobody leaves the comparison by doubting


def test_one_picture_a_person_is_said_and_the_same_photograph_may_stand_in() -> None:
    people = [f"p{i}" for i in range(40)]
    rows = vectors(people, {"original": 0.0, "bicubic": 2.0, "restored at 1": 0.2})
    table, why_not, _ = measured(rows, given=source(people))
    assert not table and "needs 10 people with two faces" in why_not["Verification on set"]
    assert "have one each" in why_not["Closed-set identification on set"]
    table, why_not, _ = measured(rows, options=RecognitionOptions(same_photograph=True), given=source(people))
    assert {key[0] for key in table} == {"Verification"} and {key[1] for key in table} == {"degraded"}
    assert table["Verification", "degraded", "original", "accuracy"].value == 1


def test_references_are_compared_with_as_originals_and_never_searched_for() -> None:
    rows, whole = vectors(PEOPLE, NOISE), source(PEOPLE)
    pairs = verification_pairs(PEOPLE, 1, 2)
    probes = np.unique(pairs.probe)
    order = np.append(probes, np.setdiff1d(np.arange(len(PEOPLE)), probes))
    place = np.argsort(order)
    moved = Pairs(place[pairs.probe], place[pairs.gallery], pairs.same, pairs.fold)
    chosen = [whole.faces[i] for i in order]
    partly = Loaded("set", False, chosen[: len(probes)], True, moved, references=chosen[len(probes) :])
    mixed = {row: v[order].copy() for row, v in rows.items()}
    for row in (r for r in mixed if r != "original"):
        mixed[row][len(probes) :] = np.nan
    table, why_not, _ = measured(mixed, given=partly)
    original = RecognitionOptions(galleries=("original",))
    expected, _, _ = measured(rows, given=source(PEOPLE, pairs=pairs), options=original)
    assert {key[:2] for key in table} == {("Verification", "original")}
    assert table == {key: e for key, e in expected.items() if key[0] == "Verification"}
    assert "only the probes" in why_not["Closed-set identification on set"]


def test_groups_have_their_own_figures_and_small_ones_do_not_decide_the_gap() -> None:
    rows = vectors(PEOPLE, {"original": 0.1, "bicubic": 3.0, "restored at 1": 0.1})
    names = np.repeat(["able", "weak", "few"], [60, 52, 8])  # people of four pictures each
    rows["restored at 1"][60:112] = rows["bicubic"][60:112]
    judged = Vectors(
        source(PEOPLE), "clean", "judge", rows, {row: np.zeros(120, bool) for row in rows}, dict.fromkeys(rows, ""),
        {"kind": names},
    )  # fmt: skip
    found, _ = recognition(judged, RecognitionOptions(galleries=("original",)), 0, {})
    table = {(f.section, f.metric, f.group): f for f in found if f.row == "restored at 1"}
    for section, metric in (
        ("Verification", "accuracy"), ("Verification", "AUC"), ("Closed-set identification", "rank-1"),
    ):  # fmt: skip
        each = {g: table[section, metric, f"kind {g}"].estimate for g in ("able", "weak", "few")}
        whole, gap = table[section, metric, ""].estimate, table[section, metric, "kind: largest gap"]
        assert each["able"].value > 0.95 > 0.9 > each["weak"].value and each["able"].low <= each["able"].value
        assert sum(e.n for e in each.values()) == whole.n and gap.estimate.n == each["able"].n + each["weak"].n
        assert gap.estimate.value == pytest.approx(each["able"].value - each["weak"].value) and gap.direction == "down"
    mean = sum(table["Verification", "accuracy", f"kind {g}"].estimate.value * (names == g).sum() for g in set(names))
    assert mean / 120 == pytest.approx(table["Verification", "accuracy", ""].estimate.value, abs=0.02)


def test_folds_that_leave_one_kind_of_trial_are_an_error_that_says_so() -> None:
    people = [f"p{i}" for i in range(8)]
    pairs = Pairs(np.arange(4), np.arange(4, 8), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    message = "Verification on set.*no threshold can be chosen for fold 0: the others hold 0 genuine and 2 impostor"
    with pytest.raises(EvaluationError, match=message):
        measured(vectors(people, {"original": 0.1, "bicubic": 3.0}), given=source(people, pairs=pairs))


def test_same_photograph_trials_never_call_another_one_the_same() -> None:
    pairs = same_photograph_pairs([f"p{i}" for i in range(20)], 5, 0)
    assert ((pairs.probe == pairs.gallery) == pairs.same).all() and pairs.same.sum() == 20
    assert set(pairs.fold) == set(range(5))


def test_same_photograph_impostors_are_other_people_where_people_are_known() -> None:
    people = np.array(["a"] * 12 + ["b", "c"])
    pairs = same_photograph_pairs(people.tolist(), 2, 0)
    assert (people[pairs.probe] != people[pairs.gallery])[~pairs.same].all() and (~pairs.same).sum() == 14
    with pytest.raises(ValueError, match="two people or more"):
        same_photograph_pairs(["a"] * 12, 2, 0)


def test_the_numbers_equal_scikit_learn_and_lost_trials_count_as_wrong() -> None:
    rng = np.random.default_rng(1)
    same = rng.random(400) < 0.5
    scores = rng.normal(size=400) + same
    pairs = Pairs(np.arange(400), np.arange(400), same, np.arange(400) % 10)
    found, right = verification_findings(scores, pairs, [str(i) for i in range(400)], "", section="s", subset="x")
    value = {f.metric: f.estimate.value for f in found}
    assert value["AUC"] == pytest.approx(roc_auc_score(same, scores)) and value["accuracy"] == right.mean()
    lost, less = verification_findings(
        scores, pairs, [str(i) for i in range(400)], "", lost=(50, 50), section="s", subset="x"
    )
    after = {f.metric: f.estimate.value for f in lost}
    assert len(less) == 500 and after["accuracy"] == pytest.approx(0.8 * value["accuracy"])
    assert after["no face"] == pytest.approx(0.2) and after["accuracy where decidable"] == value["accuracy"]
