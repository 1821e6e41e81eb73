"""The trait classifier's training script on flat pictures whose labels can be seen: it learns, masks and balances."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pa = pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
import pyarrow.parquet as pq  # noqa: E402

from stages.degradation.occluders import MEAN_SHAPE  # noqa: E402
from stages.networks.classifier import TraitNet  # noqa: E402
from stages.weights import WEIGHTS_ENV, save_weights  # noqa: E402
from training import train_classifier  # noqa: E402
from training.config import load_training  # noqa: E402
from training.faces import varied_face  # noqa: E402
from training.parsing_labels import parsed_glasses  # noqa: E402
from training.sources import VALIDATION_LIST  # noqa: E402
from training.train_classifier import ClassifierTask, ClassifierTraining, auc  # noqa: E402

HELD = VALIDATION_LIST.read_text().split()[:4]  # ids that are never trained on
CONFIGS = Path(__file__).parents[2] / "configs" / "train"


def flat(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (160, 160), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Ten coloured faces with gender and age (men are red and old), six grey ones with expressions (happy is light)."""
    points = (np.asarray(MEAN_SHAPE) + 16).ravel().tolist()
    men = [True, True, True, True, False, False, False, False, True, False]
    coloured = {
        "id": [f"c{i}" for i in range(8)] + HELD[:2],
        "image": [flat((200, 40, 40) if m else (40, 40, 200)) for m in men],
        "landmarks": [points] * 10,
        "age": [70 if m else 5 for m in men],
        "gender": [0 if m else 1 for m in men],
    }
    light = [True, True, False, False, True, False]
    grey = {
        "id": [f"g{i}" for i in range(4)] + HELD[2:4],
        "image": [flat((220,) * 3 if x else (30,) * 3) for x in light],
        "landmarks": [points] * 6,
        "expression": ["happiness" if x else "neutral" for x in light],
    }
    pq.write_table(pa.table(coloured), tmp_path / "utkface.parquet")
    pq.write_table(pa.table(grey), tmp_path / "lfw.parquet")
    options = {
        "task": "classifier",
        "data": ["utkface.parquet", "lfw.parquet"],
        "pack": "pack",
        "network": {
            "classes": {"expression": ["neutral", "happiness", "surprise", "anger", "sadness"]},
            "flags": ["masculine", "smiling"], "numbers": ["age"], "width": 8, "blocks": 1, "features": 16,
        },
        "grey_share": 0.0,
        "loop": {
            "run": "run", "steps": 40, "batch_size": 8, "lr": 3e-3, "warmup": 1, "workers": 0, "grid_steps": 1000,
            "log_steps": 4, "device": "cpu", "ema": 0.8, "precision": "fp32",
        },
    }  # fmt: skip
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def task_of(path: Path) -> ClassifierTask:
    return ClassifierTask(load_training(ClassifierTraining, path)[0])


def test_training_reads_what_can_be_seen_on_held_out_faces(config: Path) -> None:
    train_classifier.main(config)
    log = [json.loads(line) for line in (config.parent / "run" / "log.jsonl").read_text().splitlines()]
    values = [entry["loss"] for entry in log if "loss" in entry]
    assert values[-1] < 0.6 * values[0]
    figures = log[-1]["validation"]
    assert figures["accuracy_masculine"] == figures["auc_masculine"] == figures["accuracy_expression"] == 1.0
    assert figures["error_years_age"] < 25


def test_it_goes_on_from_a_card_to_further_traits(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(config.parent / "weights"))
    options = yaml.safe_load(config.read_text())
    known = options["network"] | {"flags": ["smiling"]}
    trained = TraitNet(**known)
    fields = {"architecture": "classifier", "arguments": known, "licence": "none", "limits": "random", "metrics": []}
    save_weights("taught", trained, fields | {"input": {}, "data": {}, "recipe": {}}, torch.float32)
    config.write_text(yaml.safe_dump(options | {"start": "taught"}))
    state = task_of(config).model.state_dict()
    assert "heads.masculine.weight" in state
    for name, value in trained.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_head_without_a_label_gets_no_gradient(config: Path) -> None:
    task = task_of(config)
    traits = task.model.traits
    assert traits == ("expression", "masculine", "smiling", "age")
    images = torch.rand(2, 3, 128, 128)
    labels = torch.full((2, 4), float("nan"))
    labels[:, traits.index("masculine")] = torch.tensor([1.0, 0.0])
    loss, parts = task.loss({"image": images, "labels": labels}, 0)
    loss.backward()
    assert set(parts) == {"masculine"}
    assert task.model.heads["age"].weight.grad is None or not task.model.heads["age"].weight.grad.any()
    assert task.model.heads["masculine"].weight.grad.any()


