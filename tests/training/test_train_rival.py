"""The rivals' training script: the restorer's own samples, a loss that falls, inpainters that look at the hole."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pa = pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
import pyarrow.parquet as pq  # noqa: E402

from stages.degradation.occluders import MEAN_SHAPE  # noqa: E402
from training import publish, train_rival  # noqa: E402
from training.config import load_training  # noqa: E402
from training.restorer_samples import ProUiganTraining  # noqa: E402
from training.sources import VALIDATION_LIST  # noqa: E402
from training.train_prouigan import ProUiganTask  # noqa: E402
from training.train_rival import RivalTask, RivalTraining  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
PLAIN = {"widths": [8, 8, 8, 8], "blocks": [1, 0, 0, 0]}
SMALL = {
    "widths": [16, 16, 16], "blocks": [1, 0, 0], "dilations": [[1], [1], [1]], "landmark_width": 16,
    "landmark_dilations": [[1], [1], [1]], "attention_width": 16, "heads": 2, "detail_width": 16,
}  # fmt: skip
LOOP = {
    "run": "run", "steps": 12, "batch_size": 4, "lr": 2e-3, "warmup": 1, "workers": 0, "grid_steps": 1000,
    "log_steps": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def restorer(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(6):
        data = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((160, 160), Image.Resampling.BICUBIC).save(data, "PNG")
        pictures.append(data.getvalue())
    points = (np.asarray(MEAN_SHAPE) + 16).ravel().tolist()
    ids = [*"abcd", *VALIDATION_LIST.read_text().split()[:2]]
    pq.write_table(pa.table({"id": ids, "image": pictures, "landmarks": [points] * 6}), tmp_path / "utkface.parquet")
    pq.write_table(pa.table({"id": list("uvw"), "image": pictures[:3]}), tmp_path / "covered.parquet")
    options = {
        "task": "prouigan", "data": ["utkface.parquet"], "covered_data": ["covered.parquet"], "pack": "pack",
        "covered_pack": "covered", "network": SMALL, "covered_share": 0.2, "no_face_share": 0.2,
        "clean_share": 0.2, "validation_faces": 2, "loop": LOOP | {"seed": 5},
    }  # fmt: skip
    path = tmp_path / "prouigan.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def rival(restorer: Path, **more: Any) -> Path:
    options = {"task": "rival", "restorer": "prouigan.yaml", "architecture": "plain", "network": PLAIN, "loop": LOOP}
    path = restorer.parent / "rival.yaml"
    path.write_text(yaml.safe_dump(options | more))
    return path


def test_a_rival_gets_the_very_samples_of_the_restorer(restorer: Path) -> None:
    own = RivalTask(load_training(RivalTraining, rival(restorer))[0])
    wanted = ProUiganTask(load_training(ProUiganTraining, restorer)[0])
    for index in range(12):
        first, second = own.sample(index), wanted.sample(index)
        assert first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"architecture": "inpainter", "side": 16, "network": {"network": {"widths": [16], "blocks": [1]}}},
        {
            "architecture": "inpainter", "side": 128,
            "network": {"network": {"widths": [16, 8, 8, 8], "blocks": [1, 0, 0, 0], "shrink": 8}},
        },
    ],
    ids=["plain", "inpaint_16", "inpaint_128"],
)  # fmt: skip
def test_a_few_steps_lower_the_loss(restorer: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    sample = RivalTask.sample
    monkeypatch.setattr(RivalTask, "sample", lambda self, index: sample(self, index % 4))  # one batch, again and again
    train_rival.main(rival(restorer, **options))
    log = [json.loads(line) for line in (restorer.parent / "run" / "log.jsonl").read_text().splitlines()]
    values = [entry["loss"] for entry in log if "loss" in entry]
    assert values[-1] < values[0] and np.isfinite(values).all()
    modes = {"covered"} if options else {"clean", "covered"}
    assert set(log[-1]["validation"]) == {f"gain_utkface_{mode}" for mode in modes}


def test_a_network_that_does_nothing_gains_nothing(restorer: Path) -> None:
    task = RivalTask(load_training(RivalTraining, rival(restorer))[0])  # its last layer starts at zero: bicubic
    gains = task.validate(task.network.eval())
    assert set(gains) == {"gain_utkface_clean", "gain_utkface_covered"}
    assert all(abs(gain) < 0.02 for gain in gains.values())


def test_an_inpainter_is_judged_within_the_hole_alone(restorer: Path) -> None:
    options = {"architecture": "inpainter", "side": 16, "network": {"network": {"widths": [8], "blocks": [0]}}}
    task = RivalTask(load_training(RivalTraining, rival(restorer, **options))[0])
    batch = {
        "lq": torch.full((2, 3, 16, 16), 0.5), "gt": torch.full((2, 3, 128, 128), 127.5),
        "mask": torch.zeros(2, 1, 64, 64), "mask_known": torch.ones(2, 1, 64, 64),
        "mask_lq": torch.zeros(2, 1, 16, 16), "inside": torch.ones(2, 1, 128, 128), "has_truth": torch.ones(2),
    }  # fmt: skip
    batch["mask_lq"][:, :, 8:, :] = 1
    batch["lq"][:, :, :8] = 0.9  # wrong, but outside the hole
    batch["gt"][:, :, 64:] = 0.9 * 255
    loss, _ = task.loss(batch, 0)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)  # the hole starts as the mean of what is seen: 0.9
    batch["gt"][:, :, 64:] = 0.4 * 255
    assert float(task.loss(batch, 0)[0].detach()) > 0.3


def test_a_rival_is_published_under_its_architecture(restorer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(restorer.parent / "weights"))
    path = rival(restorer, loop=LOOP | {"steps": 1})
    train_rival.main(path)
    publish.publish(restorer.parent / "run", "plain_128")
    card = json.loads((restorer.parent / "weights" / "plain_128.json").read_text())
    assert card["architecture"] == "plain" and card["arguments"]["widths"] == PLAIN["widths"]
    assert set(card["data"]["sets"]) == {"utkface", "covered"}
    assert card["data"]["counts"]["utkface"] == 4  # of 6, two are on the list
    assert card["data"]["split"].endswith("; of the user's own sets one person in 20, by hash")
    assert card["recipe"]["samples"] == 4 and "counts" not in card["recipe"]["config"]
    assert str(restorer.parent) not in json.dumps(card)  # no path of this machine
    record = yaml.safe_load((restorer.parent / "run" / "config.yaml").read_text())
    del record["counts"]  # as in the runs of long ago
    (restorer.parent / "run" / "config.yaml").write_text(yaml.safe_dump(record))
    publish.publish(restorer.parent / "run", "plain_128")
    assert set(json.loads((restorer.parent / "weights" / "plain_128.json").read_text())["data"]) == {"sets", "split"}


RIVALS = [p for p in sorted(CONFIGS.glob("rival_*.yaml")) if "task: rival" in p.read_text()]  # one is the restorer


@pytest.mark.parametrize("path", RIVALS, ids=lambda p: p.stem)
def test_the_shipped_configurations_load(path: Path) -> None:
    options, _ = load_training(RivalTraining, path)
    assert options.restorer == CONFIGS / "prouigan.yaml"
    samples = load_training(ProUiganTraining, options.restorer)[0]
    assert options.loop.batch_size == samples.loop.batch_size and options.loop.optimiser == samples.loop.optimiser
