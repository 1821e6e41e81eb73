"""A small classifier that says whether a picture shows a covered face, trained where it is needed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


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
