"""The degradation: exact where it is switched off, repeatable, within its ranges, and honest about what it covered."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from stages.batch import FaceBatch
from stages.degradation import OCCLUDERS, DegradationConfig, Degraded, camera, degrade_face, misframing
from stages.degradation.config import OCCLUDER_WEIGHTS
from stages.degradation.occluders import MEAN_SHAPE, coverage
from stages.degrade import Degrade

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "degrade"


def make_face(seed: int = 0, grey: bool = False) -> np.ndarray:
    """A smooth, skin-coloured stand-in for a face, (128, 128, 3) uint8."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(rng.uniform(-60, 60, (9, 9, 3)).astype(np.float32), (128, 128), interpolation=cv2.INTER_CUBIC)
    face = np.clip(np.array([190, 150, 125]) + blobs, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if grey else face


def make_batch(count: int = 3, size: int = 128, **fields: object) -> FaceBatch:
    faces = np.stack([cv2.resize(make_face(k), (size, size)) for k in range(count)]).astype(np.float32) / 255
    return FaceBatch(
        sources=tuple(f"{k}.png" for k in range(count)),
        image=torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous(),
        observed=torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous(),
        seeds=tuple(range(40, 40 + count)),
        grey=torch.zeros(count, dtype=torch.bool),
        **fields,
    )


def run(config: DegradationConfig, batch: FaceBatch) -> FaceBatch:
    return Degrade(config, torch.device("cpu"), "fp32")(batch)


def check_contract(made: Degraded, size: int) -> None:
    for picture, shape in (
        (made.lq, (size, size, 3)),
        (made.lq_clean, (size, size, 3)),
        (made.mask_lq, (size, size)),
        (made.mask, (128, 128)),
    ):
        assert picture.dtype == np.float32 and picture.shape == shape
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1 + 1e-6
    assert made.covered.shape == made.gt.shape == (128, 128, 3) and made.covered.dtype == made.gt.dtype == np.uint8
    json.dumps(made.record)


@pytest.mark.parametrize("size", [12, 16, 20, 32, 64])
def test_with_everything_off_the_thumbnail_is_the_area_average(size: int) -> None:
    face = make_face()
    made = degrade_face(face, None, np.random.default_rng(0), DegradationConfig.clean(size))
    expected = cv2.resize(face.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) / 255
    assert np.abs(made.lq - expected).max() < 1e-5
    assert (
        np.array_equal(made.lq, made.lq_clean) and np.array_equal(made.gt, face) and np.array_equal(made.covered, face)
    )
    assert made.mask.max() == 0 and made.occluder is None


def test_the_same_seed_gives_the_same_thumbnail_and_another_seed_another() -> None:
    face, config = make_face(), DegradationConfig()
    for seed in range(20):
        a, b = (degrade_face(face, MEAN_SHAPE, np.random.default_rng(seed), config) for _ in range(2))
        assert np.array_equal(a.lq, b.lq) and np.array_equal(a.mask, b.mask) and a.record == b.record
    assert not np.array_equal(a.lq, degrade_face(face, MEAN_SHAPE, np.random.default_rng(99), config).lq)


def test_many_draws_keep_the_contract_and_leave_the_face_alone() -> None:
    face = make_face()
    before, rng, config = face.copy(), np.random.default_rng(1), DegradationConfig()
    made = [degrade_face(face, MEAN_SHAPE, rng, config) for _ in range(800)]
    for item in made[::10]:
        check_contract(item, 16)
    assert np.array_equal(face, before)
    assert abs(np.mean([m.occluder is not None for m in made]) - config.occluder_probability) < 0.06
    records = [m.record for m in made]
    for fault in (
        "jpeg",
        "h264",
        "noise",
        "motion",
        "text",
        "infrared",
        "grey",
        "tone",
        "interlace_shift_lq_px",
        "defocus_sigma_px",
    ):
        assert any(fault in r for r in records), fault
    assert {r["kernel"] for r in records} == {"area", "bicubic", "bilinear", "lanczos", "subsample"}
    assert all(30 <= r["jpeg"]["quality"] <= 95 for r in records if "jpeg" in r)


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_every_kind_covers_a_fair_share_of_the_face_where_its_mask_says(kind: str) -> None:
    rng, config = np.random.default_rng(2), DegradationConfig.clean(occluder=kind)
    shares = []
    for seed in range(12):
        face = make_face(seed)
        made = degrade_face(face, MEAN_SHAPE, rng, config)
        check_contract(made, 16)
        assert made.occluder == kind == made.record["occluders"][0]["kind"]
        shares.append(coverage((made.mask * 255).astype(np.uint8), MEAN_SHAPE))
        far = cv2.dilate(made.mask, np.ones((41, 41))) == 0  # beyond the soft edge and the occluder's shadow
        assert np.abs(made.covered[far].astype(int) - face[far]).max(initial=0) <= 2
        assert np.abs(made.mask_lq - cv2.resize(made.mask, (16, 16), interpolation=cv2.INTER_AREA)).max() < 1e-5
    assert 0.04 < np.mean(shares) < 0.56 and max(shares) < 0.6


def test_the_list_of_kinds_agrees_with_the_weights() -> None:
    assert set(OCCLUDERS) == set(OCCLUDER_WEIGHTS) and len(OCCLUDERS) >= 8


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_a_grey_face_gets_a_grey_occluder(kind: str) -> None:
    made = degrade_face(make_face(grey=True), None, np.random.default_rng(3), DegradationConfig.clean(occluder=kind))
    assert np.ptp(made.covered.astype(int), axis=-1).max() <= 1


def test_masks_follow_the_landmarks() -> None:
    config = DegradationConfig.clean(occluder="surgical_mask")
    shift = np.array([14.0, -10.0], np.float32)
    here, there = (
        degrade_face(make_face(), p, np.random.default_rng(4), config).mask for p in (MEAN_SHAPE, MEAN_SHAPE + shift)
    )
    y, x = np.mgrid[:128, :128]
    moved = [(there * a).sum() / there.sum() - (here * a).sum() / here.sum() for a in (x, y)]
    assert abs(moved[0] - 14) < 4 and moved[1] < -2  # the frame's lower edge cuts the mask: its centre moves less


def test_a_donor_fills_the_mask_and_its_margin_is_cut() -> None:
    donor = np.zeros((168, 168, 3), np.uint8)
    donor[20:148, 20:148] = (10, 250, 10)
    config = DegradationConfig.clean(occluder="surgical_mask", donor_probability=1.0)
    made = degrade_face(make_face(), MEAN_SHAPE, np.random.default_rng(5), config, donor=donor)
    inside = cv2.erode(made.mask, np.ones((9, 9))) > 0.99
    green = made.covered[inside].astype(int)
    assert (green[:, 1] > green[:, 0] + 60).mean() > 0.95 and made.record["occluders"][0]["filled"] == "donor"


@pytest.mark.parametrize("landmarks", [None, np.full((68, 2), np.nan, np.float32)])
def test_missing_landmarks_fall_back_to_the_mean_shape(landmarks: np.ndarray | None) -> None:
    config = DegradationConfig.clean(occluder="scarf")
    a = degrade_face(make_face(), landmarks, np.random.default_rng(6), config)
    b = degrade_face(make_face(), MEAN_SHAPE, np.random.default_rng(6), config)
    assert np.array_equal(a.covered, b.covered) and a.record["landmarks"] == "mean shape"


def test_extreme_landmarks_do_no_harm() -> None:
    rng = np.random.default_rng(7)
    for kind in OCCLUDERS:
        for points in (MEAN_SHAPE * 4 - 200, np.full((68, 2), 64.0), rng.normal(64, 500, (68, 2))):
            check_contract(
                degrade_face(make_face(), points.astype(np.float32), rng, DegradationConfig.clean(occluder=kind)), 16
            )


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a .128, 128, 3. uint8 face"):
        degrade_face(np.zeros((128, 128, 3), np.float32), None, np.random.default_rng(0), DegradationConfig())
    with pytest.raises(ValueError, match="donor"):
        degrade_face(
            make_face(), None, np.random.default_rng(0), DegradationConfig(), donor=np.zeros((64, 64, 3), np.uint8)
        )


def test_a_tone_changes_truth_and_thumbnail_alike() -> None:
    config = DegradationConfig.clean(
        tone_probability=1.0, brightness=(25.0, 25.0), contrast=(1.0, 1.0), gamma=(1.0, 1.0), cast=0.0
    )
    face = make_face()
    made = degrade_face(face, None, np.random.default_rng(8), config)
    assert np.array_equal(made.gt, np.clip(face.astype(int) + 25, 0, 255))
    assert np.abs(camera.downscale(made.gt, 16) / 255 - made.lq).max() < 1e-5


def test_a_grey_face_gets_no_colour_cast() -> None:
    made = degrade_face(
        make_face(grey=True), None, np.random.default_rng(8), DegradationConfig.clean(tone_probability=1.0)
    )
    assert "tone" in made.record and np.ptp(made.gt.astype(int), axis=-1).max() == 0


@pytest.mark.parametrize("look", ["infrared_probability", "grey_probability"])
def test_a_night_camera_sees_grey_and_so_does_its_truth(look: str) -> None:
    made = degrade_face(
        make_face(), None, np.random.default_rng(9), DegradationConfig.clean(**{look: 1.0}, noise_probability=1.0)
    )
    assert np.ptp(made.lq, axis=-1).max() < 1e-5 and np.ptp(made.gt.astype(int), axis=-1).max() == 0


@pytest.mark.parametrize("kernel", ["area", "bicubic", "bilinear", "lanczos", "subsample"])
@pytest.mark.parametrize("sigma", [0.0, 1.7])
def test_kernels_keep_flat_areas_and_do_not_shift(kernel: str, sigma: float) -> None:
    assert np.abs(camera.downscale(np.full((128, 128, 3), 77, np.uint8), 16, kernel, sigma) - 77).max() < 1e-3
    ramp = np.tile(np.arange(128, dtype=np.float32), (128, 1))
    centres = np.arange(16) * 8 + 3.5
    assert np.abs(camera.downscale(ramp, 16, kernel, sigma) - centres)[:, 4:12].max() < 0.05


def test_defocus_equals_opencvs_gaussian() -> None:
    face = make_face().astype(np.float32)
    blurred = cv2.GaussianBlur(face, (25, 25), 1.6, borderType=cv2.BORDER_REFLECT)
    expected = cv2.resize(blurred, (16, 16), interpolation=cv2.INTER_AREA)
    assert np.abs(camera.downscale(face, 16, "area", 1.6) - expected).max() < 0.2


def test_motion_blur_acts_along_its_direction_only() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::8] = 255
    along, across = camera.motion_blur(stripes, 8, 90), camera.motion_blur(stripes, 8, 0)
    assert along[20:100].std() > 0.7 * stripes.std() > 3 * across[20:100].std()


