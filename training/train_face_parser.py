"""Train the face parser on CelebAMask-HQ faces in the canonical frame: `train -c configs/train/face_parser.yaml`."""

import io
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from landmarks.alignment import canonical_points, similarity
from landmarks.scheme import five_points
from stages.luma import LUMA
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from training.config import arguments_of, load_training
from training.loop import LoopConfig, Task, rng_of, train
from training.parsing_labels import MIRRORED
from training.sources import held_out

# Colours of the sample grid, one per class.
PALETTE = np.random.default_rng(7).integers(40, 255, (len(PARSING_CLASSES), 3), dtype=np.uint8)
STORE = 256  # px side the faces are kept at, with a margin of 25 %


class FaceParserTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    data: Path  # Parquet with image, landmarks and mask columns
    network: Annotated[dict[str, Any], arguments_of(FaceParser)] = Field(default_factory=dict)
    frame: int = 128  # px
    loop: LoopConfig


def read_faces(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (N, 256, 256, 3), class maps (N, 256, 256), validation flags (N,), ids (N,); frame of 204.8 px."""
    import pyarrow.parquet as pq

    pictures, maps, ids = [], [], []
    frame = STORE / 1.25
    for row in pq.read_table(path, columns=["id", "image", "landmarks", "mask"]).to_pylist():
        points = np.asarray(row["landmarks"], np.float64).reshape(68, 2)
        matrix = similarity(five_points(points), canonical_points(int(frame)) + (STORE - frame) / 2)
        picture = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        classes = np.asarray(Image.open(io.BytesIO(row["mask"])))
        if classes.shape != picture.shape[:2]:
            classes = cv2.resize(classes, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        # Reflection as everywhere: the parser must bear the frame running over the picture's edge.
        pictures.append(
            cv2.warpAffine(picture, matrix, (STORE, STORE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
        )
        maps.append(
            cv2.warpAffine(classes, matrix, (STORE, STORE), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
        )
        ids.append(str(row["id"]))
    return np.stack(pictures), np.stack(maps), held_out(np.array(ids), np.full(len(ids), path.stem)), np.array(ids)


class FaceParserTask(Task):
    """Cross entropy plus soft Dice over heavily varied faces: the parser later labels pictures of any camera."""

    def __init__(self, config: FaceParserTraining) -> None:
        self.config = config
        self.network: nn.Module = FaceParser(**config.network)
        self.others = {}
        self.pictures, self.maps, validation, _ = read_faces(config.data)
        self.train, self.held = np.flatnonzero(~validation), np.flatnonzero(validation)
        counts = np.bincount(self.maps[self.train].ravel(), minlength=len(PARSING_CLASSES))
        share = np.maximum(counts / counts.sum(), 1e-4)
        self.weights = torch.tensor((share**-0.25) / (share**-0.25).mean(), dtype=torch.float32)

    def trained_sets(self) -> np.ndarray:
        return np.full(len(self.train), self.config.data.stem)

    def _cut(self, index: int, scale: float, angle_deg: float, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.frame
        matrix = cv2.getRotationMatrix2D(((STORE - 1) / 2, (STORE - 1) / 2), angle_deg, scale * size / (STORE / 1.25))
        matrix[:, 2] = matrix[:, 2] + (size - STORE) / 2 + shift
        border = cv2.BORDER_REFLECT_101
        picture = cv2.warpAffine(self.pictures[index], matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
        return picture, cv2.warpAffine(
            self.maps[index], matrix, (size, size), flags=cv2.INTER_NEAREST, borderMode=border
        )

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng = rng_of(self.config.loop.seed, index)
        scale, angle = float(np.exp(rng.normal(0, 0.1))), float(rng.normal(0, 8))
        picture, classes = self._cut(int(rng.choice(self.train)), scale, angle, rng.normal(0, 4, 2))
        if rng.random() < 0.5:
            picture, classes = picture[:, ::-1], MIRRORED[classes[:, ::-1]]
        image: np.ndarray = picture.astype(np.float32) / 255
        image = np.clip(image, 0, 1) ** float(np.exp(rng.normal(0, 0.3)))
        image = image * rng.uniform(0.7, 1.2) * rng.uniform(0.88, 1.12, 3) + rng.normal(0, 0.05)
        if rng.random() < 0.3:
            image = np.repeat(image @ np.array(LUMA, np.float32)[:, None], 3, axis=2)
        if rng.random() < 0.4:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 2.5)))
        if rng.random() < 0.3:
            image = image + rng.normal(0, rng.uniform(0.01, 0.06), image.shape)
        image = np.clip(image, 0, 1).astype(np.float32).transpose(2, 0, 1)
        return {"image": np.ascontiguousarray(image), "classes": np.ascontiguousarray(classes).astype(np.int64)}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        logits = self.network(batch["image"].contiguous(memory_format=torch.channels_last)).float()
        entropy = F.cross_entropy(logits, batch["classes"], self.weights, label_smoothing=0.02)
        probability = torch.softmax(logits, 1)
        truth = F.one_hot(batch["classes"], logits.shape[1]).permute(0, 3, 1, 2).float()
        shared = (probability * truth).sum((0, 2, 3))
        dice = 1 - (2 * shared + 1) / (probability.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
        present = (truth.sum((0, 2, 3)) > 0).float()
        dice_mean = (dice * present).sum() / present.sum()
        return entropy + 0.5 * dice_mean, {"entropy": entropy.detach(), "dice": dice_mean.detach()}

    def _held_out(self) -> tuple[Tensor, np.ndarray]:
        cut = [self._cut(int(i), 1.0, 0.0, np.zeros(2)) for i in self.held]
        images = torch.from_numpy(np.stack([c[0] for c in cut]).astype(np.float32).transpose(0, 3, 1, 2) / 255)
        return images, np.stack([c[1] for c in cut])

    @torch.inference_mode()
    def _predict(self, network: nn.Module, images: Tensor) -> np.ndarray:
        device = next(network.parameters()).device
        return np.concatenate([network(part.to(device)).argmax(1).cpu().numpy() for part in images.split(16)])

    def validate(self, network: nn.Module) -> dict[str, float]:
        if not len(self.held):
            return {}
        images, truth = self._held_out()
        found = self._predict(network, images)
        scores = {}
        for number, name in enumerate(PARSING_CLASSES):
            union = ((found == number) | (truth == number)).sum()
            if (truth == number).sum() > 200:
                scores[f"iou_{name}"] = float(((found == number) & (truth == number)).sum() / union)
        return {"miou": float(np.mean(list(scores.values()))), "accuracy": float((found == truth).mean())} | scores

    def grid(self, network: nn.Module) -> np.ndarray | None:
        if not len(self.held):
            return None
        images, truth = self._held_out()
        images, truth = images[:12], truth[:12]
        found = self._predict(network, images)
        pictures = (images.numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        rows = [np.concatenate(list(x), 1) for x in (pictures, PALETTE[found], PALETTE[truth])]
        return np.concatenate(rows)


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(FaceParserTraining, config_path, dry_run)
    return train(lambda: FaceParserTask(config), config.loop, record, resume)
