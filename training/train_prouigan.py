"""Train the restorer: `train -c configs/train/prouigan.yaml`, then `prouigan_detail.yaml` and `prouigan_face.yaml`.

Three phases. `trunk` trains everything but the detail branch for the distortion-optimal face, its geometry, mask and
uncertainty. `detail` freezes the trunk and trains the branch that `fidelity` 0 adds, against discriminators. `face`
trains nothing but the head that refuses what is no face.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from landmarks.alignment import apply
from landmarks.scheme import MIRROR, inter_ocular_px
from stages.consistency import agree
from stages.degradation import DegradationConfig, degrade_face, misframing
from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.prouigan import INPUT_SIZE, ProUiganNet, ProUiganOutput
from stages.prouigan import noise_of, visible_share
from stages.weights import read_card
from training import losses
from training.config import TrainingError, arguments_of, load_training
from training.discriminators import FaceDiscriminator
from training.faces import MARGIN, build_pack
from training.growth import grow
from training.loop import LoopConfig, Task, network_of, rng_of, train
from training.no_face import no_face
from training.parsing_labels import MIRRORED, parsing_labels

FACE_WORTH = 3.0  # a face that is refused costs as much as so many other things that are restored
OTHER_THINGS = 500  # that are no faces, in validation
SHOWN = 30  # faces in a grid, shared by the sets
FRAME = 128
SMALL = 0.8  # of a face's canonical size: as faces stand in street crops; smaller would leave the packed margin
STEP_WEIGHTS = (0.25, 0.5, 1.0)  # of the losses at 32, 64 and 128 px


class ProUiganTraining(BaseModel):
    """Options of this script. Shares are of training samples; loss weights multiply the terms named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    phase: Literal["trunk", "detail", "face"] = "trunk"
    data: list[Path]
    covered_data: list[Path] = Field(default_factory=list)  # really covered faces without truth
    pack: Path  # folder for the packed faces
    covered_pack: Path | None = None
    start: str | None = None  # name of a weights card to start from
    network: Annotated[dict[str, Any], arguments_of(ProUiganNet)] = Field(default_factory=dict)
    degradation: DegradationConfig = Field(default_factory=DegradationConfig)
    clean_misframing: float = Field(default=0.5, ge=0, le=1)  # share of the clean ones that is not framed exactly
    small_share: float = Field(default=0.0, ge=0, le=1)  # of the covered faces that fill less of the frame (`SMALL`)
    clean_share: float = Field(default=0.4, ge=0, le=1)  # plain averaged thumbnails, nothing else wrong with them
    bare_share: float = Field(default=0.1, ge=0, le=1)  # degraded but not covered
    covered_share: float = Field(default=0.06, ge=0, le=1)  # really covered faces: mask head (and discriminator) only
    no_face_share: float = Field(default=0.04, ge=0, le=1)
    given_mask_share: float = Field(default=0.15, ge=0, le=1)
    set_power: float = Field(default=0.75, ge=0, le=1)  # sets are drawn in proportion to size ** power
    set_factor: dict[str, float] = Field(default_factory=dict)  # times this factor
    parser: str | None = None  # weights card of the parsing teacher
    identity: str | None = None  # weights card of the identity network
    loose_share: float = Field(default=0.0, ge=0, le=1)  # of the faces, framed worse than the restorer is made for
    hole: float = 1.0  # extra pixel weight under the occluder
    heatmap: float = 0.01
    coordinate: float = 1.0
    mask: float = 0.04
    parsing: float = 0.02
    uncertainty: float = 0.01
    verdict: float = 0.02
    identity_weight: float = 0.05
    identity_share: float = Field(default=1.0, gt=0, le=1)  # of a batch that the identity loss looks at: it is costly
    perceptual: float = 0.0
    adversarial: float = 0.0
    pixel: float = 1.0
    ssim: float = 0.0  # of the trunk's last step, as the next
    psnr: float = 0.0  # of the whole face, and half as much of what lies under the occluder
    agreed: float = Field(default=0.0, ge=0, le=1)  # share of the trunk's distortion judged after the exact step
    validation_faces: int = Field(default=96, gt=0)  # per set
    loop: LoopConfig