def test_noise_has_the_strength_drawn() -> None:
    flat = np.full((256, 256, 3), 255.0, np.float32)
    noisy = camera.sensor_noise(np.random.default_rng(10), flat, 3.0, 4.0, grey=False)
    assert abs(noisy.std() - 5.0) < 0.1
    dark = camera.sensor_noise(np.random.default_rng(10), flat * 0, 3.0, 4.0, grey=True)
    assert abs(dark.std() - 3.0) < 0.1 and np.ptp(dark, axis=-1).max() == 0


def test_interlace_moves_every_second_row_only() -> None:
    ramp = np.tile(np.arange(16, dtype=np.float32)[None, :, None], (16, 1, 3))
    out = camera.interlace(ramp, 1.5)
    assert np.array_equal(out[::2], ramp[::2])
    assert np.allclose(out[1::2, 4:12], ramp[1::2, 4:12] - 1.5)


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_codecs_lose_little_at_their_best_and_more_at_their_worst(codec: str) -> None:
    image = camera.downscale(make_face(), 64)
    losses = []
    for best in (True, False):
        config = DegradationConfig(jpeg_quality=(95, 95) if best else (30, 30), h264_step=(1, 1) if best else (28, 28))
        coded = camera.encode(np.random.default_rng(11), image, config, codec, {})
        assert coded.shape == image.shape
        losses.append(float(np.sqrt(((coded - image) ** 2).mean())))
    assert losses[0] < 3 and losses[0] < losses[1] < 20


