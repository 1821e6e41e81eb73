"""Train the restorer: `train -c configs/train/prouigan.yaml`, then `prouigan_detail.yaml` and `prouigan_face.yaml`.

Three phases. `trunk` trains everything but the detail branch for the distortion-optimal face, its geometry, mask and
uncertainty. `detail` freezes the trunk and trains the branch that `fidelity` 0 adds, against discriminators. `face`
trains nothing but the head that refuses what is no face.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.scheme import inter_ocular_px
from stages.consistency import agree, visible_share
from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.prouigan import INPUT_SIZE, STEPS, ProUiganNet, ProUiganOutput
from stages.prouigan import noise_of
from stages.weights import read_card
from training import losses
from training.config import TrainingError, load_training
from training.discriminators import FaceDiscriminator
from training.growth import grow
from training.loop import network_of, rng_of, train
from training.parsing_labels import parsing_labels
from training.restorer_samples import FRAME, FaceSamples, ProUiganTraining

FACE_WORTH = 3.0  # a face that is refused costs as much as so many other things that are restored
OTHER_THINGS = 500  # that are no faces, in validation
SHOWN = 30  # faces in a grid, shared by the sets
STEP_WEIGHTS = (0.25, 0.5, 1.0)  # of the losses at 32, 64 and 128 px


class ProUiganTask(FaceSamples):
    """Losses and figures of the restorer."""

    def __init__(self, config: ProUiganTraining) -> None:
        super().__init__(config)
        network = ProUiganNet(**config.network)
        if config.start:
            grow(network, network_of(config.start, ProUiganNet))
        network.requires_grad_(config.phase == "trunk")
        network.detail.requires_grad_(config.phase == "detail")
        if network.face_head is not None:
            network.face_head.requires_grad_(config.phase != "detail")
        self.network: ProUiganNet = network
        self.others = {"whole": FaceDiscriminator(), "part": FaceDiscriminator()} if config.phase == "detail" else {}
        self.identity = config.loop.teacher(config.identity, IdentityNet) if config.identity else None
        parser = config.loop.teacher(config.parser, FaceParser) if config.parser else None
        self.labels = parsing_labels(self.pack, config.pack, parser) if parser else None
        self.parser = parser if config.perceptual else None

    # ---- losses

    def _forward(self, batch: dict[str, Tensor], detail: bool = False, steps: int = STEPS) -> ProUiganOutput:
        known = batch["given"].view(-1, 1, 1, 1)
        lq = batch["lq"].contiguous(memory_format=torch.channels_last)
        return self.network(lq, batch["mask_lq"], known, detail, steps)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        if self.config.phase == "face":
            return self._face_loss(batch)
        if self.config.phase == "detail":
            return self._detail_loss(batch)
        return self._trunk_loss(batch, STEPS - sum(step < joins for joins in self.config.progressive))

    def _face_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Of the head that tells faces from other things, which needs the first step alone."""
        network, known = self.network, batch["given"].view(-1, 1, 1, 1)
        lq = batch["lq"].contiguous(memory_format=torch.channels_last) * 2 - 1
        with torch.no_grad():
            features = network.steps[0](lq, batch["mask_lq"] * known, known, None, None)["features"]
        assert network.face_head is not None
        logit = network.face_head(features).float()
        worth = torch.tensor(FACE_WORTH, device=logit.device)
        entropy = F.binary_cross_entropy_with_logits(logit, batch["face"], pos_weight=worth)
        return entropy, {"face": entropy.detach(), "right": ((logit > 0) == (batch["face"] > 0.5)).float().mean()}

    def _trunk_loss(self, batch: dict[str, Tensor], steps: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Of everything but the detail branch, with the first `steps` steps of the network at work."""
        config, out, parts = self.config, self._forward(batch, steps=steps), dict[str, Tensor]()
        parts["face"] = F.binary_cross_entropy_with_logits(out.face_logit, batch["face"])
        noise_error = F.smooth_l1_loss(out.log_noise, (batch["noise"] + 1e-3).log(), reduction="none")
        parts["noise"] = (noise_error * batch["noise_known"]).sum() / batch["noise_known"].sum().clamp_min(1)
        total = config.verdict * (parts["face"] + 0.5 * parts["noise"])
        truth, weight = batch["gt"].float() / 255, self._weights(batch)
        for k, share in enumerate(STEP_WEIGHTS[STEPS - steps :]):
            total = total + share * self._step_loss(out, k, batch, truth, weight, parts)
        if steps == STEPS:
            total = total + self._last_loss(out, batch, truth, weight, parts)
        return total, {k: v.detach() for k, v in parts.items()}

    def _step_loss(
        self,
        out: ProUiganOutput,
        k: int,
        batch: dict[str, Tensor],
        truth: Tensor,
        weight: Tensor,
        parts: dict[str, Tensor],
    ) -> Tensor:
        """Of step `k`: its priors, and its picture unless that is the last. Adds its terms to `parts`.

        truth: (B, 3, 128, 128) in [0, 1]. weight: (B, 1, 128, 128), of each of its pixels.
        """
        config, side = self.config, out.images[k].shape[-1]
        total = out.images[k].new_zeros(())
        if side < FRAME:
            gt, w = (F.avg_pool2d(x, FRAME // side) for x in (truth, weight))
            parts[f"pixel_{side}"] = losses.pixel_loss(out.images[k], gt, w)
            total = total + config.pixel * parts[f"pixel_{side}"]
        divergence, distance = losses.landmark_loss(
            out.heatmap_logits[k], out.points[k], batch["points"], batch["points_known"]
        )
        total = total + config.heatmap * divergence + config.coordinate * distance
        logits = out.mask_logits[k].float()
        cover, known = (F.avg_pool2d(batch[n], 64 // logits.shape[-1]) for n in ("mask", "mask_known"))
        entropy = F.binary_cross_entropy_with_logits(logits, cover.clamp(0, 1), reduction="none")
        parts["mask"] = (entropy * known).sum() / known.sum().clamp_min(1)
        total = total + config.mask * parts["mask"]
        if self.labels is not None:
            logits = out.parsing_logits[k].float()
            cell = 32 // logits.shape[-1]
            labels = batch["labels"][:, cell // 2 :: cell, cell // 2 :: cell]
            parts["parsing"] = F.cross_entropy(logits, labels, ignore_index=255)
            total = total + config.parsing * parts["parsing"]
        parts["landmark_px"] = distance * 128
        return total

    def _last_loss(
        self,
        out: ProUiganOutput,
        batch: dict[str, Tensor],
        truth: Tensor,
        weight: Tensor,
        parts: dict[str, Tensor],
    ) -> Tensor:
        """Of the last picture and its uncertainty. As `_step_loss`."""
        config, image = self.config, out.images[-1]
        total, distortion = self.distortion(image, batch)
        if config.agreed:
            image = self._agreed(out, batch)
            after, distortion = self.distortion(image, batch)
            total = (1 - config.agreed) * total + config.agreed * after
        parts.update(distortion)
        error = (image.detach().clamp(0, 1) - truth).abs()
        parts["uncertainty"] = losses.laplace_loss(out.log_scale, error, (weight > 0).float())
        total = total + config.uncertainty * parts["uncertainty"]
        if self.identity is not None and config.identity_weight:
            # Where a cover hides the person the descriptor cannot be met, only fooled: with a fine coloured pattern.
            bare = (batch["mask"] * batch["mask_known"]).mean((1, 2, 3)) < 0.02
            rows = torch.nonzero(bare & (batch["has_truth"] > 0)).flatten()
            rows = rows[: round(len(rows) * config.identity_share)]
            found = self.identity(self._softened(image[rows]))
            with torch.no_grad():
                wanted = self.identity(self._softened(truth[rows]))
            parts["identity"] = losses.identity_loss(found, wanted, torch.ones_like(found[:, 0]))
            total = total + config.identity_weight * parts["identity"]
        return total

    @staticmethod
    def _agreed(out: ProUiganOutput, batch: dict[str, Tensor]) -> Tensor:
        """(B, 3, 128, 128): the last picture after the exact step of the stage, under the true mask."""
        visible = visible_share(batch["mask_lq"], INPUT_SIZE)
        return agree(out.images[-1], batch["lq"], visible, noise_of(out, INPUT_SIZE).detach())

    @staticmethod
    def _softened(image: Tensor) -> Tensor:
        """(B, 3, 128, 128) without its finest octave, in which a descriptor is easily fooled."""
        half = F.avg_pool2d(image, 2)
        return F.interpolate(half, scale_factor=2.0, mode="bilinear").contiguous(memory_format=torch.channels_last)

    def _detailed(self, batch: dict[str, Tensor]) -> tuple[ProUiganOutput, Tensor]:
        out = self._forward(batch, detail=True)
        assert out.detail is not None
        return out, out.images[-1] + out.detail

    def _local(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """64 px windows on the covered part where there is one, else on the mouth: input of the local discriminator."""
        cover = batch["mask"] * batch["mask_known"]
        axis = torch.arange(64, device=cover.device, dtype=cover.dtype) * 2 + 0.5
        mass = cover.sum((1, 2, 3))
        x = torch.where(mass > 20, (cover.sum((1, 2)) @ axis) / mass.clamp_min(1), 64.0)
        y = torch.where(mass > 20, (cover.sum((1, 3)) @ axis) / mass.clamp_min(1), 84.0)
        left, top = (x - 32).clamp(0, 64).round().long().tolist(), (y - 32).clamp(0, 64).round().long().tolist()
        return torch.stack(
            [image[i, :, t : t + 64, s : s + 64] for i, (s, t) in enumerate(zip(left, top, strict=True))]
        )

    def _detail_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        config = self.config
        _, image = self._detailed(batch)
        truth, weight, has_truth = batch["gt"].float() / 255, self._weights(batch), batch["has_truth"]
        layout = torch.channels_last
        parts = {"pixel": losses.pixel_loss(image, truth, weight)}
        total = config.pixel * parts["pixel"]
        teachers: dict[str, IdentityNet | FaceParser | None] = {"identity": self.identity, "parser": self.parser}
        for name, teacher in teachers.items():
            if teacher is not None and config.perceptual:
                found = teacher.features(image.contiguous(memory_format=layout))
                with torch.no_grad():
                    wanted = teacher.features(truth.contiguous(memory_format=layout))
                parts[f"perceptual_{name}"] = losses.feature_loss(found[:4], wanted[:4], has_truth)
                total = total + config.perceptual * parts[f"perceptual_{name}"]
                if isinstance(teacher, IdentityNet) and config.identity_weight:
                    parts["identity"] = losses.identity_loss(
                        teacher.describe(found), teacher.describe(wanted), has_truth
                    )
                    total = total + config.identity_weight * parts["identity"]
        seen = batch["face"].view(-1, 1)  # really covered faces count: what is painted there must look like a bare face
        fooled = [
            -(self.others["whole"](image) * seen).mean(),
            -(self.others["part"](self._local(image, batch)) * seen).mean(),
        ]
        parts["fooled"] = sum(fooled)
        total = total + config.adversarial * parts["fooled"]
        self._fake = image.detach()
        return total, {k: v.detach() for k, v in parts.items()}

    def other_loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]] | None:
        real = batch["has_truth"] > 0.5
        fake_rows = batch["face"] > 0.5
        truth = batch["gt"].float() / 255
        whole, part = self.others["whole"], self.others["part"]
        for p in (*whole.parameters(), *part.parameters()):
            p.grad = None  # left over from the generator's step
        total = truth.new_zeros(())
        for critic, reals, fakes in (
            (whole, truth[real], self._fake[fake_rows]),
            (part, self._local(truth, batch)[real], self._local(self._fake, batch)[fake_rows]),
        ):
            total = total + losses.hinge_real(critic(reals)) + losses.hinge_fake(critic(fakes))
        return total, {"critics": total.detach()}

    # ---- validation

    @torch.inference_mode()
    def _restore(self, network: nn.Module, lq: Tensor) -> dict[str, Tensor]:
        """Images after the exact step, points, mask at 16, scale, sharp image, in batches of 32."""
        device = next(network.parameters()).device
        kept: dict[str, list[Tensor]] = {k: [] for k in ("image", "points", "mask", "scale", "sharp", "face")}
        for part in lq.split(32):
            with self.config.loop.autocast():
                out = network(
                    part.to(device).contiguous(memory_format=torch.channels_last), detail=self.config.phase == "detail"
                )
            mask = F.avg_pool2d(torch.sigmoid(out.mask_logits[-1].float()), 4)
            visible, slack = visible_share(mask, INPUT_SIZE), noise_of(out, INPUT_SIZE)
            kept["image"].append(agree(out.images[-1], part.to(device), visible, slack).cpu())
            sharp = out.images[-1] if out.detail is None else out.images[-1] + out.detail
            kept["sharp"].append(agree(sharp, part.to(device), visible, slack).cpu())
            kept["points"].append(out.points[-1].cpu())
            kept["mask"].append(mask.cpu())
            kept["scale"].append(out.log_scale.cpu())
            kept["face"].append(torch.sigmoid(out.face_logit).cpu())
        return {k: torch.cat(v) for k, v in kept.items()}

    def validate(self, network: nn.Module) -> dict[str, float]:
        held = self._held_out()
        if not held:
            return {}
        found, truth = self._restore(network, held["lq"]), held["gt"].float() / 255
        bicubic = F.interpolate(held["lq"], size=(FRAME, FRAME), mode="bicubic", align_corners=False).clamp(0, 1)
        tags, cover = np.array(self._tags), F.interpolate(held["mask"], scale_factor=2.0, mode="nearest")

        def psnr(image: Tensor, weight: Tensor) -> Tensor:
            error = ((image - truth).square().mean(1, keepdim=True) * weight).sum((1, 2, 3)) / weight.sum(
                (1, 2, 3)
            ).clamp_min(1)
            return -10 * torch.log10(error.clamp_min(1e-8))

        whole = (psnr(found["image"], torch.ones_like(cover)) - psnr(bicubic, torch.ones_like(cover))).numpy()
        under = (psnr(found["image"], cover) - psnr(bicubic, cover)).numpy()
        eyes = inter_ocular_px(held["points"].numpy())
        distance = (found["points"] - held["points"]).norm(dim=-1).mean(-1).numpy() / np.maximum(eyes, 1)
        predicted, actual = found["mask"][:, 0] > 0.5, held["mask_lq"][:, 0] > 0.5
        figures: dict[str, float] = {}
        if self.config.phase == "face":
            others = np.stack([self._no_face(rng_of(98, i))["lq"].transpose(2, 0, 1) for i in range(OTHER_THINGS)])
            taken = self._restore(network, torch.from_numpy(others.astype(np.float32)))["face"] > 0.5
            figures["no_face_taken_for_one"] = float(taken.float().mean())
        for tag in np.unique(tags):
            rows = np.flatnonzero(tags == tag)
            figures[f"refused_{tag}"] = float((found["face"][rows] < 0.5).float().mean())
            if tag == "masked":
                fractions = found["mask"].mean((1, 2, 3)).numpy()
                bare = np.flatnonzero(np.char.endswith(tags, "clean"))
                figures["auc_masked"] = float((fractions[rows][:, None] > fractions[bare][None]).mean())
                continue
            figures[f"gain_{tag}"] = float(whole[rows].mean())
            if len(known := rows[held["points_known"].numpy()[rows] > 0]):
                figures[f"nme_{tag}"] = float(distance[known].mean())
            if tag.endswith("covered"):
                figures[f"under_{tag}"] = float(under[rows].mean())
                joined = (predicted[rows] | actual[rows]).sum()
                figures[f"iou_{tag}"] = float((predicted[rows] & actual[rows]).sum() / joined.clamp_min(1))
            else:
                figures[f"false_cover_{tag}"] = float(predicted[rows].float().mean())
        return {k: round(v, 4) for k, v in figures.items()}

    def grid(self, network: nn.Module) -> np.ndarray | None:
        held = self._held_out()
        if not held:
            return None
        tags = np.array(self._tags)
        kinds = np.unique(tags)
        rows = np.concatenate([np.flatnonzero(tags == t)[: max(1, SHOWN // len(kinds))] for t in kinds])
        lq = held["lq"][rows]
        found = self._restore(network, lq)
        mask = F.interpolate(found["mask"], size=(FRAME, FRAME), mode="nearest").expand(-1, 3, -1, -1)
        shown = [
            F.interpolate(lq, size=(FRAME, FRAME), mode="nearest"),
            found["image"],
            found["sharp"],
            held["gt"][rows].float() / 255,
            mask,
        ]
        if self.config.phase == "trunk":
            shown.pop(2)
        strips = [torch.cat([s[i] for s in shown], 1) for i in range(len(rows))]  # (3, 5 * 128, 128) each
        across = len(strips) // -(-len(strips) // 15)  # even rows of at most 15
        sheet = torch.cat([torch.cat(strips[i : i + across], 2) for i in range(0, len(strips) - across + 1, across)], 1)
        return (sheet.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(ProUiganTraining, config_path, dry_run)
    if config.start:  # its own shape, with what the YAML adds to it
        config = config.model_copy(update={"network": read_card(config.start).arguments | config.network})
        record |= {"network": config.network}
    if config.phase == "face" and not config.network.get("face_width"):
        raise TrainingError(f"{config_path}: network.face_width: phase face trains that head; give its channels")
    return train(lambda: ProUiganTask(config), config.loop, record, resume)
