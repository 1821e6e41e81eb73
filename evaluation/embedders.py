"""Networks that judge faces: identity embedders behind one interface, and a classifier of covered faces.

Each embedder says whether it had a part in training.

An embedder sees every variant of a face (original, bicubic, restored) through the same five points, those of the
original: what is compared is the picture, not how well a detector does on it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
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


class CoverClassifier(nn.Module):
    """Says whether a small picture shows a covered face: (B, 3, s, s) in [0, 1] to (B,) logits. s is 16 or 64."""

    def __init__(self, size: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()] if size > 16 else []
        self.body = nn.Sequential(
            *stem, nn.Conv2d(32 if stem else 3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(64, 96, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * 2 - 1)[:, 0]


def _small(images: Sequence[np.ndarray], size: int) -> Tensor:
    """uint8 RGB pictures -> (B, 3, size, size) in [0, 1], by area averaging."""
    stack = np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA) for i in images])
    return torch.from_numpy(stack.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def _vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, shift, tint, grey and blur training pictures: restored ones are softer than any photograph."""

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    size = x.shape[-1]
    x = x.flip(3) if chance() < 0.5 else x
    pad = max(size // 12, 1)
    dy, dx = (int(torch.randint(0, 2 * pad + 1, (), generator=generator)) for _ in range(2))
    x = functional.pad(x, (pad,) * 4, mode="reflect")[..., dy : dy + size, dx : dx + size]
    x = x * (0.8 + 0.4 * torch.rand(len(x), 3 if chance() < 0.5 else 1, 1, 1, generator=generator))
    x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1) if chance() < 0.2 else x
    if size > 16 and chance() < 0.7:
        coarse = int(torch.randint(12, 48, (), generator=generator))
        small = functional.interpolate(x, size=(coarse, coarse), mode="area")
        x = functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    return x.clamp(0, 1)


def train_cover_classifier(
    covered: Sequence[np.ndarray], bare: Sequence[np.ndarray], size: int, steps: int = 800, seed: int = 0
) -> CoverClassifier:
    """Train on equal shares of both kinds, AdamW, one cycle of learning rate; the same inputs give the same network."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sides = _small(covered, size), _small(bare, size)
    network, half = CoverClassifier(size), 32
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    target = torch.cat([torch.ones(half), torch.zeros(half)])
    for _ in range(steps):
        drawn = [side[torch.randint(0, len(side), (half,), generator=generator)] for side in sides]
        loss = functional.binary_cross_entropy_with_logits(network(_vary(torch.cat(drawn), generator)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def called_covered(network: CoverClassifier, images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(N,) bool: the classifier's answer for uint8 pictures of any size, brought to its own by area averaging."""
    parts = [images[start : start + 256] for start in range(0, len(images), 256)]
    return np.concatenate([(network(_small(part, size)) > 0).numpy() for part in parts])


def cover_classifier(
    covered: Sequence[np.ndarray], bare: Sequence[np.ndarray], size: int, folder: Path, steps: int = 800
) -> CoverClassifier:
    """The trained classifier: read from `folder` if trained on the same pictures before, else trained and kept."""
    content = hashlib.sha256(f"{size} {steps} {torch.__version__}".encode())
    for kind in (covered, bare):
        for image in [*kind, np.zeros(1, np.uint8)]:  # the zero marks where one kind ends
            content.update(image.tobytes())
    path = folder / f"cover_classifier_{size}_{content.hexdigest()[:16]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(train_cover_classifier(covered, bare, size, steps).state_dict(), path)
    network = CoverClassifier(size)
    network.load_state_dict(load_file(path))
    return network.eval()
