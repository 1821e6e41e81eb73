"""The harness on invented faces: a perfect restorer passes, bicubic gains nothing, a refusal earns nothing."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from evaluation import restorer_bars as bars
from evaluation import restoring
from evaluation.faces import EvaluationFace, bicubic, thumbnail
from pipeline.config import ConfigError
from stages.degradation.occluders import MEAN_SHAPE


@dataclass(frozen=True)
class Made:
    image: np.ndarray | None
    landmarks: np.ndarray | None = None
    occlusion: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    occluded_fraction: float | None = None


def invented(count: int, name: str = "utkface", people: int | None = None) -> list[EvaluationFace]:
    """Windows of one picture that stand in for faces."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        y, x = rng.integers(0, 380, 2)
        image = np.ascontiguousarray(astronaut()[y : y + 128, x : x + 128])
        made.append(
            EvaluationFace(
                f"{name}{i}",
                f"p{i % people}" if people else f"{name}{i}",
                name,
                image,
                np.asarray(MEAN_SHAPE, np.float64),
                {},
            )
        )
    return made


def by_metric(findings: list, section: str) -> dict[str, float]:
    return {f.metric: f.estimate.value for f in findings if f.section.startswith(section)}


def test_bicubic_gains_nothing_and_a_refused_face_counts_as_bicubic() -> None:
    faces = invented(4)
    for restore in (lambda images: [Made(bicubic(i)) for i in images], lambda images: [Made(None) for _ in images]):
        rows = bars.Rows(bars.clean_rows(faces, restore, "area", grey=False))
        gains = by_metric(bars.fidelity_findings("utkface", rows, True, 1.0), "Clean")
        assert gains["PSNR gain"] == 0 and gains["SSIM gain"] == 0
    assert gains["refused"] == 1.0


def test_a_perfect_restorer_reaches_every_bar_of_one_set() -> None:
    faces, (degrade, bare) = invented(4), bars.frozen_degradation()
    degraded = {bars.to_uint8(degrade(f).lq).tobytes(): degrade(f) for f in faces}
    truth = {thumbnail(f.image).tobytes(): f.image for f in faces}
    truth |= {bars.to_uint8(bare(f).lq).tobytes(): f.image for f in faces}

    def perfect(images: list[np.ndarray]) -> list[Made]:
        made = []
        for image in images:
            key, points, none = image.tobytes(), np.asarray(MEAN_SHAPE), np.zeros((128, 128), np.float32)
            if key in degraded:
                gt = degraded[key].gt.copy()
                noise = np.random.default_rng(0).integers(0, 20, gt.shape[:2]) * (0.3 + 0.7 * degraded[key].mask)
                gt = np.clip(gt + noise[..., None], 0, 255).astype(np.uint8)
                made.append(Made(gt, points, degraded[key].mask, (noise / 255).astype(np.float32), 0.3))
            else:
                made.append(Made(truth[key], points, none, none, 0.0))
        return made

    pixels: list[np.ndarray] = []
    rows = [
        a | b | c
        for a, b, c in zip(
            bars.clean_rows(faces, perfect, "area", False),
            bars.covered_rows(faces, perfect, degrade, False, pixels),
            bars.degraded_bare_rows(faces, perfect, bare, False),
            strict=True,
        )
    ]
    table = bars.Rows(rows)
    found = bars.fidelity_findings("utkface", table, True, 1.0) + bars.structure_findings("utkface", table)
    missed = [(f.section, f.metric, f.estimate.value) for f in found if f.passed is False]
    assert not missed
    assert {"Landmarks", "Occlusion mask", "Visible pixels", "Uncertainty"} <= {f.section for f in found if f.passed}
    assert bars.pooled_uncertainty(pixels).estimate.value > 0.5


