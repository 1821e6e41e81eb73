"""The stage `detect` with a stand-in for the detector: tiles, duplicates, cuts; and MTCNN where it is installed."""

from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from landmarks.alignment import canonical_points
from landmarks.backends import why_unavailable
from landmarks.backends.base import Face
from stages.base import Detection
from stages.detect import NATIVE_SIZES, TILE_PX, Detect, DetectConfig

MARK = np.array([255, 0, 255], np.uint8)


class Squares:
    """Finds squares of one colour and gives their corners as a face."""

    def detect(self, image: np.ndarray) -> list[Face]:
        assert max(image.shape[:2]) <= TILE_PX, "no tile may be larger: memory is bounded by it"
        hits = (image == MARK).all(2)
        if not hits.any():
            return []
        rows, columns = np.nonzero(hits.any(1))[0], np.nonzero(hits.any(0))[0]
        box = np.array([columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5], np.float32)
        side = box[2] - box[0]
        kps = canonical_points(100) * side / 100 + box[:2]
        cut = min(rows[0], columns[0]) == 0 or rows[-1] == len(image) - 1 or columns[-1] == image.shape[1] - 1
        return [Face(box, kps.astype(np.float32), 0.6 if cut else 0.9)]  # part of a face is less sure than a whole


def stage(**options: Any) -> Detect:
    built = Detect(DetectConfig(backend="boxes", **options), torch.device("cpu"), "fp32")
    built._detector = Squares()
    built.__class__ = type("Standing", (Detect,), {"reads_boxes": False})
    return built


@pytest.mark.parametrize("corner", [(0, 0), (500, 20), (512, 520), (560, 600), (1180, 30), (1240, 840), (639, 639)])
def test_a_face_anywhere_in_a_large_frame_is_found_once_in_its_place(corner: tuple[int, int]) -> None:
    frame = np.zeros((900, 1300, 3), np.uint8)
    x, y = corner
    frame[y : y + 50, x : x + 50] = MARK
    found = stage().find(frame)
    assert len(found) == 1
    assert np.allclose(found[0].box_xywh_px, (x, y, 50, 50), atol=2.5)


def test_a_face_larger_than_a_tile_is_found() -> None:
    frame = np.zeros((2000, 2000, 3), np.uint8)
    frame[300:1500, 400:1600] = MARK
    assert any(np.allclose(d.box_xywh_px, (400, 300, 1200, 1200), atol=12) for d in stage().find(frame))


def test_the_cut_has_the_points_where_the_canonical_frame_wants_them() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (120, 140, 3), dtype=np.uint8)
    points = canonical_points(40) @ np.array([[0.96, 0.28], [-0.28, 0.96]]) + (50, 40)
    cut = stage().cut(frame, Detection((50, 40, 40, 40), 0.9, points))
    assert len(cut.pixels) in NATIVE_SIZES and len(cut.pixels) <= 40
    back = canonical_points(len(cut.pixels)) @ cut.to_source[:, :2].T + cut.to_source[:, 2]
    assert np.allclose(back, points, atol=1e-6)
    assert stage(size=16).cut(frame, Detection((50, 40, 40, 40), 0.9, points)).pixels.shape == (16, 16, 3)


def test_the_cut_of_a_neighbourhood_is_that_of_the_whole_frame() -> None:
    frame = data.astronaut()
    for box in ((180.0, 70.0, 90.0, 90.0), (-10.0, -20.0, 60.0, 60.0), (470.0, 460.0, 70.0, 70.0)):
        detection = Detection(box, None, None)
        cut = stage(size=32).cut(frame, detection)
        from landmarks.alignment import invert, warp

        whole = warp(frame, invert(cut.to_source), 32)
        assert np.abs(cut.pixels.astype(int) - whole.astype(int)).max() <= 2


def test_a_box_is_cut_as_a_square_about_its_middle() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[20:60, 30:50] = 255
    cut = stage(size=16).cut(frame, Detection((30, 20, 20, 40), None, None))
    assert cut.pixels[8, 8].min() > 250 and cut.pixels[8, 1].max() < 60 and cut.pixels[8, 14].max() < 60
    assert stage(box_scale=1.5).side_px(Detection((0, 0, 20, 40), None, None)) == 60


def test_a_back_end_that_is_not_here_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.detect.why_unavailable", lambda name: f"no {name} today")
    with pytest.raises(ValueError, match="no dlib today"):
        Detect(DetectConfig(backend="dlib_cnn"), torch.device("cpu"), "fp32")


@pytest.mark.skipif(why_unavailable("mtcnn") is not None, reason="needs the extra mtcnn")
def test_mtcnn_finds_small_faces_and_says_what_it_was_unsure_of() -> None:
    frame = np.repeat(np.repeat(data.brick()[:240, :320, None], 3, 2), 1, 0)
    small = data.astronaut()[50:178, 160:288].reshape(16, 8, 16, 8, 3).mean((1, 3)).astype(np.uint8)
    places = [(20, 30), (180, 60), (90, 150), (250, 190)]
    for x, y in places:
        frame[y : y + 16, x : x + 16] = small
    detect = Detect(DetectConfig(min_px=8), torch.device("cpu"), "fp32")
    kept, dropped = detect.choose(detect.find(frame), (240, 320))
    middles = [(x + w / 2, y + h / 2) for x, y, w, h in (d.box_xywh_px for d in kept)]
    for x, y in places:
        assert any(abs(mx - x - 8) < 6 and abs(my - y - 8) < 6 for mx, my in middles)
    assert all("score" in reason for _, reason in dropped)
