"""The training scripts of the upscaler and the editor on faces made on the spot: they run, learn and resume."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import FaceParser
from stages.networks.upscaler import Upscaler
from stages.weights import WEIGHTS_ENV, save_weights
from training import train_coogan, train_upscale
from training.config import load_training
from training.train_coogan import CooganTask, CooganTraining, _warped
from training.train_upscale import UpscaleTask, UpscaleTraining

spec = importlib.util.spec_from_file_location("hr_data", Path(__file__).with_name("hr_data.py"))
assert spec is not None and spec.loader is not None
hr_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hr_data)

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
    card = {
        "architecture": "face_parser", "arguments": {"width": 8, "depth": 1}, "input": {}, "data": {}, "recipe": {},
        "metrics": [], "licence": "none", "limits": "random",
    }  # fmt: skip
    save_weights("face_parser", FaceParser(8, 1), card)
    return written(
        tmp_path,
        {
            "task": "coogan",
            "faces": {
                "pack": "pack", "margin": 0.08, "quality": 95,
                "sets": [{"data": "omi.parquet", "side": 240}, {"data": "omi_pairs.parquet", "side": 240}],
            },
            "network": {"attributes": ["smiling", "age", "masculine", "hair_black", "hair_blond"], "width": 8,
                        "local_width": 8},
            "identity": None,
            "pair_share": 0.4,
            "still_share": 0.2,
            "critic_from": 1,
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


def test_both_paths_of_the_editor_train(coogan_config: Path) -> None:
    network = train_coogan.main(coogan_config)
    assert isinstance(network, CooganNet)
    log = [json.loads(line) for line in (coogan_config.parent / "run" / "log.jsonl").read_text().splitlines()]
    parts = next(entry for entry in log if "consistency" in entry)
    for name in ("reconstruction", "paired", "attribute", "overlap", "adversarial", "critic", "critic_local", "source"):
        assert np.isfinite(parts[name])
    fresh = CooganNet(**yaml.safe_load(coogan_config.read_text())["network"])
    moved = {n.split(".")[0] for n, p in network.state_dict().items() if not torch.equal(p, fresh.state_dict()[n])}
    assert moved == {"whole", "local"}
    train_coogan.main(coogan_config, resume=True)


def test_samples_of_the_editor_ask_for_what_they_can_judge(coogan_config: Path) -> None:
    config, _ = load_training(CooganTraining, coogan_config)
    task = CooganTask(config)
    kinds = {"pair": 0, "still": 0, "free": 0}
    for index in range(60):
        made = task.sample(index)
        assert made["face"].shape == (3, 128, 128) and made["strip"].shape == (3, 128, 192)
        if made["has_goal"] and np.any(made["wanted"] != 0):
            kinds["pair"] += 1
            assert np.isnan(made["target"]).all()
            assert not np.array_equal(made["goal_face"], made["face"])
        elif made["has_goal"]:
            kinds["still"] += 1
            assert np.array_equal(made["goal_strip"], made["strip"])
        else:
            kinds["free"] += 1
            asked = np.isfinite(made["target"])
            assert 1 <= asked.sum() <= 4
    assert all(count > 5 for count in kinds.values()), kinds


def test_a_patch_shows_the_place_it_is_said_to_show(coogan_config: Path) -> None:
    """The strip averaged back to the global scale is the face there."""
    config, _ = load_training(CooganTraining, coogan_config)
    task = CooganTask(config)
    checked = 0
    for index in range(40):
        made = task.sample(index)
        place = made["place"].astype(np.float64)
        if not 1.1 < 1 / place[0, 0] < 1.9:
            continue
        back = _warped(made["strip"].transpose(1, 2, 0), np.vstack([place[0], place[1]]), (128, 128))
        inside = np.zeros((128, 128), bool)
        (x0, y0), (x1, y1) = place[:, 2], place @ np.array([191.0, 127.0, 1.0])
        inside[max(0, int(y0) + 4) : int(y1) - 4, max(0, int(x0) + 4) : int(x1) - 4] = True
        face = made["face"].transpose(1, 2, 0)
        assert np.abs(back.astype(float) - face)[inside].mean() < 4, index
        checked += 1
    assert checked > 5


def test_a_network_for_unknown_attributes_is_refused(coogan_config: Path) -> None:
    options = yaml.safe_load(coogan_config.read_text())
    options["network"]["attributes"] = ["smile"]
    coogan_config.write_text(yaml.safe_dump(options))
    with pytest.raises(ValueError, match="unknown: \\['smile'\\]"):
        train_coogan.main(coogan_config)
