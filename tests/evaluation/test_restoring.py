"""The frozen benchmark, and the restorer as a bare stage: the same pictures as the pipeline makes."""

from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from evaluation.faces import EvaluationFace, as_rgb, thumbnail, to_grey
from evaluation.restoring import BENCHMARK, build_stage, face_batch
from evaluation.suite.rows import BARE, chain_row, degraded
from pipeline.config import ConfigError
from stages.degradation import DegradationConfig
from stages.degradation.occluders import MEAN_SHAPE


def windows(count: int) -> list[EvaluationFace]:
    """Windows of one picture that stand in for faces."""
    rng, picture = np.random.default_rng(0), astronaut()
    corners = [rng.integers(0, 380, 2) for _ in range(count)]
    images = [np.ascontiguousarray(picture[y : y + 128, x : x + 128]) for y, x in corners]
    points = np.asarray(MEAN_SHAPE, np.float64)
    return [EvaluationFace(f"f{i}", f"f{i}", "s", image, points, {}) for i, image in enumerate(images)]


def test_the_benchmark_is_frozen_by_face() -> None:
    a, b = windows(2)
    config = DegradationConfig.clean(**BENCHMARK)
    both, alone = degraded([a, b], config, grey=False), degraded([b], config, grey=False)
    np.testing.assert_array_equal(both.lq[1], alone.lq[0])
    assert BARE not in both.covers and (both.mask > 0.5).any((1, 2)).all()
    np.testing.assert_array_equal(both.truth[0], a.image)  # no tone change: the truth is the face itself


def test_the_stage_alone_and_the_pipeline_give_the_same_pictures(tiny_chain: Path) -> None:
    images = [thumbnail(face.image) for face in windows(3)]
    images[2] = as_rgb(to_grey(images[2]))
    stage, device = build_stage(tiny_chain, "cpu", "fp32", fidelity=1.0)
    alone = stage(face_batch(images, device))
    whole = chain_row("restored at 1", tiny_chain, 1.0, "cpu", "fp32").make(np.stack(images))
    assert not whole.refused.any()
    picture = alone.image.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(picture - whole.images).max() <= 1
    np.testing.assert_allclose(alone.landmarks, whole.landmarks, atol=1e-3)
    np.testing.assert_allclose(alone.occlusion[:, 0], whole.occlusion / 255, atol=1 / 255)
    np.testing.assert_allclose(alone.occluded_fraction, whole.occluded_fraction, atol=1e-4)
    assert (whole.images[2, ..., 0] == whole.images[2, ..., 2]).all()


def test_a_chain_that_does_not_start_with_the_restorer_is_refused(tmp_path: Path) -> None:
    chain = tmp_path / "chain.yaml"
    chain.write_text("version: 1\nname: x\nstages:\n  - stage: resample\n")
    with pytest.raises(ConfigError, match="what is measured here is 'prouigan'"):
        build_stage(chain)
