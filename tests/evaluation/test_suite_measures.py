"""The measures of the suite by hand and against scikit-learn; numbers and groups made of their columns."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from evaluation.faces import EvaluationFace, bicubic
from evaluation.suite import measures
from evaluation.suite.config import ParityOptions
from evaluation.suite.measures import FAMILIES, SET_MEASURES, Quantity, Sample
from evaluation.suite.numbers import Measured, groups, leads, numbers, parity
from evaluation.suite.rows import Made, Views, degraded, from_results
from evaluation.suite.run import pooled
from pipeline.restorer import Result
from stages.degradation import DegradationConfig
from stages.degradation.occluders import MEAN_SHAPE
from stages.networks.face_parser import PARSING_CLASSES


def faces(count: int, labels: list[dict[str, object]] | None = None) -> list[EvaluationFace]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)
    given = labels or [{}] * count
    return [
        EvaluationFace(f"f{i}", f"f{i}", "s", images[i], np.asarray(MEAN_SHAPE, float), given[i]) for i in range(count)
    ]


def sample(count: int = 3, **made: np.ndarray) -> Sample:
    views = degraded(faces(count), DegradationConfig.clean(), grey=False)
    none = np.zeros(count, bool)
    return Sample(views, Made(made.pop("images", views.truth), none, none, none, **made))  # type: ignore[arg-type]


def test_the_truth_itself_is_perfect_and_agrees_with_its_thumbnail() -> None:
    columns = measures.fidelity(sample()) | measures.consistency(sample())
    assert (columns["psnr"] == 100).all() and np.allclose(columns["ssim"], 1)
    assert np.isnan(columns["under_psnr"]).all()  # nothing is covered
    assert (columns["lr_consistency_db"] > 50).all()  # a thumbnail is rounded to whole grey levels


def test_consistency_looks_at_uncovered_pixels_alone_and_a_refused_face_has_none() -> None:
    given = sample(2)
    mask_lq = given.views.mask_lq.copy()
    mask_lq[:, :8] = 1
    spoilt = given.made.images.copy()
    spoilt[:, :64] = 255 - spoilt[:, :64]  # only under the cover
    views = Views(given.views.faces, given.views.lq, given.views.truth, given.views.mask, mask_lq)
    none = np.zeros(2, bool)
    made = Made(spoilt, np.array([False, True]), none, none)
    value = measures.consistency(Sample(views, made))["lr_consistency_db"]
    assert value[0] > 50 and np.isnan(value[1])


def test_the_journals_own_figure_stands_beside_the_strict_one() -> None:
    views = degraded(faces(2), DegradationConfig.clean(), grey=False)
    found = Result(source="x", status="ok", image=255 - views.truth[0], lr_consistency_db=55.0)
    made = from_results([found, Result(source="y", status="no_face")], views.lq)
    columns = measures.consistency(Sample(views, Made.from_arrays(made.arrays())))
    np.testing.assert_array_equal(columns["agreement_db"], [55, np.nan])
    assert columns["lr_consistency_db"][0] < 30
    assert "agreement_db" not in measures.consistency(Sample(views, Made.plain(views.truth)))


def test_parsing_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    truth, found = (rng.choice([0, 1, 1, 2, 13], (4, 128, 128)).astype(np.uint8) for _ in range(2))
    found = np.where(rng.random(found.shape) < 0.6, truth, found)
    answers = iter([truth, found])
    monkeypatch.setattr(measures, "parse", lambda images: next(answers))
    columns = measures.parsing(sample(4, images=sample(4).views.truth[:, ::-1]))
    table = {q.name: q for q in FAMILIES["parsing"].quantities}
    made = numbers(Measured("Parsing", "s", "clean", list(table.values()), {"x": columns}, np.arange(4), {"x": ""}))
    value = {f.metric: f.estimate.value for f in made}
    flat = truth.ravel(), found.ravel()
    assert value["mIoU"] == pytest.approx(jaccard_score(*flat, average="macro"))
    scores = f1_score(*flat, average=None, labels=[0, 1, 2, 13])
    for number, score in zip((0, 1, 2, 13), scores, strict=True):
        assert value[f"F1 {PARSING_CLASSES[number].replace('_', ' ')}"] == pytest.approx(score)
    assert value["pixel accuracy"] == pytest.approx((truth == found).mean())


def test_the_parser_is_not_held_against_its_own_answer_on_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "parse", lambda images: np.ones(images.shape[:3], np.uint8))
    labelled = replace((given := sample(2)).views.faces[0], parsing=np.ones((128, 128), np.uint8))
    views = replace(given.views, faces=[labelled, given.views.faces[1]])
    np.testing.assert_array_equal(measures.parsing(Sample(views, given.made))["agreement"], [1, np.nan])
    other = replace(given.made, images=given.views.truth[:, ::-1])
    np.testing.assert_array_equal(measures.parsing(Sample(views, other))["agreement"], [1, 1])


def test_a_row_is_compared_with_the_originals_of_other_faces_alone() -> None:
    (measure,) = (m for m in SET_MEASURES if m.name == "kernel distance")
    cloud = np.random.default_rng(0).normal(size=(30, 8))
    assert measure.distance(cloud, cloud) == pytest.approx(0, abs=1e-9) and measure.version == 2


def test_landmark_auc_is_the_area_under_the_cumulative_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    moves = iter(rng.uniform(0, 12, 40))
    monkeypatch.setattr(measures, "_predictor", lambda: lambda image, points: points + (next(moves), 0))
    columns = measures.alignment(sample(40))
    error, limit = columns["nme"] / 100, measures.NME_LIMIT
    x = np.linspace(0, limit, 20001)
    area = np.trapezoid(np.searchsorted(np.sort(error), x, side="right") / 40, x) / limit
    assert columns["nme_auc"].mean() == pytest.approx(area, abs=1e-3)
    assert columns["nme_failure"].mean() == (error > limit).mean() and 0 < columns["nme_failure"].mean() < 1


def test_a_found_cover_is_scored_in_cells_and_bare_faces_apart() -> None:
    given = sample(2)
    mask_lq = np.zeros((2, 16, 16), np.float32)
    mask_lq[0, :4] = 1
    occlusion = np.zeros((2, 128, 128), np.uint8)
    occlusion[0, :16] = 255  # two of the four rows
    occlusion[1, :, :8] = 255  # one column of sixteen, on a bare face
    views = Views(given.views.faces, given.views.lq, given.views.truth, given.views.mask, mask_lq)
    none = np.zeros(2, bool)
    columns = measures.cover(Sample(views, Made(given.made.images, none, none, none, occlusion=occlusion)))
    np.testing.assert_allclose(columns["iou"], [0.5, np.nan])
    np.testing.assert_allclose(columns["false_cover"], [np.nan, 100 / 16])


def quantity(name: str, columns: dict[str, np.ndarray]) -> float:
    found = FAMILIES["uncertainty"].quantities
    made = numbers(Measured("U", "s", "c", found, {"x": columns}, np.arange(len(columns["rho"])), {"x": ""}))
    return next(f.estimate.value for f in made if f.metric == name)


def with_error(value: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of pictures that differ from a mid-grey truth by `error` grey levels; maps (N, 128, 128)."""
    given = sample(len(value))
    truth = np.full_like(given.views.truth, 100)
    views = Views(given.views.faces, given.views.lq, truth, given.views.mask, given.views.mask_lq)
    none = np.zeros(len(value), bool)
    images = (truth + error[..., None]).astype(np.uint8)
    return measures.uncertainty(Sample(views, Made(images, none, none, none, uncertainty=value.astype(np.uint8))))


