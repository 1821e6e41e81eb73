"""The restorer's training script on faces made on the spot: both phases run, learn and resume."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pa = pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
import pyarrow.parquet as pq  # noqa: E402

from landmarks.backends import BackendUnavailable, Detector  # noqa: E402
from landmarks.scheme import MIRROR  # noqa: E402
from pipeline.cli import main  # noqa: E402
from stages.degradation.occluders import MEAN_SHAPE  # noqa: E402
from training import train_prouigan  # noqa: E402
from training.config import load_training  # noqa: E402
from training.faces import Pack  # noqa: E402
from training.publish import publish  # noqa: E402
from training.restorer_samples import ProUiganTraining, frame_matrix  # noqa: E402
from training.sources import HELD_ONE_IN, content_id  # noqa: E402

HELD = next(i for i in map(str, range(999)) if int(content_id(i.encode()), 16) % HELD_ONE_IN == 0)  # never trained on

NETWORK = {
    "widths": [16, 16, 16],
    "blocks": [1, 0, 0],
    "dilations": [[1], [1], [1]],
    "landmark_width": 16,
    "landmark_dilations": [[1], [1], [1]],
    "attention_width": 16,
    "heads": 2,
    "detail_width": 16,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(6):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        data = io.BytesIO()
        coarse.resize((160, 160), Image.Resampling.BICUBIC).save(data, "PNG")
        pictures.append(data.getvalue())
    points = (np.asarray(MEAN_SHAPE) + 16).ravel().tolist()
    pq.write_table(
        pa.table({"id": [*"abcde", HELD], "image": pictures, "landmarks": [points] * 6}), tmp_path / "faces.parquet"
    )
    pq.write_table(pa.table({"id": list("uvw"), "image": pictures[:3]}), tmp_path / "covered.parquet")
    options = {
        "task": "prouigan",
        "data": ["faces.parquet"],
        "covered_data": ["covered.parquet"],
        "pack": "pack",
        "covered_pack": "covered",
        "network": NETWORK,
        "validation_faces": 1,
        "covered_share": 0.2,
        "no_face_share": 0.2,
        "loop": {
            "run": "run",
            "steps": 10,
            "batch_size": 4,
            "lr": 2e-3,
            "warmup": 1,
            "workers": 0,
            "grid_steps": 1000,
            "log_steps": 2,
            "device": "cpu",
        },
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in entry]


@pytest.mark.parametrize(("phase", "agreed"), [("trunk", 0.0), ("trunk", 1.0), ("detail", 0.0)])
def test_a_few_steps_lower_the_loss(config: Path, monkeypatch: pytest.MonkeyPatch, phase: str, agreed: float) -> None:
    sample = train_prouigan.ProUiganTask.sample
    monkeypatch.setattr(
        train_prouigan.ProUiganTask, "sample", lambda self, index: sample(self, index % 4)
    )  # one batch, again and again
    adversarial = 0.01 if phase == "detail" else 0.0
    config.write_text(config.read_text() + f"phase: {phase}\nadversarial: {adversarial}\nagreed: {agreed}\n")
    network = train_prouigan.main(config)
    values = losses(config.parent / "run")
    assert np.isfinite(values).all()
    if phase == "trunk":
        assert values[-1] < values[0]
    moved = {
        name.split(".")[0]
        for name, p in network.named_parameters()
        if name.endswith("paint.weight") and p.abs().max() > 0
    }
    assert moved == ({"steps"} if phase == "trunk" else {"detail"})
    run = config.parent / "run"
    figures = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["validation"]
    assert {"gain_faces_clean", "nme_faces_clean", "under_faces_covered"} <= figures.keys()
    with Image.open(run / "grid_0000010.png") as grid:
        assert grid.height % (128 * (4 if phase == "trunk" else 5)) == 0
    counts = yaml.safe_load((run / "config.yaml").read_text())["counts"]
    assert counts["faces"] == 5 and 0 < counts["covered"] <= 3


def test_the_larger_steps_join_in_when_told(config: Path) -> None:
    config.write_text(config.read_text() + "progressive: [2, 4]\n")
    task = train_prouigan.ProUiganTask(load_training(ProUiganTraining, config)[0])
    batch = {k: torch.from_numpy(np.stack([task.sample(i)[k] for i in range(4)])) for k in task.sample(0)}
    taught = {}
    for step in (1, 2, 4):
        task.network.zero_grad(set_to_none=True)
        task.loss(batch, step)[0].backward()
        taught[step] = [k for k, s in enumerate(task.network.steps) if any(p.grad is not None for p in s.parameters())]
    assert taught == {1: [0], 2: [0, 1], 4: [0, 1, 2]}


def test_old_faces_are_drawn_more_often(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config.parent / "faces.parquet"
    table = pq.read_table(path)
    config.write_text(config.read_text() + "old_age: 60\nold_factor: 4\n")
    assert main(["train", "-c", str(config), "--dry-run"]) == 2
    assert "no face of `old_age` and more" in capsys.readouterr().err
    pq.write_table(table.append_column("age", pa.array([80, 60, 59, 3, None, 90])), path)  # the last one is held out
    config.write_text(config.read_text().replace("pack: pack", "pack: pack_of_ages"))
    options, _ = load_training(ProUiganTraining, config)
    samples = train_prouigan.ProUiganTask(options)
    assert sorted(samples.pack.ids[samples.members[0]]) == ["a"] * 4 + ["b"] * 4 + ["c", "d", "e"]
    assert len(samples.trained_sets()) == 5 + 3  # counted once each, with the covered ones


@pytest.fixture
def own_faces(config: Path) -> Path:
    """A training on a folder of four pictures, on which no face is found."""
    (config.parent / "mine").mkdir()
    table = pq.read_table(config.parent / "faces.parquet")
    for i, picture in enumerate(table["image"].to_pylist()[:4]):
        (config.parent / "mine" / f"{i}.png").write_bytes(picture)
    options = yaml.safe_load(config.read_text()) | {"data": ["mine"], "covered_data": [], "covered_pack": None}
    options["loop"] |= {"steps": 2, "device": "auto"}
    config.write_text(yaml.safe_dump(options))
    return config


def test_a_folder_of_four_pictures_trains(own_faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dlib")
    assert main(["train", "-c", str(own_faces), "--dry-run"]) == 0
    assert "step 2: loss" in capsys.readouterr().err
    run = own_faces.parent / "run"
    assert not run.exists()  # so that the real run can begin
    assert main(["train", "-c", str(own_faces)]) == 0
    pack, record = Pack.open(own_faces.parent / "pack"), yaml.safe_load((run / "config.yaml").read_text())
    assert record["counts"] == {"mine": int((~pack.validation).sum())}
    assert (run / "grid_0000002.png").exists() == bool(pack.validation.any())
    assert main(["train", "-c", str(own_faces)]) == 2
    assert "checkpoint.pt exists; go on with --resume" in capsys.readouterr().err
    assert main(["train", "-c", str(own_faces), "--resume"]) == 0
    (own_faces.parent / "mine" / "0.png").unlink()
    assert main(["train", "-c", str(own_faces), "--resume"]) == 2
    assert "mine has changed" in capsys.readouterr().err


def test_what_is_missing_is_said_in_one_line(
    own_faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(name: str) -> Detector:
        raise BackendUnavailable(f"no {name} here")

    monkeypatch.setattr("landmarks.backends.create", create)
    assert main(["train", "-c", str(own_faces)]) == 2
    assert capsys.readouterr().err == "revisage train: no dlib here\n"
    options = yaml.safe_load(own_faces.read_text()) | {"data": ["faces.parquet"]}
    own_faces.write_text(yaml.safe_dump(options))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", "-c", str(own_faces)]) == 2
    said = capsys.readouterr().err
    assert "tensorboard" in said and "install the extra: pip install 'revisage[train]'" in said
    own_faces.write_text(yaml.safe_dump(options | {"start": "prouigan_129"}))
    assert main(["train", "-c", str(own_faces)]) == 2
    assert "no card" in capsys.readouterr().err


def test_wrong_options_are_named_with_file_path_and_nearest_key(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = yaml.safe_load(config.read_text())
    options["loop"]["stps"] = options["loop"].pop("steps")
    config.write_text(yaml.safe_dump(options | {"hloe": 2, "network": {"width": [16]}}))
    assert main(["train", "-c", str(config), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert 'train.yaml: loop.stps = 10: unknown option of the training; did you mean "steps"?' in said
    assert 'train.yaml: hloe = 2: unknown option of the training; did you mean "hole"?' in said
    assert "network has no argument 'width'; did you mean \"widths\"?" in said
    config.write_text("task: prouigan\nloop: 3\n")
    assert main(["train", "-c", str(config), "--dry-run"]) == 2
    assert "train.yaml: pack: the training needs this option and it is missing" in capsys.readouterr().err


def test_a_leg_from_published_weights_may_be_wider_and_sees_samples_of_its_own(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(config.parent / "weights"))
    (config.parent / "weights").mkdir()
    options = yaml.safe_load(config.read_text())
    options["loop"] |= {"steps": 2}
    config.write_text(yaml.safe_dump(options))
    train_prouigan.main(config)
    publish(config.parent / "run", "small")
    options |= {"start": "small", "network": {"widths": [32, 16, 16]}}
    options["loop"] |= {"run": "second"}
    config.write_text(yaml.safe_dump(options))
    network = train_prouigan.main(config)
    assert network.state_dict()["steps.0.stem.weight"].shape == (32, 5, 3, 3)
    first, second = (yaml.safe_load((config.parent / run / "config.yaml").read_text()) for run in ("run", "second"))
    assert first["loop"]["seed"] == 0 and second["loop"]["seed"] not in (0, 1)
    assert second["network"]["landmark_width"] == NETWORK["landmark_width"], "what is not asked for stays"


def test_unknown_options_are_refused(config: Path) -> None:
    config.write_text(config.read_text() + "hloe: 2\n")
    with pytest.raises(ValueError, match="hloe"):
        train_prouigan.main(config)


def test_samples_depend_on_their_number_alone(config: Path) -> None:
    options, _ = train_prouigan.load_training(ProUiganTraining, config)
    task = train_prouigan.ProUiganTask(options)
    kinds = set()
    for index in range(40):
        first, second = task.sample(index), task.sample(index)
        assert all(np.array_equal(first[k], second[k]) for k in first)
        assert first["lq"].shape == (3, 16, 16) and first["gt"].shape == (3, 128, 128)
        kinds.add((float(first["face"]), float(first["has_truth"])))
    assert kinds == {(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)}  # faces, really covered faces, no faces


def test_the_mirror_keeps_left_and_right_points_apart() -> None:
    identity = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    matrix = frame_matrix(identity, mirrored=True)
    points = np.asarray(MEAN_SHAPE, np.float64) + 20  # packed pixels
    mirrored = (points @ matrix[:, :2].T + matrix[:, 2])[MIRROR]
    assert mirrored[36, 0] < mirrored[45, 0]  # the eye on the picture's left is still the subject's right
    assert mirrored[30, 0] == pytest.approx(127 - MEAN_SHAPE[30][0], abs=1e-4)


def test_what_the_exact_step_mends_is_not_judged_and_what_is_covered_is() -> None:
    """An error that the exact step takes away, such as a wrong brightness, gives no gradient but under the cover."""
    lq, mask = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    image = torch.full((1, 3, 128, 128), 0.6, requires_grad=True)
    out = SimpleNamespace(images=[image], log_noise=torch.full((1,), -9.0))
    settled = train_prouigan.ProUiganTask._agreed(out, {"lq": lq, "mask_lq": mask})  # type: ignore[arg-type]
    assert (settled[..., 96:] - 0.5).abs().max() < 1e-3 and (settled[..., :48] - 0.6).abs().max() < 0.02
    (gradient,) = torch.autograd.grad((settled - 0.5).square().sum(), image)
    assert gradient[..., 96:].abs().max() < 1e-3 < gradient[..., :48].abs().mean()
