"""Identity embedders behind one interface; each says whether it had a part in training.

An embedder sees every variant of a face (original, bicubic, restored) through the same five points, those of the
original: what is compared is the picture, not how well a detector does on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.nn import functional

from landmarks.alignment import CANONICAL_SIZE, canonical_points, similarity
from landmarks.scheme import five_points
from stages.networks.identity import IdentityNet
from stages.weights import load_network

# Where the five points (eye centres, nose tip, mouth corners; the eye on the picture's left first) go, (x, y) px.
# 112x112: the template of ArcFace (Deng et al., CVPR 2019). 112x96: of SphereFace (Liu et al., CVPR 2017),
# 8 px narrower on each side.
_ARCFACE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
Template = tuple[np.ndarray, tuple[int, int]]  # (5, 2) points px, (height, width)
TEMPLATES: dict[str, Template] = {
    "arcface-112": (_ARCFACE, (112, 112)),
    "sphereface-112x96": (_ARCFACE - (8, 0), (112, 96)),
}


class Embedder(Protocol):
    """Takes faces to vectors that are near for one person.

    Attributes:
        name: for tables. in_training: what part it, or a relative, had in training; "none" for an independent judge.
    """

    name: str
    in_training: str

    def __call__(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D) float32 unit rows from N uint8 RGB (H, W, 3) pictures and their (68, 2) or (5, 2) points in px."""
        ...


def crop_to_template(image: np.ndarray, landmarks: np.ndarray, template: Template) -> np.ndarray:
    """Cut the aligned crop of a template from a picture: uint8 RGB (height, width, 3); borders are reflected."""
    points, (height, width) = template
    five = landmarks if len(landmarks) == 5 else five_points(landmarks)
    matrix = similarity(np.asarray(five, np.float64), points)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


class OnnxEmbedder:
    """Any recogniser in an ONNX file with one input (B, 3, h, w) and one output (B, D).

    Args:
        path: the file. template: key of `TEMPLATES`, or points and size of another one.
        mean, scale: the network reads (x - mean) / scale, x in 0..255. bgr: it reads blue first.
        in_training: what part it had in training; only its user can know.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown template, no ONNX network, an input of another shape than the template, one that does not
            run on it, or an output that is not one vector a face.
    """

    def __init__(
        self, path: Path, template: str | Template = "sphereface-112x96", mean: float = 127.5, scale: float = 128.0,
        in_training: str = "none", threads: int = 0, bgr: bool = False, name: str | None = None,
    ) -> None:  # fmt: skip
        import onnxruntime  # an extra: only those who measure identity need it

        if not path.is_file():
            raise FileNotFoundError(f"embedder: {path} does not exist")
        if isinstance(template, str) and template not in TEMPLATES:
            raise ValueError(f"embedder: unknown template {template!r}; known: {', '.join(TEMPLATES)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: all cores
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own exception types, none of them public
            raise ValueError(f"embedder: {path} is no network that ONNX Runtime can run: {error}") from error
        self.path, self.name, self.mean, self.scale, self.bgr = path, name or path.stem, mean, scale, bgr
        self.in_training, self.template = in_training, TEMPLATES[template] if isinstance(template, str) else template
        expected, node = [3, *self.template[1]], self.session.get_inputs()[0]
        if len(node.shape) != 4 or any(
            isinstance(a, int) and a != b for a, b in zip(node.shape[1:], expected, strict=True)
        ):
            label = template if isinstance(template, str) else "of the configuration"
            raise ValueError(f"embedder: {path} reads {node.shape}, the template {label} gives (batch, {expected})")
        self.input = node.name
        self.batch = node.shape[0] if isinstance(node.shape[0], int) else 64
        found = self._run(np.zeros((self.batch, *expected), np.float32))
        if found.ndim != 2 or len(found) != self.batch:
            raise ValueError(
                f"embedder: {path} gives {list(found.shape)} for {self.batch} faces; expected one vector a face, "
                f"[{self.batch}, D]"
            )
        self.size = int(found.shape[1])

    def _run(self, tensor: np.ndarray) -> np.ndarray:
        """The first output for (B, 3, h, w) float32."""
        try:
            return np.asarray(self.session.run(None, {self.input: tensor})[0])
        except Exception as error:  # as above
            raise ValueError(f"embedder: {self.path} does not run on {list(tensor.shape)}: {error}") from error

    def __call__(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
        rows = [np.empty((0, self.size), np.float32)]
        for start in range(0, len(images), self.batch):
            part = zip(images[start : start + self.batch], landmarks[start : start + self.batch], strict=True)
            crops = np.stack([crop_to_template(image, points, self.template) for image, points in part])
            crops = crops[..., ::-1] if self.bgr else crops
            tensor = (crops.transpose(0, 3, 1, 2).astype(np.float32) - self.mean) / self.scale
            missing = self.batch - len(tensor) if isinstance(self.session.get_inputs()[0].shape[0], int) else 0
            padded = np.concatenate([tensor, np.zeros((missing, *tensor.shape[1:]), np.float32)])
            rows.append(self._run(padded)[: len(tensor)])
        vectors = np.concatenate(rows)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class WeightsEmbedder:
    """The identity network of a card in `weights/`: it is in our own training loss, so it shows rather than judges.

    Raises:
        WeightsError: card or file missing or damaged.
        ValueError: the card is of another kind of network.
    """

    def __init__(self, name: str = "identity") -> None:
        network = load_network(name, torch.device("cpu"))
        if not isinstance(network, IdentityNet):
            raise ValueError(f"embedder: weights:{name} holds a {type(network).__name__}, not an identity network")
        self.network, self.name, self.in_training = network, f"weights:{name}", "yes: its features are a training loss"
        self.template = (canonical_points(CANONICAL_SIZE), (CANONICAL_SIZE, CANONICAL_SIZE))

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> np.ndarray:
        rows = [torch.empty(0, self.network.head.out_features)]
        for start in range(0, len(images), 16):
            part = zip(images[start : start + 16], landmarks[start : start + 16], strict=True)
            crops = np.stack([crop_to_template(image, points, self.template) for image, points in part])
            tensor = torch.from_numpy(crops.transpose(0, 3, 1, 2).astype(np.float32) / 255)
            rows.append(functional.normalize(self.network(tensor)))
        return torch.cat(rows).numpy()