def test_uncertainty_that_orders_by_error_avoids_all_avoidable_risk() -> None:
    error = np.random.default_rng(3).integers(0, 100, (2, 128, 128))
    assert quantity("share of the risk avoided", with_error(error * 2, error)) == pytest.approx(1, abs=1e-6)
    assert quantity("rank correlation", with_error(error * 2, error)) == pytest.approx(1)
    assert quantity("rank correlation, pooled", with_error(error * 2, error)) == pytest.approx(1)
    assert quantity("share of the risk avoided", with_error(200 - error * 2, error)) < -0.5
    blind = np.random.default_rng(4).integers(0, 250, error.shape)
    assert quantity("share of the risk avoided", with_error(blind, error)) == pytest.approx(0, abs=0.03)


def test_the_pooled_rank_correlation_sees_differences_between_faces_that_the_mean_of_faces_does_not() -> None:
    rng = np.random.default_rng(6)
    level = np.array([10, 90])[:, None, None]
    error, value = level + rng.integers(0, 10, (2, 128, 128)), level + rng.integers(0, 10, (2, 128, 128))
    columns = with_error(value, error)
    assert columns["drawn"].shape == (2, 2 * measures.DRAWN_PIXELS)
    assert abs(quantity("rank correlation", columns)) < 0.05 and quantity("rank correlation, pooled", columns) > 0.7


