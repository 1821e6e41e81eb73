"""The iBUG 68-point scheme and the five points that fix a face's pose."""

import numpy as np

POINT_COUNT = 68

# Index ranges of the iBUG order. "right" is the subject's right, which lies on the left of the picture.
JAW = range(0, 17)
RIGHT_BROW = range(17, 22)
LEFT_BROW = range(22, 27)
NOSE_BRIDGE = range(27, 31)
NOSE_BASE = range(31, 36)
RIGHT_EYE = range(36, 42)
LEFT_EYE = range(42, 48)
OUTER_LIP = range(48, 60)
INNER_LIP = range(60, 68)

NOSE_TIP, RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER = 30, 48, 54

# Where each point goes when the picture is mirrored left to right.
MIRROR = np.array(
    [*range(16, -1, -1)]
    + [*range(26, 16, -1)]
    + [27, 28, 29, 30]
    + [35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46]
    + [39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48]
    + [59, 58, 57, 56, 55]
    + [64, 63, 62, 61, 60]
    + [67, 66, 65]
)


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Reduce 68 points to eye centres, nose tip and mouth corners.

    Args:
        landmarks: (..., 68, 2) points, (x, y) in pixels.

    Returns:
        (..., 5, 2) in the order of `alignment.CANONICAL_FIVE_POINTS`: the eye on the picture's left first.
    """
    return np.stack(
        [
            landmarks[..., list(RIGHT_EYE), :].mean(-2),
            landmarks[..., list(LEFT_EYE), :].mean(-2),
            landmarks[..., NOSE_TIP, :],
            landmarks[..., RIGHT_MOUTH_CORNER, :],
            landmarks[..., LEFT_MOUTH_CORNER, :],
        ],
        axis=-2,
    )


def inter_ocular_px(landmarks: np.ndarray) -> np.ndarray:
    """Distance between the outer eye corners (points 36 and 45), in pixels: the unit of `nme`. Shape (...)."""
    return np.linalg.norm(landmarks[..., 45, :] - landmarks[..., 36, :], axis=-1)
