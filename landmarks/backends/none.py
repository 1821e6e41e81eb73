"""No detector: the picture already is a face crop, as CCTV thumbnails are."""

from pathlib import Path

import numpy as np

from landmarks.alignment import CANONICAL_FIVE_POINTS, CANONICAL_SIZE
from landmarks.backends.base import Face, check_picture


class NoDetector:
    """Takes the whole picture as one face in roughly the canonical framing. Finds, and rejects, nothing.

    `kps` are the canonical five points scaled to the picture: where they would be, not where they were seen.
    `det_score` is 1: the caller's word that this is a face.
    """

    @classmethod
    def files(cls) -> list[Path]:
        """Nothing is needed."""
        return []

    def detect(self, image: np.ndarray) -> list[Face]:
        """One face as large as `image`, (H, W, 3) uint8 RGB; no landmarks."""
        check_picture(image)
        height, width = image.shape[:2]
        factors = np.array([width, height]) / CANONICAL_SIZE
        kps = (CANONICAL_FIVE_POINTS + 0.5) * factors - 0.5
        bbox = np.array([-0.5, -0.5, width - 0.5, height - 0.5], np.float32)
        return [Face(bbox, kps.astype(np.float32), 1.0)]
