"""The canonical face frame: a similarity transform that puts five points of a face where every network expects them."""

import cv2
import numpy as np

from landmarks.scheme import five_points

CANONICAL_SIZE = 128
# Eye centres, nose tip, mouth corners at 128x128 (x, y); the eye on the picture's left first. Other sizes scale these.
CANONICAL_FIVE_POINTS = np.array([(43, 50), (85, 50), (64, 75), (46, 94), (82, 94)], dtype=np.float64)


def canonical_points(size: int) -> np.ndarray:
    """The five canonical points of a square frame of `size` pixels, (5, 2) float64.

    Scaling keeps pixel centres at integer coordinates: the frame's edges lie at -0.5 and size - 0.5.
    """
    return (CANONICAL_FIVE_POINTS + 0.5) * (size / CANONICAL_SIZE) - 0.5


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, uniform scale and shift that takes `source` points to `target` points.

    Args:
        source, target: (N, 2) points, N >= 2.

    Returns:
        (2, 3) float64 matrix M with target ~ M @ (x, y, 1). No reflection.

    Raises:
        ValueError: all source points coincide, so no scale exists.

    Method: the closed form in complex numbers, equal to Umeyama, TPAMI 1991, for rotations in the plane.
    """
    p = source[:, 0] + 1j * source[:, 1]
    q = target[:, 0] + 1j * target[:, 1]
    p_centred = p - p.mean()
    spread = float((abs(p_centred) ** 2).sum())
    if spread < 1e-12:
        raise ValueError("cannot align: all source points coincide")
    factor = (np.conj(p_centred) * (q - q.mean())).sum() / spread
    shift = q.mean() - factor * p.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def to_canonical(landmarks: np.ndarray, size: int = CANONICAL_SIZE) -> np.ndarray:
    """(2, 3) matrix from picture pixels to the canonical frame of `size`, for (68, 2) or (5, 2) landmarks."""
    points = landmarks if landmarks.shape[-2] == 5 else five_points(landmarks)
    return similarity(np.asarray(points, np.float64), canonical_points(size))


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a (2, 3) affine matrix."""
    return cv2.invertAffineTransform(np.asarray(matrix, np.float64))


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (..., 2) points through a (2, 3) affine matrix."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Resample `image` (H, W[, C]) into a square frame of `size` px; `matrix` maps picture to frame; borders reflect.

    Where the frame is coarser than the picture, the picture is blurred first, so that nothing aliases.
    """
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        # A Gaussian of half the step beyond Nyquist: the usual antialias width for bilinear resampling.
        image = cv2.GaussianBlur(
            image, (0, 0), 0.5 * np.sqrt(1 / scale**2 - 1) + 1e-6, borderType=cv2.BORDER_REFLECT_101
        )
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
