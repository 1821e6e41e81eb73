"""dlib's 128-number face descriptor: an embedder for evaluation, and the teacher of our identity network.

A metric learned so that two pictures of one person lie within a Euclidean distance of about 0.6; ResNet of 29
convolutions by D. King, trained without the identities of LFW (0.9938 accuracy there, by its author). Networks
distilled from it appear in the training losses, so it is a relative of what it judges: the number that counts is
another embedder's.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from landmarks.backends.base import check_picture, cut_around, enlarge, to_enlarged
from landmarks.backends.dlib import DlibBackend, model_file
from landmarks.scheme import POINT_COUNT, inter_ocular_px

DESCRIPTOR_SIZE = 128
RECOGNISER_FILE = "dlib_face_recognition_resnet_model_v1.dat"
# dlib cuts the face out by points rounded to whole pixels, so a smaller face is enlarged first, to this distance
# between the outer eye corners. Distance from the descriptor of the 160 px original, 12 UTKFace faces at 128 px:
# 0.028 so, 0.032 with 100 px, 0.049 without enlarging (0.6 separates people).
FINE_INTER_OCULAR_PX = 200


@lru_cache(maxsize=1)
def _recogniser() -> Any:
    """The ResNet, loaded once. Raises `BackendUnavailable` where dlib or the file is missing."""
    DlibBackend.files()
    import dlib

    return dlib.face_recognition_model_v1(model_file(RECOGNISER_FILE))


@lru_cache(maxsize=1)
def _detector() -> DlibBackend:
    return DlibBackend(upsample=2)


def dlib_descriptor(image: np.ndarray, landmarks: np.ndarray | None = None) -> np.ndarray | None:
    """Descriptor of one face.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) points of the face in pixels; without them the surest face dlib finds is taken.

    Returns:
        (128,) float32, not normalised, to be compared by Euclidean distance; None where there is no face: none was
        found, or the points are not finite or all in one place.

    Raises:
        BackendUnavailable: dlib or its model files are missing; the message names the extra.
        ValueError: picture or points have another shape.
    """
    check_picture(image)
    if landmarks is None:
        faces = _detector().detect(image)
        if not faces or faces[0].landmarks is None:
            return None
        landmarks = faces[0].landmarks
    if landmarks.shape != (POINT_COUNT, 2):
        raise ValueError(f"expected (68, 2) landmarks, got {landmarks.shape}")
    if not np.isfinite(landmarks).all() or inter_ocular_px(landmarks) < 1:
        return None
    recogniser = _recogniser()
    import dlib

    cut, offset = cut_around(image, np.concatenate([landmarks.min(axis=0), landmarks.max(axis=0)]))
    large, factors = enlarge(cut, max(1.0, FINE_INTER_OCULAR_PX / float(inter_ocular_px(landmarks))))
    points = np.round(to_enlarged(landmarks.astype(np.float64) - offset, factors)).astype(int)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    shape = dlib.full_object_detection(
        dlib.rectangle(int(left), int(top), int(right), int(bottom)), [dlib.point(int(x), int(y)) for x, y in points]
    )
    return np.array(recogniser.compute_face_descriptor(np.ascontiguousarray(large), shape), np.float32)


class DlibEmbedder:
    """The descriptor as an `evaluation.embedders.Embedder`; rows are brought to unit length."""

    name = "dlib"
    in_training = "teacher of the identity network"

    def __call__(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 128) float32 unit rows from N uint8 RGB (H, W, 3) pictures and their (68, 2) points in px.

        Raises:
            ValueError: points that are no face's.
        """
        rows = np.empty((len(images), DESCRIPTOR_SIZE), np.float32)
        for i, (image, points) in enumerate(zip(images, landmarks, strict=True)):
            vector = dlib_descriptor(image, points)
            if vector is None:
                raise ValueError(f"dlib embedder: the points of face {i} are not finite or coincide")
            rows[i] = vector / np.linalg.norm(vector)
        return rows
