"""What every detector back end offers: faces of a picture as boxes, five points and, where it can, 68 points."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np


class BackendUnavailable(RuntimeError):
    """A back end cannot work on this machine: a package or a model file is missing. The message says what to do."""


@dataclass(frozen=True)
class Face:
    """One face of a picture, in that picture's pixels (pixel centres at integers).

    Attributes:
        bbox: (4,) float32 left, top, right, bottom edges; the whole picture is (-0.5, -0.5, W - 0.5, H - 0.5). A face
            cut by the border may reach beyond it.
        kps: (5, 2) float32 eye centres, nose tip, mouth corners, in the order of `alignment.CANONICAL_FIVE_POINTS`.
        det_score: confidence, higher is surer; its scale is the back end's own (see its class).
        landmarks: (68, 2) float32 iBUG points, or None where the back end finds only five.
    """

    bbox: np.ndarray
    kps: np.ndarray
    det_score: float
    landmarks: np.ndarray | None = None


@runtime_checkable
class Detector(Protocol):
    """Finds faces. Every back end of `landmarks.backends` is one."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of `image`, (H, W, 3) uint8 RGB, the surest first; an empty list where there is none.

        Raises:
            ValueError: the picture is not (H, W, 3) uint8.
        """
        ...


@runtime_checkable
class LandmarkDetector(Detector, Protocol):
    """A detector that also places 68 points in a box somebody else found."""

    def landmarks_in(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(68, 2) float32 points of the face in `box`, (4,) edges as in `Face.bbox`, of `image` (H, W, 3) uint8 RGB.

        There is always an answer: whether the box holds a face is not judged.

        Raises:
            ValueError: the picture is not (H, W, 3) uint8, or the box has no area.
        """
        ...


def check_picture(image: np.ndarray) -> None:
    """Raise `ValueError` unless `image` is a (H, W, 3) uint8 picture with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected a (H, W, 3) uint8 RGB picture, got shape {image.shape}, {image.dtype}")


def check_box(box: np.ndarray) -> np.ndarray:
    """`box` as (4,) float64 edges. Raises `ValueError` where it is not four finite numbers around some area."""
    edges = np.asarray(box, np.float64)
    if edges.shape != (4,) or not np.isfinite(edges).all() or (edges[2:] <= edges[:2]).any():
        raise ValueError(f"expected a box (left, top, right, bottom) with some area, got {np.asarray(box).tolist()}")
    return edges


def check_upsample(upsample: float) -> float:
    """`upsample` itself. Raises `ValueError` below 1 and above 8, where a face only grows smoother."""
    if not 1 <= upsample <= 8:
        raise ValueError(f"upsample must lie between 1 and 8, got {upsample}")
    return float(upsample)


def enlarge(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge `image` (H, W, 3) by cubic interpolation, for detectors that miss small faces.

    Returns:
        the picture of about factor H x factor W, and its true (x, y) factors (2,), which rounding makes differ.
    """
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    factors = np.array([size[0] / width, size[1] / height])
    if size == (width, height):
        return image, factors
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), factors


def from_enlarged(points: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Map (..., 2) points of an enlarged picture back to the picture it was made from: edges stay at -0.5."""
    return (points + 0.5) / factors - 0.5


def to_enlarged(points: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Map (..., 2) points of a picture to its enlarged copy."""
    return (points + 0.5) * factors - 0.5


def cut_around(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of `image` (H, W, 3) within one box side of `box` (4,), so that enlarging a small face stays cheap.

    Returns:
        a view of at least one pixel, and the (x, y) of its first pixel (2,).
    """
    side = float((box[2:] - box[:2]).max())
    last = np.array([image.shape[1], image.shape[0]]) - 1
    left, top = np.clip(np.floor(box[:2] - side), 0, last).astype(int)
    right, bottom = np.clip(np.ceil(box[2:] + side), 0, last).astype(int)
    return image[top : bottom + 1, left : right + 1], np.array([left, top])


def require_packages(extra: str, *modules: str) -> None:
    """Raise `BackendUnavailable`, naming the extra to install, unless all `modules` are installed. Imports none."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise BackendUnavailable(
            f"face detector {extra!r} needs the Python module{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f'install the extra: pip install "revisage[{extra}]"'
        )


def package_file(extra: str, package: str, *parts: str) -> Path:
    """A data file inside an installed package, found without importing the package.

    Raises:
        BackendUnavailable: the package or the file is not there; the message names the extra to install.
    """
    require_packages(extra, package)
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder, *parts)
        if path.is_file():
            return path
    raise BackendUnavailable(
        f"face detector {extra!r}: the package {package} at {', '.join(folders)} lacks its file {'/'.join(parts)}; "
        f'install it again: pip install --force-reinstall "revisage[{extra}]"'
    )
