"""The training scripts of the upscaler and the editor on faces made on the spot: they run, learn and resume."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
from stages.coogan import edit_region
from stages.degradation.occluders import MEAN_SHAPE
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.networks.upscaler import Upscaler
from stages.weights import WEIGHTS_ENV, save_weights
from tests.tiny import card_of
from tests.training import hr_data
from training import train_coogan, train_upscale
from training.config import TrainingError, load_training
from training.edit_faces import warped
from training.edit_samples import laid_on, region_of
from training.prototypes import Glasses, draw_glasses, fit_prototype, moved, prototype_edit, relit, spline_map
from training.train_coogan import CooganTask, CooganTraining
from training.train_upscale import UpscaleTask, UpscaleTraining

LOOP: dict[str, Any] = {
    "run": "run", "steps": 6, "batch_size": 4, "lr": 1e-3, "warmup": 1, "workers": 0, "grid_steps": 1000,
    "log_steps": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def written(folder: Path, options: dict[str, Any]) -> Path:
    path = folder / f"{options['task']}.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture
def upscale_config(tmp_path: Path) -> Path:
    hr_data.write_omi(tmp_path / "omi.parquet", 4, side=480, scale=3.2)
    return written(
        tmp_path,
        {
            "task": "upscale",
            "faces": {"pack": "pack", "sets": [{"data": "omi.parquet", "side": 384}], "quality": 95},
            "network": {"widths": [16, 16, 16], "blocks": [2, 1, 1], "fine_width": 8, "detail_blocks": 1},
            "patch": 32,
            "validation_faces": 1,
            "loop": LOOP,
        },
    )


@pytest.fixture
def coogan_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hr_data.write_omi(tmp_path / "omi.parquet", 4)
    hr_data.write_pairs(tmp_path / "omi_pairs.parquet")
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    torch.manual_seed(0)
    save_weights("face_parser", FaceParser(8, 1), card_of("face_parser", {"width": 8, "depth": 1}))
    return written(
        tmp_path,
        {
            "task": "coogan",
            "faces": {
                "pack": "pack", "margin": 0.08, "quality": 95,
                "sets": [{"data": "omi.parquet", "side": 240}, {"data": "omi_pairs.parquet", "side": 240}],
            },
            "network": {"attributes": ["smiling", "age", "masculine", "eyeglasses", "hair_blond"], "width": 8,
                        "local_width": 8},
            "pair_share": 0.3,
            "still_share": 0.15,
            "critic_from": 1,
            "critic_width": 8,
            "loop": LOOP | {"batch_size": 3, "steps": 3},
        },
    )  # fmt: skip


def task_of(path: Path) -> UpscaleTask:
    config, _ = load_training(UpscaleTraining, path)
    return UpscaleTask(config)


def test_a_small_face_is_the_average_of_its_truth(upscale_config: Path) -> None:
    task = task_of(upscale_config)
    for index in range(12):
        made = task.sample(index)
        scale = made["gt"].shape[-1] // 32
        assert made["lq"].shape == (3, 32, 32) and made["gt"].shape == (3, 32 * scale, 32 * scale)
        assert scale == task.sample(index // 4 * 4)["gt"].shape[-1] // 32  # one scale a batch
        mean = made["gt"].reshape(3, 32, scale, 32, scale).mean((2, 4)) / 255
        assert np.abs(mean - made["lq"]).mean() < 0.03
    assert np.array_equal(task.sample(5)["gt"], task.sample(5)["gt"])


def test_both_phases_of_the_upscaler_run_learn_and_resume(upscale_config: Path) -> None:
    network = train_upscale.main(upscale_config)
    assert isinstance(network, Upscaler)
    log = [json.loads(line) for line in (upscale_config.parent / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["pixel"] for entry in log if "pixel" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all()
    options = yaml.safe_load(upscale_config.read_text())
    detail = options | {"phase": "detail", "start_run": "run", "loop": LOOP | {"run": "detail", "steps": 2}}
    path = upscale_config.with_name("detail.yaml")
    path.write_text(yaml.safe_dump(detail))
    sharper = train_upscale.main(path)
    before, after = network.state_dict(), sharper.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(n.startswith(("seen.", "detail_blocks.", "detail.")) for n in changed)
    train_upscale.main(path, resume=True)


def test_the_trunk_learns(upscale_config: Path) -> None:
    options = yaml.safe_load(upscale_config.read_text())
    options["loop"] |= {"steps": 40, "lr": 4e-3, "log_steps": 10}
    options |= {"clean_share": 1.0, "x4_share": 1.0}
    upscale_config.write_text(yaml.safe_dump(options))
    train_upscale.main(upscale_config)
    log = [json.loads(line) for line in (upscale_config.parent / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["pixel"] for entry in log if "pixel" in entry]
    assert losses[-1] < losses[0]


def test_the_detail_phase_asks_for_a_trunk(upscale_config: Path) -> None:
    options = yaml.safe_load(upscale_config.read_text()) | {"phase": "detail"}
    upscale_config.write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match="finished trunk"):
        train_upscale.main(upscale_config)


def local_config(path: Path) -> Path:
    options = yaml.safe_load(path.read_text()) | {"phase": "local", "start_run": "run"}
    options["loop"] |= {"run": "local"}
    made = path.with_name("local.yaml")
    made.write_text(yaml.safe_dump(options))
    return made


def moved_parts(before: CooganNet, after: CooganNet) -> set[str]:
    there = before.state_dict()
    return {n.split(".")[0] for n, p in after.state_dict().items() if not torch.equal(p, there[n])}


def test_both_paths_of_the_editor_train_one_after_the_other(coogan_config: Path) -> None:
    whole = train_coogan.main(coogan_config)
    assert isinstance(whole, CooganNet)
    log = [json.loads(line) for line in (coogan_config.parent / "run" / "log.jsonl").read_text().splitlines()]
    parts = next(entry for entry in log if "paired" in entry)
    for name in ("reconstruction", "paired", "read", "matching", "adversarial", "critic", "critic_read", "source"):
        assert np.isfinite(parts[name])
    train_coogan.main(coogan_config, resume=True)
    local = train_coogan.main(local_config(coogan_config))
    assert isinstance(local, CooganNet)
    assert moved_parts(whole, local) == {"local"}  # the global path is frozen
    log = [json.loads(line) for line in (coogan_config.parent / "local" / "log.jsonl").read_text().splitlines()]
    parts = next(entry for entry in log if "detail" in entry)
    for name in ("reconstruction", "consistency", "overlap", "detail", "adversarial", "critic"):
        assert np.isfinite(parts[name])


def test_the_global_path_learns_pairs(coogan_config: Path) -> None:
    options = yaml.safe_load(coogan_config.read_text())
    options["loop"] |= {"steps": 24, "log_steps": 8, "batch_size": 6, "lr": 3e-3}
    options |= {"critic_from": 1000, "pair_share": 1.0}
    coogan_config.write_text(yaml.safe_dump(options))
    train_coogan.main(coogan_config)
    log = [json.loads(line) for line in (coogan_config.parent / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["paired"] for entry in log if "paired" in entry]
    assert 0 < losses[-1] < losses[0]


def test_the_local_path_asks_for_a_global_one(coogan_config: Path) -> None:
    options = yaml.safe_load(coogan_config.read_text()) | {"phase": "local"}
    coogan_config.write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match="finished global path"):
        train_coogan.main(coogan_config)


def test_an_editor_goes_on_from_a_card_to_one_attribute_more(coogan_config: Path) -> None:
    options = yaml.safe_load(coogan_config.read_text())
    known = options["network"]["attributes"]
    torch.manual_seed(5)
    trained = CooganNet(**options["network"])
    save_weights("taught", trained, card_of("coogan", options["network"]), torch.float32)
    options |= {"start": "taught", "network": options["network"] | {"attributes": ["beard", *known]}}
    coogan_config.write_text(yaml.safe_dump(options))
    grown = CooganTask(load_training(CooganTraining, coogan_config)[0]).net
    face = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before = trained.source(face)
        torch.testing.assert_close(grown.source(face)[:, 1:], before)
    coogan_config.write_text(yaml.safe_dump(options | {"start": "face_parser"}))
    with pytest.raises(TrainingError, match="face_parser holds a FaceParser; a CooganNet is needed"):
        CooganTask(load_training(CooganTraining, coogan_config)[0])
    coogan_config.write_text(yaml.safe_dump(options | {"start_run": "run"}))
    with pytest.raises(ValueError, match="start and start_run"):
        train_coogan.main(coogan_config)


def test_samples_of_the_editor_ask_for_what_they_can_judge(coogan_config: Path) -> None:
    config, _ = load_training(CooganTraining, coogan_config)
    task = CooganTask(config)
    task.labels[:, task.names.index("eyeglasses")] = -1.0
    kinds = {"edit": 0, "backwards": 0, "still": 0, "free": 0}
    for index in range(140):
        made = task.sample(index)
        assert made["face"].shape == made["goal"].shape == (3, 128, 128) and made["region"].shape == (1, 128, 128)
        asked = made["wanted"] != 0
        assert np.array_equal(asked & np.isfinite(made["target"]), asked)
        reached = made["labels"] + made["wanted"]
        assert np.allclose(reached[asked], made["target"][asked], atol=1e-5)
        if not made["answered"]:
            kinds["free"] += 1
            assert asked.any()
        elif not asked.any():
            kinds["still"] += 1
            assert np.array_equal(made["goal"], made["face"]) and (made["region"] == 255).all()
        else:
            kinds["backwards" if made["backwards"] else "edit"] += 1
            assert not np.array_equal(made["goal"], made["face"])
    assert all(count > 2 for count in kinds.values()), kinds
    for name, array in task.sample(5).items():
        assert np.array_equal(array, task.sample(5)[name], equal_nan=array.dtype.kind == "f")


def test_a_patch_shows_the_place_it_is_said_to_show(coogan_config: Path) -> None:
    """The strip averaged back to the global scale is the face there, before the edit and after."""
    train_coogan.main(coogan_config)
    config, _ = load_training(CooganTraining, local_config(coogan_config))
    task = CooganTask(config)
    task.labels[:, task.names.index("eyeglasses")] = -1.0
    checked = 0
    for index in range(40):
        made = task.sample(index)
        assert made["strip"].shape == made["goal_strip"].shape == (3, 128, 192)
        place = made["place"].astype(np.float64)
        if not 1.1 < 1 / place[0, 0] < 1.9:
            continue
        inside = np.zeros((128, 128), bool)
        (x0, y0), (x1, y1) = place[:, 2], place @ np.array([191.0, 127.0, 1.0])
        inside[max(0, int(y0) + 4) : int(y1) - 4, max(0, int(x0) + 4) : int(x1) - 4] = True
        for small, large in (("face", "strip"), ("goal", "goal_strip")):
            back = warped(made[large].transpose(1, 2, 0), place, (128, 128))
            face = made[small].transpose(1, 2, 0)
            assert np.abs(back.astype(float) - face)[inside].mean() < 4, (index, small)
        checked += 1
    assert checked > 5


MEAN = np.asarray(MEAN_SHAPE, np.float64)


def test_a_spline_takes_landmarks_where_they_belong_and_holds_the_rest() -> None:
    there = MEAN.copy()
    there[48:] += (0, 4)  # the mouth goes down
    there[27:36] += (2, 0)  # the nose aside
    where = spline_map(MEAN, there)
    for x, y in ((30, 33), (48, 54)):  # nose tip, mouth corners
        at = np.round(MEAN[[x, y]]).astype(int)
        assert np.abs(where[at[:, 1], at[:, 0]] - there[[x, y]]).max() < 1.5
    still = spline_map(MEAN, MEAN)
    y, x = np.mgrid[:128, :128]
    assert np.abs(still - np.stack([x, y], -1)).max() < 0.01


def test_a_prototype_gives_back_the_difference_it_was_made_from() -> None:
    rng = np.random.default_rng(0)
    with_it = MEAN.copy()
    with_it[48:68, 1] += 4  # a lower mouth, and brighter cheeks
    faces, shapes = [], []
    for i in range(12):
        base = np.full((128, 128, 3), 100 + 5 * (i % 3), np.uint8)
        base[60:80, 20:40] += np.uint8(60 * (i >= 6))
        faces.append(base)
        shapes.append((with_it if i >= 6 else MEAN) + rng.normal(0, 0.1, MEAN.shape))
    made = fit_prototype(faces, np.stack(shapes), np.arange(12) >= 6, np.ones(12), 2.0)
    where, ratio = prototype_edit(made, MEAN, 2.0)
    edited = relit(moved(faces[0].astype(np.float32), where), ratio)
    assert edited[66:74, 26:34].mean() - edited[100:110, 60:70].mean() > 45
    assert 2.5 < 96 - where[96 + 2, 64, 1] + 2 < 5.5
    half, _ = prototype_edit(made, MEAN, 1.0)
    assert abs((98 - half[98, 64, 1]) * 2 - (98 - where[98, 64, 1])) < 1


def test_glasses_lie_on_the_eyes_at_any_scale() -> None:
    face = np.full((128, 128, 3), 200, np.uint8)
    drawn = draw_glasses(face, MEAN, Glasses())
    changed = np.abs(drawn.astype(int) - face).max(2) > 60
    rows = np.flatnonzero(changed.any(1))
    assert 25 < rows.min() and rows.max() < 75 and changed.sum() > 150
    large = draw_glasses(np.full((384, 384, 3), 200, np.uint8), (MEAN + 0.5) * 3 - 0.5, Glasses())
    small = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - drawn).mean() < 3


def test_hair_takes_a_colour_only_where_it_is() -> None:
    face = np.random.default_rng(0).integers(60, 120, (128, 128, 3), dtype=np.uint8)
    face[..., 0] += 40
    hair = np.zeros((128, 128), np.float32)
    hair[:40] = 1
    edit = laid_on("hair_blond", 2.0, face, MEAN, hair, {})
    assert edit is not None
    made = edit.on_part(face, np.eye(2, 3), MEAN)
    assert np.array_equal(made[45:], face[45:]) and made[:38].mean() > face[:38].mean() + 15
    assert laid_on("hair_blond", -2.0, face, MEAN, hair, {}) is None
    assert laid_on("hair_blond", 2.0, face, MEAN, hair * 0, {}) is None


def test_the_region_of_a_sample_is_that_of_the_stage() -> None:
    classes = np.zeros((64, 64), np.uint8)
    classes[20:50, 16:48] = PARSING_CLASSES.index("skin")
    matrix = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5]])
    classes[10:20, 16:48] = PARSING_CLASSES.index("hair")
    large = np.repeat(np.repeat(classes, 2, 0), 2, 1)
    parsing = torch.nn.functional.one_hot(torch.from_numpy(large).long(), 19).permute(2, 0, 1)[None].float()
    for names in (["smiling"], ["age"], ["age", "eyeglasses"]):
        found = region_of(classes, matrix, names).astype(np.float32) / 255
        assert np.abs(found - edit_region(parsing, dict.fromkeys(names, 1.0))[0, 0].numpy()).max() < 0.15


def test_a_network_for_unknown_attributes_is_refused(coogan_config: Path) -> None:
    options = yaml.safe_load(coogan_config.read_text())
    options["network"]["attributes"] = ["smile"]
    coogan_config.write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match="unknown: \\['smile'\\]"):
        train_coogan.main(coogan_config)
