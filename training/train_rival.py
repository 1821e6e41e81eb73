"""Train a generic network as a rival of the restorer: `train -c configs/train/rival_rcan.yaml` and its like.

A rival gets the very samples of the restorer, in the same order, with the same losses of the picture (`distortion`) and
optimiser, for the minutes that its YAML states; it does not get the restorer's priors and the losses of networks that
know faces. `configs/train/rival_prouigan.yaml` trains the restorer for as long, from zero. An `inpainter` learns the
other half of the two-step rivals, by pixel loss: to fill the covered part of a thumbnail, or of one enlarged to 128 px.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stages.networks import NETWORKS
from stages.networks.super_resolution import Inpainter
from training import losses
from training.config import load_training
from training.loop import LoopConfig, train
from training.restorer_samples import FRAME, FaceSamples, ProUiganTraining

TOUCHED = 0.01  # share of a thumbnail's pixel under the occluder from which it counts as lost


class RivalTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    restorer: Path  # training YAML of the restorer: data, shares, degradation and seed of the samples come from it
    architecture: Literal["plain", "rcan", "swinir", "rrdb", "inpainter"]
    network: dict[str, Any] = Field(default_factory=dict)  # arguments of the architecture
    side: Literal[16, 128] = 128  # px; an inpainter works on the thumbnail, or on its bicubic enlargement
    loop: LoopConfig


class RivalTask(FaceSamples):
    """Losses of a network that knows no faces, on the samples of the restorer."""

    def __init__(self, config: RivalTraining) -> None:
        super().__init__(load_training(ProUiganTraining, config.restorer)[0])
        self.rival = config
        self.network: nn.Module = NETWORKS[config.architecture](**config.network)
        self.others = {}

    def _hole(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, 1, side, side): 1 where the occluder touches the thumbnail's pixel."""
        hole = (batch["mask_lq"] > TOUCHED).float()
        return hole if self.rival.side == hole.shape[-1] else F.interpolate(hole, size=(FRAME, FRAME), mode="nearest")

    def _answer(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(B, 3, 128, 128), or of the inpainter's side."""
        lq = batch["lq"].contiguous(memory_format=torch.channels_last)
        if not isinstance(network, Inpainter):
            return network(lq)
        return network(lq if self.rival.side == lq.shape[-1] else enlarged(lq), self._hole(batch))

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        found = self._answer(self.network, batch)
        if self.rival.architecture != "inpainter":
            total, parts = self.distortion(found, batch)
            return total, {k: v.detach() for k, v in parts.items()}
        cell = FRAME // self.rival.side
        truth, weight = (F.avg_pool2d(x, cell) for x in (batch["gt"].float() / 255, self._weights(batch)))
        total = losses.pixel_loss(found, truth, weight * self._hole(batch))
        return total, {"pixel": total.detach()}

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Gain of PSNR over bicubic on held-out faces, by set, clean and covered; of inpainters, within the hole."""
        held, device = self._held_out(), next(network.parameters()).device
        tags = np.array(self._tags)
        inpaints = self.rival.architecture == "inpainter"
        cell = FRAME // self.rival.side if inpaints else 1
        rows = [i for i, tag in enumerate(tags) if tag.endswith("covered") or (tag.endswith("clean") and not inpaints)]
        gains: dict[str, list[float]] = {}
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            batch = {k: held[k][part].to(device) for k in ("lq", "mask_lq", "gt")}
            with self.rival.loop.autocast():
                found = self._answer(network, batch).float().clamp(0, 1)
            plain = batch["lq"] if found.shape[-1] == batch["lq"].shape[-1] else enlarged(batch["lq"]).clamp(0, 1)
            truth = F.avg_pool2d(batch["gt"].float() / 255, cell)
            region = self._hole(batch) if inpaints else torch.ones_like(truth[:, :1])
            errors = [((x - truth).square().mean(1, keepdim=True) * region).sum((1, 2, 3)) for x in (found, plain)]
            gain = 10 * torch.log10(errors[1].clamp_min(1e-8) / errors[0].clamp_min(1e-8))
            for i, value in zip(part, gain.tolist(), strict=True):
                gains.setdefault(f"gain_{tags[i]}", []).append(value)
        return {k: round(float(np.mean(v)), 4) for k, v in gains.items()}


def enlarged(lq: Tensor) -> Tensor:
    """Bicubic enlargement of (B, 3, n, n) to 128 px."""
    return F.interpolate(lq, size=(FRAME, FRAME), mode="bicubic", align_corners=False)


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but the run folder."""
    config, record = load_training(RivalTraining, config_path, dry_run)
    samples = load_training(ProUiganTraining, config.restorer)[1]
    record |= {k: samples[k] for k in ("data", "covered_data")} | {"restorer": config.restorer.name}
    return train(lambda: RivalTask(config), config.loop, record, resume)
