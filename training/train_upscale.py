"""Train the upscaler: `train -c configs/train/upscale.yaml`, then `upscale_detail.yaml` on the finished trunk.

Phase `trunk` learns the answer with the smallest error; phase `detail` freezes it and trains the branch behind
`fidelity` 0 against a critic. Both are trained through the exact step: what is judged is what the stage would give.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from stages.consistency import agree, average_to
from stages.networks.identity import IdentityNet
from stages.networks.upscaler import SCALES, Upscaler
from stages.resample import resample
from training.config import TrainingError, arguments_of, load_training
from training.discriminators import PatchCritic, matching_loss
from training.hr_faces import HrPack, PackConfig, build_hr_pack, open_hr_pack
from training.loop import LoopConfig, Task, network_of, rng_of, train
from training.losses import feature_loss, hinge_fake, hinge_real, pixel_loss

LEVELS = 2  # of the features compared: edges and grain; deeper ones know faces at 128 px only


class UpscaleTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    phase: Literal["trunk", "detail"] = "trunk"
    start: str | None = None  # card of the network to go on from
    start_run: Path | None = None  # or the run folder of it; the detail phase needs one of the two
    faces: PackConfig
    network: Annotated[dict[str, Any], arguments_of(Upscaler)] = Field(default_factory=dict)
    set_factor: dict[str, float] = Field(default_factory=dict)  # how often faces of a set come, beside the others
    patch: int = Field(default=64, gt=0, multiple_of=16)  # px of the small side
    x4_share: float = Field(default=0.5, ge=0, le=1)  # batches enlarged four times; the others six times
    clean_share: float = Field(default=0.6, ge=0, le=1)  # samples averaged down and nothing else
    restored_share: float = Field(default=0.0, ge=0, le=1)  # detail phase: samples that are restored 16 px faces
    adversarial: float = Field(default=0.02, ge=0)
    matching: float = Field(default=1.0, ge=0)  # of the critic's features
    identity: str | None = None  # card of a network whose first features `perceptual` compares
    perceptual: float = Field(default=0.0, ge=0)
    pixel: float = Field(default=1.0, ge=0)
    critic_widths: tuple[int, ...] = (48, 96, 160, 192)
    validation_faces: int = Field(default=24, gt=0)
    loop: LoopConfig

    @model_validator(mode="after")
    def _detail_starts_somewhere(self) -> "UpscaleTraining":
        if self.phase == "detail" and self.start is None and self.start_run is None:
            raise ValueError("phase detail works on a finished trunk: name its card (start) or its folder (start_run)")
        return self


def start_network(start: str | None, run: Path | None, arguments: dict[str, Any]) -> Upscaler:
    """A new upscaler, or the one of a card, or the EMA of a run folder.

    Raises:
        TrainingError: the card holds another network. FileNotFoundError: the run folder holds no checkpoint.
    """
    if run is not None:
        network = Upscaler(**arguments)
        state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)  # noqa: TID251 tensors only
        network.load_state_dict(state["ema"])
        return network
    if start is None:
        return Upscaler(**arguments)
    return network_of(start, Upscaler).requires_grad_(True)


class UpscaleTask(Task):
    """Patches of high-resolution faces and their small versions."""

    def __init__(self, config: UpscaleTraining) -> None:
        self.config = config
        self.network: nn.Module = start_network(config.start, config.start_run, config.network)
        self.others: dict[str, nn.Module] = {}
        if config.phase == "detail":
            own = {id(p) for p in self._net.trunk_parameters()}
            for p in self.network.parameters():
                p.requires_grad_(id(p) not in own)
            if config.matching or config.adversarial:
                self.others["critic"] = PatchCritic(config.critic_widths)
            self.teacher = config.loop.teacher(config.identity, IdentityNet) if config.identity else None
        self.pack: HrPack = open_hr_pack(build_hr_pack(config.faces))
        # A face serves a scale where its frame holds at least one whole patch of it.
        self.members: dict[int, np.ndarray] = {}
        self.shares: dict[int, np.ndarray] = {}
        for scale in SCALES:
            usable = (self.pack.sides >= scale * config.patch) & ~self.pack.validation
            factor = np.array([config.set_factor.get(str(s), 1.0) for s in self.pack.sets]) * usable
            if not factor.any():
                raise TrainingError(f"no face of the pack is {scale} x {config.patch} px or larger")
            self.members[scale] = np.flatnonzero(factor)
            self.shares[scale] = np.cumsum(factor[self.members[scale]]) / factor.sum()
        self.held = self._held_out()

    def trained_sets(self) -> np.ndarray:
        return self.pack.sets[np.unique(np.concatenate(list(self.members.values())))]

    @property
    def _net(self) -> Upscaler:
        assert isinstance(self.network, Upscaler)
        return self.network

    # ---- samples

    def _scale_of(self, index: int) -> int:
        """One scale for the whole batch that sample `index` belongs to."""
        batch = index // self.config.loop.batch_size
        return 4 if rng_of(self.config.loop.seed + 1, batch).random() < self.config.x4_share else 6

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng, scale, p = rng_of(self.config.loop.seed, index), self._scale_of(index), self.config.patch
        face = int(self.members[scale][int(np.searchsorted(self.shares[scale], rng.random()))])
        frame, side = self.pack.frame(face), int(self.pack.sides[face])
        wants_restored = rng.random() < self.config.restored_share and self.config.phase == "detail"
        row = int(self.pack.restored_of[face])
        restored = wants_restored and row >= 0 and side >= 128 * scale
        # Small faces of 64 to 128 px a side, whatever the source resolves: 128 is what the chain brings.
        small = 128 if restored else int(rng.integers(max(p, 64), max(p, 64, min(128, side // scale)) + 1))
        small = min(small, side // scale)
        y, x = (int(rng.integers(small - p + 1)) for _ in range(2))
        truth = _cut(frame, (x * side / small, y * side / small), p * side / small, scale * p)
        if restored:
            lq = self.pack.restored[row][y : y + p, x : x + p].astype(np.float32) / 255
        else:
            lq = self._degraded(truth, p, rng)
        if rng.random() < 0.5:
            truth, lq = truth[:, ::-1], lq[:, ::-1]
        return {
            "gt": np.ascontiguousarray(truth.transpose(2, 0, 1)),
            "lq": np.ascontiguousarray(lq.transpose(2, 0, 1), dtype=np.float32),
            "paired": np.asarray(not restored, np.float32),
        }

    def _degraded(self, truth: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """(size, size, 3) in [0, 1]: the area average; not always clean, for restored faces are soft or noisy."""
        lq: np.ndarray = cv2.resize(truth, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        if rng.random() < self.config.clean_share:
            return lq
        if rng.random() < 0.6:
            lq = cv2.GaussianBlur(lq, (0, 0), float(rng.uniform(0.3, 1.1)))
        if rng.random() < 0.4:
            lq = lq + rng.normal(0, rng.uniform(0.002, 0.012), lq.shape).astype(np.float32)
        if rng.random() < 0.4:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 98))]
            done, data = cv2.imencode(".jpg", np.round(np.clip(lq, 0, 1) * 255).astype(np.uint8), quality)
            assert done
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            assert decoded is not None
            lq = decoded.astype(np.float32) / 255
        return np.clip(lq, 0, 1)

    # ---- losses

    def _scale(self, batch: dict[str, Tensor]) -> int:
        return batch["gt"].shape[-1] // batch["lq"].shape[-1]

    @staticmethod
    def _exact(image: Tensor, lq: Tensor) -> Tensor:
        return agree(image, lq, torch.ones_like(lq[:, :1]), rounds=1)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        scale, lq, truth = self._scale(batch), batch["lq"], batch["gt"].float() / 255
        lq = lq.contiguous(memory_format=torch.channels_last)
        weight = batch["paired"].view(-1, 1, 1, 1).expand_as(truth[:, :1])
        if self.config.phase == "trunk":
            smooth, _ = self.network(lq, scale)
            total = pixel_loss(self._exact(smooth, lq), truth, weight)
            return total, {"pixel": total.detach()}
        smooth, detail = self.network(lq, scale, detail=True)
        assert detail is not None
        sharp = self._exact(smooth.detach() + detail, lq)
        kept = batch["paired"].view(-1, *[1] * 3)
        parts = {"pixel": pixel_loss(sharp, truth, weight)}
        if "critic" in self.others:
            critic = self.others["critic"].requires_grad_(False)
            logits, features = critic(sharp)
            with torch.no_grad():
                _, real = critic(truth)
            parts["matching"] = matching_loss([f * kept for f in features], [r * kept for r in real])
            parts["adversarial"] = -logits.mean()
        if self.teacher is not None:
            found = self.teacher.features(sharp.contiguous(memory_format=torch.channels_last))
            with torch.no_grad():
                wanted = self.teacher.features(truth.contiguous(memory_format=torch.channels_last))
            parts["perceptual"] = feature_loss(found[:LEVELS], wanted[:LEVELS], batch["paired"])
        config = self.config
        weights = {
            "pixel": config.pixel, "matching": config.matching, "adversarial": config.adversarial,
            "perceptual": config.perceptual,
        }  # fmt: skip
        total = torch.stack([weights[k] * v.float() for k, v in parts.items()]).sum()
        batch["sharp"] = sharp.detach()
        return total, {k: v.detach() for k, v in parts.items()}

    def other_loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]] | None:
        if "critic" not in self.others:
            return None
        critic = self.others["critic"].requires_grad_(True)
        real, _ = critic(batch["gt"].float() / 255)
        fake, _ = critic(batch["sharp"])
        loss = hinge_real(real) + hinge_fake(fake)
        return loss, {"critic": loss.detach()}

    # ---- validation

    def _held_out(self) -> dict[int, list[Tensor]]:
        """Whole frames never trained on, by scale: (1, 3, s * n, s * n), n at most 128."""
        frames: dict[int, list[Tensor]] = {}
        for scale in SCALES:
            chosen = np.flatnonzero(self.pack.validation & (self.pack.sides >= scale * 64))
            kept = []
            for i in chosen[:: max(1, len(chosen) // self.config.validation_faces)][: self.config.validation_faces]:
                small = min(128, int(self.pack.sides[i]) // scale) // 4 * 4
                picture = cv2.resize(self.pack.frame(int(i)), (scale * small,) * 2, interpolation=cv2.INTER_AREA)
                kept.append(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
            frames[scale] = kept
        return frames

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR over Lanczos in dB at fidelity 1 (trunk) or 0 (detail), and the share of the truth's sharpness."""
        device, detail = next(network.parameters()).device, self.config.phase == "detail"
        figures: dict[str, float] = {}
        for scale, frames in self.held.items():
            gains, sharpness = [], []
            for truth in frames:
                truth = truth.to(device)
                lq = average_to(truth, truth.shape[-1] // scale)
                smooth, more = network(lq, scale, detail)
                found = agree(smooth if more is None else smooth + more, lq, torch.ones_like(lq[:, :1]))
                plain = resample(lq, (truth.shape[-2], truth.shape[-1]), "lanczos")
                gains.append(float(_psnr(found, truth) - _psnr(plain, truth)))
                sharpness.append(float(_fine(found) / _fine(truth)))
            if frames:
                figures[f"gain_x{scale}_db"] = float(np.mean(gains))
                figures[f"sharpness_x{scale}"] = float(np.median(sharpness))
        return figures

    @torch.inference_mode()
    def grid(self, network: nn.Module) -> np.ndarray | None:
        """Six faces at four times: input, Lanczos, found, truth."""
        device, rows = next(network.parameters()).device, []
        for truth in self.held[4][:6]:
            truth = truth.to(device)
            lq = average_to(truth, truth.shape[-1] // 4)
            smooth, more = network(lq, 4, self.config.phase == "detail")
            found = agree(smooth if more is None else smooth + more, lq, torch.ones_like(lq[:, :1]))
            plain = resample(lq, (truth.shape[-2], truth.shape[-1]), "lanczos")
            row = [F.interpolate(x, (512, 512), mode="nearest") for x in (lq, plain, found, truth)]
            rows.append(torch.cat(row, 3)[0])
        if not rows:
            return None
        picture = torch.cat(rows, 1).permute(1, 2, 0).clamp(0, 1) * 255
        return picture.round().to(torch.uint8).cpu().numpy()


def _cut(frame: np.ndarray, corner: tuple[float, float], length: float, size: int) -> np.ndarray:
    """The square of `length` px at `corner` (x, y) of a frame, brought down to `size` px; never enlarged by more than
    the rounding of its edges."""
    x, y = (min(max(0, int(round(v))), frame.shape[0] - int(length)) for v in corner)
    piece = frame[y : y + int(length), x : x + int(length)]
    return piece if piece.shape[0] == size else cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA)


def _psnr(found: Tensor, truth: Tensor) -> Tensor:
    return -10 * torch.log10((found - truth).square().mean().clamp_min(1e-10))


def _fine(image: Tensor) -> Tensor:
    """Mean absolute Laplacian of the mean of the channels: how much fine detail there is."""
    grey = image.mean(1, keepdim=True)
    return (4 * grey - sum(torch.roll(grey, s, d) for d in (2, 3) for s in (-1, 1)))[..., 1:-1, 1:-1].abs().mean()


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(UpscaleTraining, config_path, dry_run)
    return train(lambda: UpscaleTask(config), config.loop, record, resume)
