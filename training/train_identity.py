"""Distil dlib's face descriptor into a small differentiable network: `train -c configs/train/identity.yaml`.

The network serves the identity and perceptual losses of the restorer. As dlib is its teacher, dlib is a relative of the
loss; numbers of recognition that count come from an embedder that had no part in training.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stages.networks.identity import IdentityNet
from training.config import TrainingError, arguments_of, load_training
from training.faces import MARGIN, build_pack, varied_face
from training.loop import LoopConfig, Task, rng_of, train


class IdentityTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    data: list[Path]
    pack: Path
    network: Annotated[dict[str, Any], arguments_of(IdentityNet)] = Field(default_factory=dict)
    blur_share: float = Field(default=0.5, ge=0, le=1)  # samples shown at lower resolution
    loop: LoopConfig


class IdentityTask(Task):
    """Cosine and squared error to the teacher's descriptor less its mean over the training faces."""

    def __init__(self, config: IdentityTraining) -> None:
        self.config = config
        self.network: nn.Module = IdentityNet(**config.network)
        self.others = {}
        self.pack = build_pack(config.data, config.pack)
        known = np.isfinite(self.pack.descriptor[:, 0])
        self.train = np.flatnonzero(known & ~self.pack.validation)
        self.held = np.flatnonzero(known & self.pack.validation)
        if not len(self.train):
            raise TrainingError("no face to train on: none of a Parquet file that has the column descriptor")
        self.mean = self.pack.descriptor[self.train].mean(0)
        self.scale = float(self.pack.descriptor[self.train].std())

    def _frame(self, index: int) -> np.ndarray:
        return self.pack.images[index][MARGIN:-MARGIN, MARGIN:-MARGIN]

    def trained_sets(self) -> np.ndarray:
        return self.pack.sets[self.train]

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng = rng_of(self.config.loop.seed, index)
        face = int(rng.choice(self.train))
        image = varied_face(self.pack.images[face], rng, self.config.blur_share)
        target = (self.pack.descriptor[face] - self.mean) / self.scale
        return {"image": image, "target": target.astype(np.float32)}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        found = self.network(batch["image"].contiguous(memory_format=torch.channels_last))
        cosine = F.cosine_similarity(found, batch["target"]).mean()
        squared = F.mse_loss(found, batch["target"])
        return squared + 2 * (1 - cosine), {"cosine": cosine.detach(), "squared": squared.detach()}

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        scores: dict[str, float] = {}
        for name in np.unique(self.pack.sets[self.held]):
            chosen = self.held[self.pack.sets[self.held] == name][:256]
            images = torch.from_numpy(
                np.stack([self._frame(i) for i in chosen]).astype(np.float32).transpose(0, 3, 1, 2) / 255
            )
            found = torch.cat([network(part.to(device)).cpu() for part in images.split(64)])
            target = torch.from_numpy((self.pack.descriptor[chosen] - self.mean) / self.scale)
            scores[f"cosine_{name}"] = float(F.cosine_similarity(found, target.float()).mean())
        return scores


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(IdentityTraining, config_path, dry_run)
    return train(lambda: IdentityTask(config), config.loop, record, resume)