def test_the_benchmark_is_frozen_by_face() -> None:
    degrade, bare = bars.frozen_degradation()
    a, b = invented(2)
    first = degrade(a)
    degrade(b)
    np.testing.assert_array_equal(first.lq, degrade(a).lq)
    assert first.occluder is not None and (first.mask > 0.5).any()
    assert bare(a).occluder is None and not bare(a).mask.any()
    np.testing.assert_array_equal(first.gt, a.image)  # no tone change: the truth is the face itself


def test_the_whole_measurement_writes_grids_and_rows_and_no_number_without_a_count(tmp_path: Path) -> None:
    class Colour:
        name, in_training = "colour", "none"

        def __call__(self, images: list[np.ndarray], landmarks: list[np.ndarray]) -> np.ndarray:
            return np.stack([thumbnail(i).astype(np.float32).ravel() for i in images])

    def restore(images: list[np.ndarray]) -> list[Made]:
        blank = np.zeros((128, 128), np.float32)
        return [Made(bicubic(i), np.asarray(MEAN_SHAPE), blank, blank, float(i.mean() / 255)) for i in images]

    real = bars.RealFaces(
        {"masked": invented(6, "masked")}, {"celeba": invented(6, "celeba")}, invented(4),
        [f.image for f in invented(20)], [255 - f.image for f in invented(20)],
    )  # fmt: skip
    data = bars.Data({"utkface": invented(5), "lfw": invented(60, "lfw", people=20)}, real)
    fidelities: list[float] = []

    def make(fidelity: float) -> bars.Restore:
        fidelities.append(fidelity)
        return restore

    degrade, bare = bars.frozen_degradation()
    found = bars.measure(data, make, 0.5, degrade, bare, [Colour()], tmp_path, limit=5, classifier_steps=5)
    assert fidelities == [1.0, 0.5, 0.0]
    sections = {f.section.split(":")[0] for f in found}
    assert {"Identity", "Really covered faces", "By kind of occluder, all sets", "Uncertainty"} <= sections
    assert all(f.estimate.n > 0 for f in found)
    for name in ("grid_clean.png", "grid_covered.png", "grid_really_covered.png"):
        assert Image.open(tmp_path / name).width == 12 * 128
    lines = [json.loads(line) for line in (tmp_path / "per_face.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and {"id", "set", "clean_psnr", "covered_psnr", "occluder"} <= set(lines[0])


def test_pictures_of_people_never_go_into_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bars.main(["--data", "none", "--out", str(bars.REPOSITORY / "out" / "bars")])
    assert stop.value.code == 2 and "lies in the repository" in capsys.readouterr().err


def test_missing_data_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bars.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "no known set" in capsys.readouterr().err


def test_the_stage_alone_and_the_pipeline_give_the_same_pictures(tiny_chain: Path) -> None:
    faces = invented(3)
    lqs = [thumbnail(faces[0].image), thumbnail(faces[1].image), thumbnail(bars.to_grey(faces[2].image))]
    alone = bars.restore_all(bars.network_restorer(tiny_chain, "cpu", "fp32")(1.0), lqs)
    whole = bars.restore_all(bars.api_restorer(tiny_chain, "cpu", "fp32")(1.0), lqs)
    for a, b in zip(alone, whole, strict=True):
        assert not a.refused and not b.refused
        assert np.abs(a.image.astype(int) - b.image).max() <= 1
        np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)
        np.testing.assert_allclose(a.occlusion, b.occlusion, atol=1e-3)
        assert a.occluded_fraction == pytest.approx(b.occluded_fraction, abs=1e-4)
    assert (alone[2].image[..., 0] == alone[2].image[..., 2]).all()


def test_a_chain_that_does_not_start_with_the_restorer_is_refused(tmp_path: Path) -> None:
    chain = tmp_path / "chain.yaml"
    chain.write_text("version: 1\nname: x\nstages:\n  - stage: resample\n")
    with pytest.raises(ConfigError, match="what is measured here is 'prouigan'"):
        restoring.build_stage(chain)
    with pytest.raises(ConfigError, match="must be 'degrade'"):
        bars.frozen_degradation(chain)
