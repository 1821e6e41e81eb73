"""Where deciding ends: identity error by hand-made cases, and thresholds that follow from it."""

from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.faces import EvaluationFace
from evaluation.statistics import Estimate
from evaluation.verdict_thresholds import LIMIT, OPEN, Step, identity_errors, measure_steps, thresholds, to_markdown
from pipeline.restorer import Restorer
from stages.degradation.occluders import MEAN_SHAPE
from tests.pipeline.conftest import RESAMPLE


def unit(rows: Sequence[Sequence[float]]) -> np.ndarray:
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_identity_error_counts_the_other_people_who_are_nearer() -> None:
    originals = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0]])
    restored = unit([[1, 0, 0], [1, 0.1, 0], [1, 1, 0], [1, 0, 0]])
    errors = identity_errors(restored, originals, ["a", "b", "c", "a"])
    np.testing.assert_allclose(errors, [0, 2 / 3, 1, 0])  # the second picture of a is no rival of the first


def step(measure: str, value: float, error: float) -> Step:
    return Step(measure, value, value, Estimate(error, error - 0.05, error + 0.05, 50))


def test_a_threshold_lies_before_the_first_step_from_which_on_nothing_can_be_decided() -> None:
    dark = [step("brightness", v, e) for v, e in ((0.8, 0.05), (0.4, 0.1), (0.1, 0.45), (0.05, 0.5))]
    sure = [step("uncertainty", v, e) for v, e in ((0.3, 0.1), (0.6, 0.2))]
    late = [step("occluded_fraction", v, e) for v, e in ((0.0, 0.4), (0.3, 0.1), (0.6, 0.4))]
    found = thresholds([*dark, *sure, *late])
    assert found == {"brightness": 0.25, "uncertainty": None, "occluded_fraction": 0.45}
    text = to_markdown(dark, found)
    assert text.count("yes") == 2 and "no step is beyond deciding" in text and str(LIMIT) in text


class Centre:
    """A stand-in for an embedder: the face's middle, brought to one brightness."""

    name, in_training = "centre", "none"

    def __call__(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([image[36:96:8, 36:96:8].astype(np.float32).mean(-1).ravel() for image in images])
        rows -= rows.mean(1, keepdims=True)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def test_darkness_ends_what_can_be_told_apart() -> None:
    faces = []
    for i in range(12):
        small = np.random.default_rng(i).integers(110, 150, (16, 16, 3), dtype=np.uint8)
        faces.append(EvaluationFace(str(i), str(i), "made", small.repeat(8, 0).repeat(8, 1), MEAN_SHAPE, {}))
    plain = {**RESAMPLE, "stages": [{"stage": "resample", "size": 128}]}
    restorer = Restorer.from_config(plain, overrides=OPEN, device="cpu")
    steps = measure_steps(faces, restorer, Centre())
    dark = sorted((s for s in steps if s.measure == "brightness"), key=lambda s: s.high)
    assert dark[0].error.value > dark[-1].error.value + 0.1 and dark[-1].error.value < 0.05
    assert {s.measure for s in steps} == {"side_px", "brightness", "occluded_fraction", "uncertainty"}
    assert sum(s.error.n for s in steps if s.measure == "uncertainty") == len(faces)


def test_the_thresholds_in_use_are_all_off_while_measuring() -> None:
    limits = Restorer.from_config(RESAMPLE, overrides=OPEN, device="cpu").config.verdict
    assert (limits.min_brightness, limits.max_uncertainty, limits.max_occluded_fraction) == (0, 1, 1)
    assert limits.min_face_score == 0 and limits.min_side_px == 1
    with pytest.raises(ValueError, match="max_uncertainty"):
        Restorer.from_config(RESAMPLE, overrides=("verdict.max_uncertainty=2",))
