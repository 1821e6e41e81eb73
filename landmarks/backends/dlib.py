"""dlib's HOG and CNN face detectors with its 68-point predictor: the offline default and landmark teacher.

The library is the wheel package `dlib-bin`; the model files lie in the package `face_recognition_models`, which is
never imported, since its import fails with today's setuptools.
The predictor was trained on iBUG 300-W, whose terms exclude commercial use.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from landmarks.alignment import apply, invert, to_canonical
from landmarks.backends.base import (
    Face,
    check_box,
    check_picture,
    check_upsample,
    cut_around,
    enlarge,
    from_enlarged,
    package_file,
    require_packages,
    to_enlarged,
)
from landmarks.scheme import POINT_COUNT, five_points

EXTRA = "dlib"
MODELS_PACKAGE = "face_recognition_models"
PREDICTOR_FILE = "shape_predictor_68_face_landmarks.dat"
CNN_FILE = "mmod_human_face_detector.dat"

# Centre (x, y) and side of the HOG detector's box in the canonical 128 px frame: medians over 79 faces of OMI and
# CelebAMask-HQ at 256 px (standard deviation 1.8, 5.4 and 5.0 px).
HOG_CENTRE_PX, HOG_SIDE_PX = np.array([61.8, 73.6]), 100.4
# The CNN detector's boxes against HOG's for the same face, medians over 92 faces: as fractions of the CNN box's side.
CNN_TO_HOG_SHIFT, CNN_TO_HOG_SCALE = np.array([0.01, 0.05]), 1.13
CNN_SMALLEST_PX = 64  # 12 still works, 5 fails
# The predictor reads single pixels around its points; below this box side they lie too close together.
PREDICTOR_BOX_PX = 150


def model_file(name: str) -> str:
    """Path of one of dlib's model files. Raises `BackendUnavailable` where it is missing."""
    return str(package_file(EXTRA, MODELS_PACKAGE, "models", name))


@lru_cache(maxsize=1)
def _predictor() -> Any:
    """The 68-point predictor, loaded once: its file has 100 MB."""
    import dlib

    return dlib.shape_predictor(model_file(PREDICTOR_FILE))


def hog_box(points: np.ndarray) -> np.ndarray:
    """The box dlib's HOG detector would draw around a face, the only shape its predictor was trained for.

    Args:
        points: (5, 2) or (68, 2) points of the face, pixels.

    Returns:
        (4,) float64 left, top, right, bottom.
    """
    matrix = to_canonical(points)
    centre = apply(invert(matrix), HOG_CENTRE_PX)
    half = HOG_SIDE_PX / np.hypot(matrix[0, 0], matrix[1, 0]) / 2
    return np.concatenate([centre - half, centre + half])


class DlibBackend:
    """Faces with 68 landmarks by dlib.

    HOG: Dalal and Triggs, CVPR 2005, as dlib trains it; near-frontal faces of 80 px and more; `det_score` is the margin
    of a linear classifier, 0 at the threshold, about 2 for an easy face. CNN: King, Max-Margin Object Detection,
    arXiv 1502.00046; turned faces too, slow on a CPU; `det_score` is about 1 for an easy face. Landmarks: Kazemi and
    Sullivan, CVPR 2014.

    Args:
        detector: "hog" or "cnn".
        upsample: enlarge the picture by this factor before detection, 1 to 8; HOG then finds canonical crops of about
            96 px divided by it (4 finds 24 px). The CNN's time and memory grow with its square.
        min_score: faces below it are left out; the detector's own scale.

    Raises:
        BackendUnavailable: a package or model file is missing.
        ValueError: an option is out of range.
    """

    def __init__(self, *, detector: Literal["hog", "cnn"] = "hog", upsample: float = 2, min_score: float = 0.0) -> None:
        if detector not in ("hog", "cnn"):
            raise ValueError(f"dlib has the detectors hog and cnn, not {detector!r}")
        self.detector, self.upsample, self.min_score = detector, check_upsample(upsample), min_score
        self.files()
        import dlib

        self._dlib: Any = dlib
        self._detect: Any = (
            dlib.get_frontal_face_detector()
            if detector == "hog"
            else dlib.cnn_face_detection_model_v1(model_file(CNN_FILE))
        )
        self._predict = _predictor()

    @classmethod
    def files(cls) -> list[Path]:
        """The model files. Raises `BackendUnavailable` where dlib or one of them is missing. Loads nothing."""
        require_packages(EXTRA, "dlib", MODELS_PACKAGE)
        return [Path(model_file(name)) for name in (PREDICTOR_FILE, CNN_FILE)]

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of `image`, (H, W, 3) uint8 RGB, with 68 landmarks, the surest first."""
        check_picture(image)
        large, factors = enlarge(image, self.upsample)
        faces = []
        for rectangle, score in self._rectangles(np.ascontiguousarray(large)):
            if score < self.min_score:
                continue
            corners = np.array(
                [
                    (rectangle.left() - 0.5, rectangle.top() - 0.5),
                    (rectangle.right() + 0.5, rectangle.bottom() + 0.5),
                ]
            )
            box = from_enlarged(corners, factors).ravel()
            points = self._refined(image, box) if self.detector == "cnn" else self.landmarks_in(image, box)
            faces.append(Face(box.astype(np.float32), five_points(points), score, points))
        return sorted(faces, key=lambda face: -face.det_score)

    def landmarks_in(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(68, 2) float32 points in `box` (4,), which should be shaped as `hog_box` says.

        Small boxes are cut out and enlarged first.
        """
        check_picture(image)
        edges = check_box(box)
        cut, offset = cut_around(image, edges)
        cut, factors = enlarge(cut, max(1.0, PREDICTOR_BOX_PX / max(1.0, float((edges[2:] - edges[:2]).max()))))
        inner = to_enlarged(edges.reshape(2, 2) - offset, factors)
        (x0, y0), (x1, y1) = np.round(inner[0] + 0.5).astype(int), np.round(inner[1] - 0.5).astype(int)
        shape = self._predict(np.ascontiguousarray(cut), self._dlib.rectangle(int(x0), int(y0), int(x1), int(y1)))
        points = np.array([(shape.part(i).x, shape.part(i).y) for i in range(POINT_COUNT)], np.float64)
        return (from_enlarged(points, factors) + offset).astype(np.float32)

    def _rectangles(self, image: np.ndarray) -> list[tuple[Any, float]]:
        """dlib rectangles and scores of one picture."""
        if self.detector == "cnn":
            # The network's filters do not fit into the smallest pictures; borders added below and right move no box.
            bottom, right = (max(0, CNN_SMALLEST_PX - side) for side in image.shape[:2])
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            return [(found.rect, found.confidence) for found in self._detect(image, 0)]
        rectangles, scores, _ = self._detect.run(image, 0, self.min_score)
        return list(zip(rectangles, scores, strict=True))

    def _refined(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Landmarks in a CNN box: first in the box moved to where HOG's would be, then in the box those points ask for.

        Over 180 faces the 95th percentile of the error is 4.3 % of the inter-ocular distance so, as with the box of
        the true points; 7.2 % in the bare CNN box.
        """
        side = box[2:] - box[:2]
        centre = (box[2:] + box[:2]) / 2 + CNN_TO_HOG_SHIFT * side
        half = CNN_TO_HOG_SCALE * side / 2
        first = self.landmarks_in(image, np.concatenate([centre - half, centre + half]))
        return self.landmarks_in(image, hog_box(first))
