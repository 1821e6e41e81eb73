"""Reading traits: against hand-made answers, scikit-learn, and a classifier whose weights are known."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import traits
from evaluation.faces import EvaluationFace
from evaluation.statistics import bootstrap
from evaluation.trait_reader import TraitReader, columns, labels_of, mean_recall
from evaluation.traits import classifier_findings
from stages.networks.classifier import TraitNet
from stages.networks.face_parser import FaceParser
from stages.weights import save_weights

CARD: dict[str, Any] = {"input": {}, "data": {}, "recipe": {}, "metrics": [], "licence": "none", "limits": "none"}
HEADS: dict[str, Any] = {
    "classes": {"expression": ["neutral", "happiness", "surprise"]}, "flags": ["hat"], "numbers": ["age"],
    "width": 8, "blocks": 1, "features": 8,
}  # fmt: skip


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TraitReader:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    save_weights("traits", TraitNet(**HEADS), CARD | {"architecture": "classifier", "arguments": HEADS}, torch.float32)
    save_weights(
        "parser", FaceParser(8, 1), CARD | {"architecture": "face_parser", "arguments": {"width": 8, "depth": 1}}
    )
    return TraitReader("traits", batch=2)


class Told:
    """A reader that reads the expression, the hat and the age off a picture's first pixel."""

    card, classes = "told", {"expression": ("neutral", "happiness", "surprise")}
    flags, numbers, traits = ("hat",), ("age",), ("expression", "hat", "age")

    def read(self, images: np.ndarray) -> dict[str, np.ndarray]:
        told = np.asarray(images)[:, 0, 0].astype(float)  # (N, 3): class, hat in percent, years
        return {"expression": np.eye(3)[told[:, 0].astype(int)], "hat": told[:, 1] / 100, "age": told[:, 2]}


def pictures(*told: tuple[int, int, int]) -> np.ndarray:
    images = np.zeros((len(told), 128, 128, 3), np.uint8)
    images[:, 0, 0] = told
    return images


LABELS = [{"expression": 0.0, "hat": 0.0, "age": 30.0}, {"expression": 1.0, "age": 9.0}, {"expression": 1.0}, {}]
ORIGINAL = pictures((0, 10, 31), (1, 20, 9), (0, 90, 50), (2, 80, 60))
RESTORED = pictures((0, 60, 41), (1, 20, 11), (1, 90, 50), (0, 80, 70))


def test_what_is_read_is_held_against_labels_and_against_the_original() -> None:
    told = Told()
    made = columns(told, told.read(RESTORED), told.read(ORIGINAL), LABELS)  # type: ignore[arg-type]
    nan = np.nan
    expected = {
        "right_expression": [1, 1, 1, nan],
        "kept_expression": [1, 1, 0, 0],
        "is_expression_happiness": [0, 1, 1, nan],
        "recalled_expression_happiness": [0, 1, 1, nan],
        "right_hat": [0, nan, nan, nan],
        "kept_hat": [0, 1, 1, 1],
        "error_age": [11, 2, nan, nan],
        "drift_age": [10, 2, 0, 10],
        "band_age": [0, 0, nan, nan],  # 41 is of the next band after 30, and 11 after 9
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values, err_msg=name)


def test_mean_recall_equals_scikit_learns_balanced_accuracy() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label, found = rng.choice(3, 90, p=[0.7, 0.2, 0.1]), rng.integers(0, 3, 90)
    parts = [(label == k) & (found == k) for k in range(3)] + [label == k for k in range(3)]
    value = bootstrap(np.stack(parts, 1).astype(float), mean_recall).value
    assert value == pytest.approx(metrics.balanced_accuracy_score(label, found))


def test_a_class_that_no_face_has_is_left_out_of_the_mean() -> None:
    assert mean_recall(np.array([[0.25, 0.1, 0.0, 0.5, 0.2, 0.0]]))[0] == pytest.approx(0.5)


def test_findings_say_how_many_faces_they_are_of() -> None:
    found = {f.metric: f for f in classifier_findings(Told(), ORIGINAL, LABELS, "some")}  # type: ignore[arg-type]
    right = found["expression, accuracy"]
    assert (right.estimate.value, right.estimate.n) == (pytest.approx(2 / 3), 3)
    age = found["age, error"]
    assert (age.estimate.value, age.direction, age.unit, age.estimate.n) == (0.5, "down", "years", 2)
    assert all(f.weights == "told" for f in found.values())