def frame_matrix(matrix: np.ndarray, mirrored: bool) -> np.ndarray:
    """(2, 3) matrix from packed pixels to the 128 frame: margin off, then `matrix` in the frame, then the mirror."""
    full = matrix.copy()
    full[:, 2] -= matrix[:, :2] @ np.full(2, MARGIN)
    if mirrored:
        full[0] = -full[0]
        full[0, 2] += FRAME - 1
    return full


class FaceSamples(Task):
    """The samples of the restorer, which its rivals are trained on too (training/train_rival.py)."""

    def __init__(self, config: ProUiganTraining) -> None:
        self.config = config
        self.pack = build_pack(config.data, config.pack)
        self.covered = (
            build_pack(config.covered_data, config.covered_pack)
            if config.covered_data and config.covered_pack
            else None
        )
        self.labels: np.ndarray | None = None  # parsing labels of the packed faces
        sets, counts = np.unique(self.pack.sets[~self.pack.validation], return_counts=True)
        self.members = [np.flatnonzero((self.pack.sets == s) & ~self.pack.validation) for s in sets]
        share = np.array(
            [config.set_factor.get(str(s), 1.0) * c**config.set_power for s, c in zip(sets, counts, strict=True)]
        )
        if not share.any():
            raise TrainingError("no face to train on: every one is held out, or of a set with factor 0")
        self.drawn = [m for m, weight in zip(self.members, share, strict=True) if weight]
        self.set_share = np.cumsum(share / share.sum())
        self.covered_train = np.flatnonzero(~self.covered.validation) if self.covered else np.zeros(0, int)
        self._held: dict[str, Tensor] | None = None
        cv2.setNumThreads(1)

    def trained_sets(self) -> np.ndarray:
        parts = [self.pack.sets[m] for m in self.drawn]
        if self.covered is not None and self.config.covered_share:
            parts.append(self.covered.sets[self.covered_train])
        return np.concatenate(parts)

    def _face(self, rng: np.random.Generator, index: int, degradation: DegradationConfig, vary: bool) -> dict[str, Any]:
        """Cut one packed face into the (mis-framed) frame and degrade it."""
        mirrored = bool(vary and rng.random() < 0.5)
        matrix = misframing(rng, degradation)
        if degradation.occluder_probability > 0 and vary and rng.random() < self.config.small_share:
            share = rng.uniform(SMALL, 1)
            matrix = share * matrix + (1 - share) * np.array([[0, 0, 1], [0, 0, 1]]) * (FRAME - 1) / 2
        matrix = frame_matrix(self._loosely(matrix, rng) if vary else matrix, mirrored)
        picture = cv2.warpAffine(
            self.pack.images[index], matrix, (FRAME, FRAME), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        points = apply(matrix, self.pack.landmarks[index])
        if mirrored:
            points = points[MIRROR]
        donor = None
        if self.covered is not None and rng.random() < 0.6:
            donor = self.covered.images[int(rng.choice(self.covered_train))]
        made = degrade_face(np.ascontiguousarray(picture), points, rng, degradation, donor)
        inside = np.zeros((FRAME, FRAME), np.uint8)
        cv2.fillConvexPoly(inside, np.round(apply(matrix, self.pack.corners[index])).astype(np.int32), 1)
        labels: np.ndarray = np.full((32, 32), 255, np.uint8)
        if self.labels is not None:
            small = matrix.copy()  # label pixels are packed pixels averaged 2x2
            small[:, :2] *= 2 * 32 / FRAME
            small[:, 2] = (matrix[:, 2] + matrix[:, :2] @ np.full(2, 0.5) + 0.5) * (32 / FRAME) - 0.5
            labels = cv2.warpAffine(
                self.labels[index], small, (32, 32), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
            )
            if mirrored:
                labels = MIRRORED[labels]
        visible = (made.mask_lq < 0.01)[..., None]
        noise = np.sqrt((np.square(made.lq - made.lq_clean) * visible).sum() / max(3 * visible.sum(), 1))
        return {
            "lq": made.lq,
            "gt": made.gt,
            "mask": made.mask,
            "mask_lq": made.mask_lq,
            "points": points,
            "labels": labels,
            "inside": inside,
            "noise": noise,
            "face": 1.0,
        }

    def _loosely(self, matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The (2, 3) matrix, in `loose_share` of the cases turned, scaled and shifted as people cut faces by hand."""
        if not self.config.loose_share or rng.random() >= self.config.loose_share:
            return matrix
        centre = (FRAME - 1) / 2
        loose = cv2.getRotationMatrix2D((centre, centre), float(rng.normal(0, 12)), float(rng.uniform(0.6, 1.4)))
        made: np.ndarray = loose[:, :2] @ matrix
        made[:, 2] = made[:, 2] + loose[:, 2] + rng.uniform(-14, 14, 2)
        return made

    def _covered_face(self, rng: np.random.Generator, index: int) -> dict[str, Any]:
        """A really covered face, without truth; `mask` is 1 where a cover surely lies, 0 where none, else NaN."""
        assert self.covered is not None
        mirrored = bool(rng.random() < 0.5)
        matrix = frame_matrix(self._loosely(misframing(rng, self.config.degradation), rng), mirrored)
        picture = cv2.warpAffine(
            self.covered.images[index],
            matrix,
            (FRAME, FRAME),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        made = degrade_face(np.ascontiguousarray(picture), None, rng, self._uncovered(rng))
        # By eye on 72 of these pictures: cover between mouth and chin, eyes bare; the rest differs from face to face.
        sure = np.full((FRAME, FRAME), np.nan, np.float32)
        sure[38:50, 40:88] = 0
        sure[80:104, 46:82] = 1
        return {
            "lq": made.lq,
            "gt": made.gt,
            "mask": sure,
            "mask_lq": np.zeros((16, 16), np.float32),
            "points": np.full((68, 2), np.nan),
            "labels": np.full((32, 32), 255, np.uint8),
            "inside": np.zeros((FRAME, FRAME), np.uint8),
            "noise": np.nan,
            "face": 1.0,
        }

    def _uncovered(self, rng: np.random.Generator) -> DegradationConfig:
        """The camera's damage in half the cases, none in the others; never a painted cover."""
        if rng.random() < 0.5:
            return DegradationConfig.clean()
        return self.config.degradation.model_copy(update={"occluder_probability": 0.0, "text_probability": 0.0})

    def _no_face(self, rng: np.random.Generator) -> dict[str, Any]:
        """A thumbnail of no face."""

        def any_face() -> np.ndarray:
            if self.covered is not None and rng.random() < 0.3:  # people as found, with their clothes and the street
                return np.asarray(self.covered.images[int(rng.choice(self.covered_train))])
            return np.asarray(self.pack.images[int(rng.choice(self.members[int(rng.integers(len(self.members)))]))])

        lq = degrade_face(no_face(rng, any_face), None, rng, self._uncovered(rng)).lq
        return {
            "lq": lq,
            "gt": np.zeros((FRAME, FRAME, 3), np.uint8),
            "mask": np.full((FRAME, FRAME), np.nan, np.float32),
            "mask_lq": np.zeros((16, 16), np.float32),
            "points": np.full((68, 2), np.nan),
            "labels": np.full((32, 32), 255, np.uint8),
            "inside": np.zeros((FRAME, FRAME), np.uint8),
            "noise": np.nan,
            "face": 0.0,
        }

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng = rng_of(self.config.loop.seed, index)
        config, draw = self.config, rng.random()
        if self.covered is not None and (draw := draw - config.covered_share) < 0:
            return self._arrays(self._covered_face(rng, int(rng.choice(self.covered_train))), "covered", False)
        if (draw := draw - config.no_face_share) < 0:
            return self._arrays(self._no_face(rng), "none", False)
        face = int(rng.choice(self.members[int(np.searchsorted(self.set_share, rng.random()))]))
        draw = rng.random()
        if draw < config.clean_share:
            kernels = {"area": 0.7, "bicubic": 0.3}
            degradation = DegradationConfig.clean(
                kernel_weights=kernels,
                misframing_probability=config.clean_misframing,
                grey_probability=0.05,
                tone_probability=0.2,
            )
        elif draw < config.clean_share + config.bare_share:
            degradation = config.degradation.model_copy(update={"occluder_probability": 0.0})
        else:
            degradation = config.degradation.model_copy(update={"occluder_probability": 1.0})
        given = bool(rng.random() < config.given_mask_share)
        return self._arrays(self._face(rng, face, degradation, vary=True), "face", given)

    @staticmethod
    def _arrays(made: dict[str, Any], kind: str, given: bool) -> dict[str, np.ndarray]:
        """Pictures as uint8 or float32 arrays, channels first; flags as numbers."""
        points = np.asarray(made["points"], np.float32)
        mask = cv2.resize(np.nan_to_num(made["mask"], nan=0.0), (64, 64), interpolation=cv2.INTER_AREA)
        mask_known = cv2.resize(np.isfinite(made["mask"]).astype(np.float32), (64, 64), interpolation=cv2.INTER_NEAREST)
        return {
            "lq": np.ascontiguousarray(made["lq"].transpose(2, 0, 1), dtype=np.float32),
            "gt": np.ascontiguousarray(made["gt"].transpose(2, 0, 1)),
            "mask": mask[None].astype(np.float32),
            "mask_known": mask_known[None],
            "mask_lq": made["mask_lq"][None].astype(np.float32),
            "given": np.float32(given),
            "has_truth": np.float32(kind == "face"),
            "covered": np.float32(kind == "covered"),
            "points": np.nan_to_num(points),
            "points_known": np.float32(np.isfinite(points).all()),
            "labels": made["labels"].astype(np.int64),
            "inside": made["inside"][None].astype(np.float32),
            "noise": np.float32(np.nan_to_num(made["noise"])),
            "noise_known": np.float32(np.isfinite(made["noise"])),
            "face": np.float32(made["face"]),
        }

    @staticmethod
    def _cover(batch: dict[str, Tensor]) -> Tensor:
        """(B, 1, 128, 128) share of each pixel under an occluder."""
        return F.interpolate(batch["mask"] * batch["mask_known"], scale_factor=2.0, mode="nearest")

    @staticmethod
    def _known(batch: dict[str, Tensor]) -> Tensor:
        """(B, 1, 128, 128) how far the truth is known: half outside the source picture, 0 where there is none."""
        return (0.5 + 0.5 * batch["inside"]) * batch["has_truth"].view(-1, 1, 1, 1)

    def _weights(self, batch: dict[str, Tensor]) -> Tensor:
        """Pixel weights at 128: those of `_known`, more under the occluder."""
        return self._known(batch) * (1 + self.config.hole * self._cover(batch))

    def distortion(self, image: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """How far (B, 3, 128, 128) pictures are from the truth, in the options' measures; the restorer's and its
        rivals' loss. Returns the weighted sum and its parts."""
        config, truth, weight = self.config, batch["gt"].float() / 255, self._weights(batch)
        parts = {f"pixel_{FRAME}": losses.pixel_loss(image, truth, weight)}
        total = config.pixel * parts[f"pixel_{FRAME}"]
        if config.ssim:
            parts["ssim"] = losses.ssim_loss(image.float(), truth, weight)
            total = total + config.ssim * parts["ssim"]
        if config.psnr:
            known = self._known(batch)
            parts["psnr"] = losses.psnr_loss(image.float(), truth, known)
            parts["psnr_covered"] = losses.psnr_loss(image.float(), truth, self._cover(batch) * known)
            total = total + config.psnr * (parts["psnr"] + 0.5 * parts["psnr_covered"])
        return total, parts

    def _held_out(self) -> dict[str, Tensor]:
        """Fixed validation samples: per set clean and covered, then really covered faces; none where none is held out.
        Made once."""
        if self._held is None:
            rows: list[dict[str, np.ndarray]] = []
            self._tags: list[str] = []
            noisy = DegradationConfig(occluder_probability=1.0, misframing_probability=0.0, tone_probability=0.0)
            for name in np.unique(self.pack.sets[self.pack.validation]):
                chosen = np.flatnonzero((self.pack.sets == name) & self.pack.validation)[: self.config.validation_faces]
                for mode, degradation in (("clean", DegradationConfig.clean()), ("covered", noisy)):
                    for i in chosen:
                        rows.append(
                            self._arrays(self._face(rng_of(99, int(i)), int(i), degradation, vary=False), "face", False)
                        )
                        self._tags.append(f"{name}_{mode}")
            if self.covered is not None and rows:
                for i in np.flatnonzero(self.covered.validation)[: self.config.validation_faces]:
                    cut = np.ascontiguousarray(self.covered.images[i][MARGIN:-MARGIN, MARGIN:-MARGIN])
                    lq = cv2.resize(cut, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
                    rows.append(
                        rows[0] | {"lq": np.ascontiguousarray(lq.transpose(2, 0, 1)), "gt": cut.transpose(2, 0, 1)}
                    )
                    self._tags.append("masked")
            self._held = {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in (rows[0] if rows else ())}
        return self._held


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

    def _forward(self, batch: dict[str, Tensor], detail: bool) -> ProUiganOutput:
        known = batch["given"].view(-1, 1, 1, 1)
        return self.network(
            batch["lq"].contiguous(memory_format=torch.channels_last), batch["mask_lq"], known, detail=detail
        )

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        if self.config.phase == "face":
            return self._face_loss(batch)
        return self._trunk_loss(batch) if self.config.phase == "trunk" else self._detail_loss(batch)

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

    def _trunk_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        config = self.config
        out = self._forward(batch, detail=False)
        truth, weight = batch["gt"].float() / 255, self._weights(batch)
        total, parts = self.distortion(out.images[-1], batch)
        image = out.images[-1]
        if config.agreed:
            image = self._agreed(out, batch)
            after, parts = self.distortion(image, batch)
            total = (1 - config.agreed) * total + config.agreed * after
        for k, share in enumerate(STEP_WEIGHTS):
            side = out.images[k].shape[-1]
            if side < FRAME:
                gt, w = (F.avg_pool2d(x, FRAME // side) for x in (truth, weight))
                parts[f"pixel_{side}"] = losses.pixel_loss(out.images[k], gt, w)
                total = total + share * config.pixel * parts[f"pixel_{side}"]
            divergence, distance = losses.landmark_loss(
                out.heatmap_logits[k], out.points[k], batch["points"], batch["points_known"]
            )
            total = total + share * (config.heatmap * divergence + config.coordinate * distance)
            logits = out.mask_logits[k].float()
            cover, known = (F.avg_pool2d(batch[n], 64 // logits.shape[-1]) for n in ("mask", "mask_known"))
            entropy = F.binary_cross_entropy_with_logits(logits, cover.clamp(0, 1), reduction="none")
            parts["mask"] = (entropy * known).sum() / known.sum().clamp_min(1)
            total = total + share * config.mask * parts["mask"]
            if self.labels is not None:
                logits = out.parsing_logits[k].float()
                step = 32 // logits.shape[-1]
                labels = batch["labels"][:, step // 2 :: step, step // 2 :: step]
                parts["parsing"] = F.cross_entropy(logits, labels, ignore_index=255)
                total = total + share * config.parsing * parts["parsing"]
            parts["landmark_px"] = distance.detach() * 128
        error = (image.detach().clamp(0, 1) - truth).abs()
        parts["uncertainty"] = losses.laplace_loss(out.log_scale, error, (weight > 0).float())
        parts["face"] = F.binary_cross_entropy_with_logits(out.face_logit, batch["face"])
        noise_error = F.smooth_l1_loss(out.log_noise, (batch["noise"] + 1e-3).log(), reduction="none")
        parts["noise"] = (noise_error * batch["noise_known"]).sum() / batch["noise_known"].sum().clamp_min(1)
        total = (
            total + config.uncertainty * parts["uncertainty"] + config.verdict * (parts["face"] + 0.5 * parts["noise"])
        )
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
        return total, {k: v.detach() for k, v in parts.items()}

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
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.loop.precision == "bf16"):
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
