"""What a restorer paints where an attribute was: covered where it lies, laid where it was painted, both ways."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("pyarrow")
pytest.importorskip("tensorboard")
from stages.degradation.occluders import MEAN_SHAPE
from stages.networks.face_parser import FaceParser
from stages.networks.prouigan import ProUiganNet
from stages.weights import WEIGHTS_ENV, save_weights
from tests.tiny import TINY, card_of
from tests.training import hr_data
from training.config import load_training
from training.edit_samples import LaidOn, laid_on
from training.prototypes import Prototype
from training.repainted import Paint, behind, cover_of, seen_through, softened
from training.train_coogan import CooganTask, CooganTraining

MEAN = np.asarray(MEAN_SHAPE, np.float64)
NO_GLASSES = np.zeros((128, 128), bool)


def at(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y = np.round(points).astype(int).T
    return np.asarray(mask[y, x])


def test_a_part_is_covered_and_the_others_are_not() -> None:
    mouth, chin, glasses = (cover_of(part, MEAN, NO_GLASSES) for part in ("mouth", "chin", "glasses"))
    assert at(mouth, MEAN[48:]).all() and not at(mouth, MEAN[17:30]).any() and not at(mouth, MEAN[8:9]).any()
    assert at(chin, MEAN[[*range(4, 13), *range(48, 68)]]).all() and not at(chin, MEAN[17:30]).any()
    assert at(glasses, MEAN[17:27]).all() and at(glasses, MEAN[36:48]).all() and not at(glasses, MEAN[48:]).any()
    rim = np.zeros((128, 128), bool)
    rim[70, 10] = True  # far from the eyes
    assert not glasses[70, 10] and cover_of("glasses", MEAN, rim)[70, 10]
    soft = softened(mouth)
    far = cv2.dilate(mouth.astype(np.uint8), np.ones((17, 17))) == 0
    assert (soft[mouth] > 0.99).mean() > 0.9 and soft[far].max() == 0


def test_eyes_behind_clear_lenses_are_kept() -> None:
    frame = np.full((128, 128, 3), 120, np.uint8)
    dark = frame.copy()
    dark[:, :64] = 20  # one lens is black
    seen = seen_through(dark, frame, MEAN)
    assert at(seen, MEAN[42:48]).all() and not at(seen, MEAN[36:42]).any()


def test_paint_lies_where_it_was_painted_at_any_size() -> None:
    cover = np.zeros((128, 128), np.float32)
    cover[64:96, 32:96] = 1
    paint = Paint(np.full((128, 128, 3), 200, np.uint8), cover)
    face = np.full((128, 128, 3), 50, np.uint8)
    made = laid_on("beard", -2.0, face, MEAN, np.zeros((128, 128), np.float32), {}, paint=paint)
    assert made is not None
    on_face = made.on_part(face, np.eye(2, 3), MEAN)
    assert (on_face[66:94, 34:94] == 200).all() and (on_face[:62] == 50).all()
    zoomed = made.on_part(np.full((128, 128, 3), 50, np.uint8), np.array([[0.25, 0, 20], [0, 0.25, 60]]), MEAN)
    assert (zoomed[20:, 52:] == 200).all() and (zoomed[:12] == 50).all()
    aside = paint.moved(np.array([[1.0, 0, 16], [0, 1.0, 0]]))
    assert (LaidOn(aside).on_part(face, np.eye(2, 3), MEAN)[66:94, 50:110] == 200).all()


def test_a_smile_goes_by_its_shape_once_its_teeth_are_painted_over() -> None:
    smiling = MEAN.copy()
    smiling[[48, 54], 1] -= 4
    prototype = Prototype(np.stack([MEAN, smiling]), np.full((2, 128, 128, 3), 0.5, np.float32), 2.0)
    paint = Paint(np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.float32))
    face, hair = np.full((128, 128, 3), 90, np.uint8), np.zeros((128, 128), np.float32)
    bare = laid_on("smiling", -2.0, face, MEAN, hair, {"smiling": prototype})
    made = laid_on("smiling", -2.0, face, MEAN, hair, {"smiling": prototype}, paint=paint)
    assert bare is not None and bare.ratio is not None
    assert made is not None and made.paint is paint and made.where is not None and made.ratio is None


def test_an_answer_is_aligned_where_nothing_moves_or_paint_lies() -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    paint = Paint(np.full((128, 128, 3), 128, np.uint8), softened(cover_of("mouth", MEAN, NO_GLASSES)))
    y, x = np.mgrid[:128, :128].astype(np.float32)
    aside = np.stack([x + 1.5, y], -1)
    place = np.array([[0.5, 0, 31.75], [0, 0.5, 41.75]])
    size = (192, 128)
    assert LaidOn(paint).aligned(place, size).min() == 1
    assert LaidOn(where=aside).aligned(place, size).max() == 0
    found = LaidOn(paint, aside).aligned(place, size)
    assert found.shape == (128, 192) and found[90, 60] == 1 and found[:20].max() == 0  # the mouth; above the nose
    moved = LaidOn(where=aside).on_part(face, np.eye(2, 3), MEAN).astype(np.float32)[8:-8, 8:-8]
    bilinear = (face[8:-8, 9:-7].astype(np.float32) + face[8:-8, 10:-6]) / 2
    assert np.var(moved) > 1.3 * np.var(bilinear)  # what is moved keeps its grain


def test_a_face_is_painted_alike_alone_and_among_others() -> None:
    torch.manual_seed(0)
    restorer = ProUiganNet(**TINY).eval()
    for step in restorer.steps:  # what is painted starts at 0
        torch.nn.init.normal_(step.paint.weight, std=0.1)
    faces = list(np.random.default_rng(0).integers(0, 255, (17, 128, 128, 3), dtype=np.uint8))
    covers = [cover_of(part, MEAN, NO_GLASSES) for part in ("mouth", "chin", "glasses")] * 6
    made = behind(restorer, faces, covers[:17])
    assert made.shape == (17, 128, 128, 3) and made.dtype == np.uint8
    alone = behind(restorer, faces[16:], covers[16:17])
    assert np.abs(made[16:].astype(int) - alone).max() <= 2
    other = behind(restorer, faces[16:], covers[:1])
    assert np.abs(other.astype(int) - alone).max() > 2  # the cover counts
    assert behind(restorer, [], []).shape == (0, 128, 128, 3)


def test_samples_take_away_what_was_painted_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hr_data.write_omi(tmp_path / "omi.parquet", 6)
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    torch.manual_seed(0)
    for name, network, kind, arguments in (
        ("face_parser", FaceParser(8, 1), "face_parser", {"width": 8, "depth": 1}),
        ("restorer", ProUiganNet(**TINY), "prouigan", TINY),
    ):
        save_weights(name, network, card_of(kind, arguments))
    path = tmp_path / "coogan.yaml"
    options = {
        "task": "coogan",
        "faces": {"pack": "pack", "margin": 0.08, "sets": [{"data": "omi.parquet", "side": 240}]},
        "network": {"attributes": ["mouth_open"], "width": 8, "local_width": 8},
        "painter": "restorer", "taken_share": 1.0, "still_share": 0.0, "pair_share": 0.0,
        "loop": {"run": "run", "steps": 3, "batch_size": 3, "lr": 1e-3, "workers": 0},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(options))
    monkeypatch.setattr("training.edit_faces.labels_of_row", lambda row, name: np.ones(14, np.float32))
    monkeypatch.setattr("training.hr_faces.labels_of_row", lambda row, name: np.ones(14, np.float32))
    task = CooganTask(load_training(CooganTraining, path)[0])
    assert len(task.having[0]) == len(task.members) > 0
    ways = set()
    for index in range(24):
        made = task.sample(index)
        ways.add(bool(made["backwards"]))
        changed = np.flatnonzero(np.abs(made["goal"].astype(int) - made["face"]).max((0, 2)) > 2)
        assert made["answered"] and 50 < changed.min() and changed.max() < 126  # rows of the mouth
        assert np.allclose(made["wanted"], 2.0 if made["backwards"] else -2.0)
    assert ways == {True, False}
    again = CooganTask(load_training(CooganTraining, path)[0])  # from the kept file
    assert all(np.array_equal(a, again.sample(3)[n], equal_nan=a.dtype.kind == "f") for n, a in task.sample(3).items())