def test_faces_of_one_person_are_drawn_together() -> None:
    of_person = np.random.default_rng(1).uniform(0, 1, 20)
    told = SimpleNamespace(
        card="told", traits=("hat", "age"), flags=("hat",), numbers=("age",), classes={},
        read=lambda images: {"hat": of_person.repeat(5), "age": 80 * of_person.repeat(5)},
    )  # fmt: skip
    labels = [{"hat": float(i // 5 % 2), "age": 40.0} for i in range(100)]
    people = np.arange(20).repeat(5).astype(str).tolist()
    alone, together = (
        {f.metric: f.estimate for f in classifier_findings(told, np.zeros((100, 1)), labels, "s", who)}  # type: ignore[arg-type]
        for who in (None, people)
    )
    for metric in ("hat, AUC", "hat, accuracy", "age, error"):
        assert together[metric].value == alone[metric].value
        assert together[metric].high - together[metric].low > 1.3 * (alone[metric].high - alone[metric].low)


def test_a_classifier_is_measured_with_the_auc_of_scikit_learn(reader: TraitReader) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 128, 128, 3)).astype(np.uint8)
    labels = [{"hat": float(i % 3 == 0), "expression": float(i % 2)} for i in range(11)] + [{}]
    found = {f.metric: f for f in classifier_findings(reader, images, labels, "noise")}
    read = reader.read(images)
    wanted = [row["hat"] for row in labels[:11]]
    assert found["hat, AUC"].estimate.value == pytest.approx(metrics.roc_auc_score(wanted, read["hat"][:11]))
    happy = read["expression"][:11, 1]
    expected = metrics.roc_auc_score([row["expression"] for row in labels[:11]], happy)
    assert found["expression, AUC of happiness"].estimate.value == pytest.approx(expected)
    assert "expression, AUC of surprise" not in found  # nobody has it
    assert found["hat, AUC"].estimate.n == 11


def test_reading_in_batches_equals_reading_one_face(reader: TraitReader) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 128, 128, 3)).astype(np.uint8)
    whole = reader.read(images)
    assert {k: v.shape for k, v in whole.items()} == {"expression": (5, 3), "hat": (5,), "age": (5,)}
    for name, values in reader.read(images[4:]).items():
        np.testing.assert_allclose(values, whole[name][4:], rtol=1e-4, atol=1e-4)
    assert reader.read(images[:0])["expression"].shape == (0, 3)


def test_other_pictures_and_other_networks_are_refused(reader: TraitReader) -> None:
    with pytest.raises(ValueError, match=r"\(N, 128, 128, 3\) uint8"):
        reader.read(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="FaceParser, not a trait classifier"):
        TraitReader("parser")


def test_labels_come_from_the_columns_of_a_face() -> None:
    face = EvaluationFace("a", "a", "x", np.zeros((128, 128, 3), np.uint8), None, {"age": 40, "gender": 1})
    assert labels_of([face]) == [{"age": 40.0, "masculine": 0.0}]


def test_the_command_writes_the_figures_into_the_card(
    reader: TraitReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3)).astype(np.uint8)
    labels, people = [{"hat": float(i % 2), "age": 20.0 + i} for i in range(8)], [f"p{i}" for i in range(8)]
    sets = {"noise": (images, labels, people)}
    monkeypatch.setattr(traits, "held_out", lambda data, more, limit: sets)
    traits.main(["traits", "--data", str(tmp_path)])
    assert "hat, AUC" in capsys.readouterr().out
    assert json.loads((tmp_path / "traits.json").read_text())["metrics"] == []
    traits.main(["traits", "--data", str(tmp_path), "--write"])
    metrics = json.loads((tmp_path / "traits.json").read_text())["metrics"]
    assert {m["metric"] for m in metrics} >= {"hat, accuracy", "hat, AUC", "age, error", "age, band"}
    assert all(m["n"] == 8 and m["interval"][0] <= m["value"] <= m["interval"][1] for m in metrics)