def test_a_calibrated_map_has_no_calibration_error() -> None:
    error = np.random.default_rng(5).choice([5, 10, 20, 40], (2, 128, 128))
    share = error / 255
    right = 255 * share / (share + measures.HALF_INVENTED)
    assert quantity("calibration error", with_error(np.round(right), error)) < 0.3
    assert quantity("calibration error", with_error(np.round(right) * 0, error)) == pytest.approx(
        error.mean(), rel=0.02
    )


def test_parts_whose_faces_were_all_refused_leave_gaps_and_sources_pool() -> None:
    quantities = (Quantity("V", ("v",), "d"),)

    def of(values: list[float], **more: list[float]) -> Measured:
        columns = {"faces": np.ones(len(values)), "v": np.array(values)} | {k: np.array(v) for k, v in more.items()}
        people = np.array([f"{values[0]} {i}" for i in range(len(values))])
        return Measured("S", "s", "c", quantities, {"x": columns}, people, {"x": ""})

    whole = pooled([of([1.0, 2.0], map=[5.0, 6.0], drawn=[[7.0, 8.0], [9.0, 10.0]]), of([6.0])])
    np.testing.assert_array_equal(whole.rows["x"]["map"], [5, 6, np.nan])
    np.testing.assert_array_equal(whole.rows["x"]["drawn"], [[7, 8], [9, 10], [np.nan, np.nan]])
    (found,) = numbers(whole)
    assert found.subset == "all sources" and found.estimate.value == 3 and found.estimate.n == 3


def test_a_refused_face_counts_as_bicubic_and_gains_nothing() -> None:
    views = degraded(faces(3), DegradationConfig.clean(), grey=False)
    base = np.stack([bicubic(small) for small in views.lq])
    lost = [Result(source="x", status="no_face", image=None)] * 3
    made = from_results(lost, views.lq)
    assert made.refused.all() and made.occluded_fraction is None
    rows = {row: measures.fidelity(Sample(views, m)) for row, m in (("bicubic", Made.plain(base)), ("restored", made))}
    quantities, cards = FAMILIES["fidelity"].quantities, dict.fromkeys(rows, "")
    found = numbers(Measured("S", "s", "c", quantities, rows, np.arange(3), cards))
    gains = {f.metric: f.estimate.value for f in found if f.row == "restored" and f.metric.endswith("gain")}
    assert gains["PSNR gain"] == 0 and gains["SSIM gain"] == 0


def test_the_share_of_a_loss_that_comes_back() -> None:
    rows = {name: {"v": np.full(4, value)} for name, value in (("original", 0.9), ("bicubic", 0.5), ("restored", 0.8))}
    quantities = [Quantity("V", ("v",), "d", closed=True, ratio=True)]
    found = numbers(Measured("S", "s", "c", quantities, rows, np.arange(4), dict.fromkeys(rows, "")))
    value = {f.metric: f.estimate.value for f in found if f.row == "restored"}
    assert value["V, share of loss closed"] == pytest.approx(0.75) and value["V over bicubic's"] == pytest.approx(1.6)


# --- groups ----------------------------------------------------------------------------------------------------------

LABELS = [{"age": 5 + 10 * (i % 3), "gender": i % 2} for i in range(60)] + [{"age": 93}] * 2


def test_every_face_is_in_a_group_and_none_is_hidden() -> None:
    members = groups(faces(62, LABELS), ParityOptions())
    assert set(members) == {"age", "gender"}
    assert dict(zip(*np.unique(members["age"], return_counts=True), strict=True)) == {
        "0-9": 20,
        "10-19": 20,
        "20-29": 20,
        "70+": 2,
    }
    assert dict(zip(*np.unique(members["gender"], return_counts=True), strict=True)) == {
        "male": 30,
        "female": 30,
        "not given": 2,
    }