def test_samples_depend_on_their_number_and_never_show_held_out_faces(config: Path) -> None:
    task = task_of(config)
    for index in range(30):
        first, second = task.sample(index), task.sample(index)
        assert all(np.array_equal(first[k], second[k], equal_nan=True) for k in first)
        assert first["image"].shape == (3, 128, 128) and first["image"].dtype == np.float32
    for bins in task.bins.values():
        assert not any(task.pack.validation[members].any() for _, members in bins)


def test_rare_answers_are_drawn_more_often_than_they_come(config: Path) -> None:
    """3 men of 8 would be .75 of the draws of a share by count; all alike gives one half each."""
    text = config.read_text() + "head_share: {expression: 0, smiling: 0, age: 0}\n"
    for balance, low, high in ((0.0, 0.4, 0.6), (1.0, 0.65, 0.85)):
        config.write_text(text + f"balance: {balance}\n")
        task = task_of(config)
        men = np.flatnonzero(task.labels["masculine"] == 1)[:3]
        women = np.flatnonzero((task.labels["masculine"] == 0) & ~task.pack.validation)[:1]
        counts = np.array([1.0, 3.0]) ** balance
        task.bins["masculine"] = list(zip(np.cumsum(counts / counts.sum()), [women, men], strict=True))
        drawn = np.array([task.sample(i)["labels"][1] for i in range(200)])
        assert low < drawn.mean() < high


def test_a_trait_that_no_face_is_labelled_with_is_refused(config: Path) -> None:
    config.write_text(config.read_text().replace("- smiling", "- hat"))
    with pytest.raises(ValueError, match="different labels for: hat"):
        task_of(config)


def test_auc_counts_ties_by_half() -> None:
    assert auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert auc(np.array([1.0, 1, 1]), np.array([True, False, False])) == 0.5
    assert auc(np.array([1.0, 3, 2]), np.array([False, False, True])) == 0.5
    assert np.isnan(auc(np.array([1.0]), np.array([True])))


def test_glasses_are_taken_from_the_parser_only_where_it_is_sure() -> None:
    labels = np.zeros((3, 84, 84), np.uint8)
    labels[0, 20:30, 20:64] = 3
    labels[1, 20:22, 20:40] = 3
    labels[2, :9, :9] = 3  # outside the frame
    found = parsed_glasses(labels)
    assert found[0] == 1 and np.isnan(found[1]) and found[2] == 0


def test_varied_faces_are_grey_or_blurred_as_often_as_asked() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (168, 168, 3)).astype(np.uint8)
    made = [varied_face(picture, np.random.default_rng(i), 0.5, 0.25) for i in range(80)]
    grey = np.array([np.ptp(image, axis=0).max() < 1e-5 for image in made])
    rough = np.array([np.abs(np.diff(image.mean(0), axis=1)).mean() for image in made])
    smooth = rough < 0.6 * rough.max()  # below 96 px, noise of one pixel averages out
    assert 0.1 < grey.mean() < 0.4
    assert 0.35 < smooth.mean() < 0.65
    assert all(image.shape == (3, 128, 128) and 0 <= image.min() and image.max() <= 1 for image in made)


@pytest.mark.parametrize("name", ["expression", "attributes", "attributes_training"])
def test_the_shipped_configurations_build_small_networks(name: str) -> None:
    options, _ = load_training(ClassifierTraining, CONFIGS / f"{name}.yaml")
    network = train_classifier.TraitNet(**options.network)
    assert sum(p.numel() for p in network.parameters()) < 3e6
    assert set(options.head_share) <= set(network.traits)


def test_the_reader_of_training_shares_neither_seed_nor_architecture_with_those_of_evaluation() -> None:
    read = {n: load_training(ClassifierTraining, CONFIGS / f"{n}.yaml")[0] for n in
            ("expression", "attributes", "attributes_training")}  # fmt: skip
    assert len({c.loop.seed for c in read.values()}) == 3
    assert read["attributes_training"].network["trunk"] != read["attributes"].network["trunk"]
    assert read["attributes_training"].network["flags"] == read["attributes"].network["flags"]