def test_text_is_part_of_the_mask() -> None:
    made = degrade_face(make_face(), None, np.random.default_rng(12), DegradationConfig.clean(text_probability=1.0))
    changed = np.abs(made.covered.astype(int) - make_face()).max(-1) > 12
    assert changed.any() and (made.mask[changed] > 0).all() and made.occluder is None


def test_misframing_stays_within_its_bounds() -> None:
    rng, config = np.random.default_rng(13), DegradationConfig(misframing_probability=1.0)
    for _ in range(300):
        m = misframing(rng, config)
        scale, roll = np.hypot(m[0, 0], m[1, 0]), np.rad2deg(np.arctan2(m[1, 0], m[0, 0]))
        centre = m[:, :2] @ [63.5, 63.5] + m[:, 2] - 63.5
        assert 0.92 <= scale <= 1.08 and abs(roll) <= 8 and np.abs(centre).max() <= 3
    assert np.array_equal(misframing(rng, DegradationConfig.clean()), np.eye(2, 3))


def test_wrong_options_are_refused() -> None:
    for wrong in (
        {"noise": 1}, {"size": 8}, {"coverage": (0.5, 0.1)}, {"jpeg_quality": (0, 50)}, {"occluder": "beard"},
        {"occluder_weights": {"hand": 0.0}}, {"read_noise": (-1.0, 2.0)}, {"occluder_probability": 1.2},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            DegradationConfig.model_validate(wrong)


def test_a_call_is_fast_enough_for_training() -> None:
    face, rng, config = make_face(), np.random.default_rng(14), DegradationConfig()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for _ in range(30):
            degrade_face(face, MEAN_SHAPE, rng, config)
        start = time.thread_time()
        for _ in range(200):
            degrade_face(face, MEAN_SHAPE, rng, config)
        assert (time.thread_time() - start) / 200 < 0.01  # s; 1.3 ms when measured, with room for slow machines
    finally:
        cv2.setNumThreads(threads)


def test_the_stage_writes_a_thumbnail_its_mask_and_a_record() -> None:
    batch = make_batch(4)
    before = batch.image.clone()
    out = run(DegradationConfig(), batch)
    assert (
        out.image.shape == (4, 3, 16, 16)
        and out.image.dtype == torch.float32
        and 0 <= out.image.min() <= out.image.max() <= 1
    )
    assert out.occlusion is not None and out.occlusion.shape == (4, 1, 16, 16)
    assert torch.equal(batch.image, before) and torch.equal(out.observed, batch.observed) and not any(batch.notes)
    assert all("kernel" in json.loads(json.dumps(n))["degradation"] for n in out.notes)


def test_a_face_alone_degrades_as_in_a_batch() -> None:
    batch, config = make_batch(5), DegradationConfig(grey_probability=0.5)
    together = run(config, batch)
    for i in range(5):
        alone = run(config, batch.cut(i, i + 1))
        assert torch.equal(alone.image[0], together.image[i]) and alone.notes[0] == together.notes[i]


def test_grey_faces_and_grey_cameras_leave_exactly_grey_thumbnails() -> None:
    batch = make_batch(4)
    batch = batch.replace(
        image=batch.image.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous(), grey=torch.ones(4, dtype=torch.bool)
    )
    for out in (
        run(DegradationConfig(), batch),
        run(DegradationConfig(grey_probability=1.0, infrared_probability=0.0), make_batch(4)),
    ):
        assert bool(out.grey.all()) and float((out.image.amax(1) - out.image.amin(1)).abs().max()) == 0


def test_landmarks_and_source_matrix_follow_the_picture() -> None:
    points = torch.from_numpy((MEAN_SHAPE + 0.5) * 2 - 0.5)[None].repeat(2, 1, 1)
    to_source = torch.tensor([[[0.5, 0.1, 3.0], [-0.1, 0.5, 7.0]]]).repeat(2, 1, 1)
    batch = make_batch(2, size=256, landmarks=points, to_source=to_source)
    out = run(DegradationConfig.clean(misframing_probability=1.0), batch)
    assert out.landmarks is not None and out.to_source is not None

    def to(matrix: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return p @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]

    assert torch.allclose(to(out.to_source, out.landmarks), to(to_source, points), atol=1e-3)
    assert 0 < float(out.landmarks[:, 27:].min()) < float(out.landmarks[:, 27:].max()) < 16


def test_the_stage_refuses_pictures_that_are_not_square() -> None:
    batch = make_batch(1)
    with pytest.raises(ValueError, match="square canonical face crops, got 96x128"):
        run(DegradationConfig(), batch.replace(image=batch.image[..., :96]))


@pytest.mark.parametrize("name", ["cctv", "clean"])
def test_shipped_configs_hold_valid_options(name: str) -> None:
    document = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    (options,) = document["stages"]
    assert document["version"] == 1 and options.pop("stage") == "degrade"
    config = DegradationConfig.model_validate_json(json.dumps(options), strict=True)
    if name == "clean":
        made = degrade_face(make_face(), None, np.random.default_rng(15), config)
        assert np.array_equal(
            made.lq, degrade_face(make_face(), None, np.random.default_rng(16), DegradationConfig.clean()).lq
        )


def test_the_resolved_options_load_again() -> None:
    config = DegradationConfig(occluder="hand")
    assert DegradationConfig.model_validate_json(json.dumps(config.model_dump(mode="json")), strict=True) == config