def test_parity_gives_every_group_the_largest_gap_and_the_lowest_share() -> None:
    members = groups(faces(62, LABELS), ParityOptions())
    gain = np.select(
        [members["age"] == "0-9", members["age"] == "10-19", members["age"] == "70+"], [1.0, 2.0, 99.0], 3.0
    )
    base = np.zeros(62)
    rows = {"bicubic": {"v": base}, "restored": {"v": base + gain}}
    given = Measured(
        "S", "s", "clean", [Quantity("V", ("v",), "d", gain=True)], rows, np.arange(62), {"bicubic": "", "restored": ""}
    )
    found = {(f.metric, f.group): f.estimate for f in parity(given, members) if f.row == "restored"}
    assert [found["V gain", f"age {g}"].value for g in ("0-9", "10-19", "20-29", "70+")] == [1, 2, 3, 99]
    assert found["V gain", "age 70+"].n == 2  # shown, but it does not decide the gap
    assert found["V gain", "age: largest gap"].value == pytest.approx(2)
    lowest = found["V gain", "age: lowest over mean"]
    assert lowest.value == pytest.approx(1 / gain.mean()) and lowest.n == 62  # of all faces, those of small groups too
    whole = {f.metric: f for f in numbers(given) if f.row == "restored"}
    assert whole["V gain"].estimate.n == 62 and whole["V"].estimate.value == pytest.approx(gain.mean())


def test_pictures_of_one_person_are_drawn_together_in_quantiles_numbers_of_faces_and_gaps() -> None:
    person = np.repeat(np.arange(24), 8)
    values = np.random.default_rng(7).normal(0, 1, 24)[person]
    quantities = [
        Quantity("V", ("v",), "d", gain=True), Quantity("median", ("v",), "d", quantile=0.5),
        Quantity("whole", ("v",), "d", of_faces=lambda table: float(table.mean())),
    ]  # fmt: skip
    rows = {"bicubic": {"v": np.zeros(192)}, "restored": {"v": values + 3}}
    members = {"kind": np.array(["one", "two"])[person % 2]}
    widths = []
    for clusters in (np.arange(192), person):
        given = Measured("S", "s", "clean", quantities, rows, clusters, dict.fromkeys(rows, ""))
        found = [f for f in numbers(given) + parity(given, members) if f.row == "restored"]
        widths.append({(f.metric, f.group): f.estimate.high - f.estimate.low for f in found})
    gaps = {("median", "kind: largest gap"), ("V gain", "kind: lowest over mean")}
    assert {("median", ""), ("whole", ""), *gaps} <= set(widths[0])
    assert all(widths[1][key] > 1.3 * width for key, width in widths[0].items())


def test_a_sheet_of_several_faces_belongs_to_no_group() -> None:
    members = groups(faces(62, LABELS), ParityOptions())
    (niqe,) = FAMILIES["naturalness"].quantities
    rows = {row: {"niqe": np.where(np.arange(62) % 9 == 0, 5.0, np.nan)} for row in ("bicubic", "restored")}
    given = Measured("S", "s", "clean", [niqe], rows, np.arange(62), dict.fromkeys(rows, ""))
    assert parity(given, members) == [] and {f.metric for f in numbers(given)} == {"NIQE", "NIQE gain"}


def against(rivals: tuple[str, ...], ours: np.ndarray) -> Measured:
    rows = {"bicubic": np.full(40, 20.0), "weak": np.full(40, 19.0), "strong": np.full(40, 22.0), "ours": ours}
    quantity = Quantity("PSNR", ("psnr",), "d", "dB", gain=True)
    columns = {row: {"psnr": values} for row, values in rows.items()}
    cards = dict.fromkeys(rows, "") | {"ours": "card"}
    return Measured("Fidelity", "s", "clean", [quantity], columns, np.arange(40), cards, rivals)


def test_the_lead_is_over_the_best_rival_and_bicubic_is_one() -> None:
    ours = 22.5 + np.random.default_rng(4).normal(0, 0.1, 40)
    (found,) = leads(against(("weak", "strong"), ours))
    assert found.row == "ours" and found.metric == "PSNR lead" and "(strong)" in found.definition
    assert found.estimate.value == pytest.approx(ours.mean() - 22)
    (found,) = leads(against(("weak",), ours))
    assert found.estimate.value == pytest.approx(ours.mean() - 20) and "(bicubic)" in found.definition
    assert leads(against((), ours)) == []


def test_a_lead_that_may_be_chance_is_not_sure() -> None:
    ours = 22.05 + np.random.default_rng(5).normal(0, 1, 40)
    ours += 22.05 - ours.mean()
    (found,) = leads(against(("strong",), ours))
    assert replace(found, bar=0.0).passed and not replace(found, bar=0.0, surely=True).passed
    lower = replace(found, bar=0.1, direction="down")
    assert lower.passed and not replace(lower, surely=True).passed
