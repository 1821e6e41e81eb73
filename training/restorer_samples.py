"""The samples of the restorer, which its rivals are trained on too: packed faces, mis-framed, covered and degraded.

Beside them really covered faces, which have no truth, and things that are no faces.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from landmarks.alignment import apply
from landmarks.scheme import MIRROR
from stages.degradation import DegradationConfig, degrade_face, misframing
from stages.networks.prouigan import ProUiganNet
from training import losses
from training.config import TrainingError, arguments_of
from training.faces import MARGIN, ages_of, build_pack
from training.loop import LoopConfig, Task, rng_of
from training.no_face import no_face
from training.parsing_labels import MIRRORED

FRAME = 128
SMALL = 0.8  # of a face's canonical size: as faces stand in street crops; smaller would leave the packed margin


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
    old_age: float = Field(default=50, ge=0)  # years; in sets with the column `age`, faces of that age and more are
    old_factor: int = Field(default=1, gt=0)  # drawn so many times as often as the younger ones
    parser: str | None = None  # weights card of the parsing teacher
    identity: str | None = None  # weights card of the identity network
    loose_share: float = Field(default=0.0, ge=0, le=1)  # of the faces, framed worse than the restorer is made for
    progressive: tuple[int, int] = (0, 0)  # the training steps at which the network's second and third steps join in
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


def _without_truth() -> dict[str, Any]:
    """What `FaceSamples._face` says of a sample, as far as nothing is known."""
    return {
        "gt": np.zeros((FRAME, FRAME, 3), np.uint8),
        "mask": np.full((FRAME, FRAME), np.nan, np.float32),
        "mask_lq": np.zeros((16, 16), np.float32),
        "points": np.full((68, 2), np.nan),
        "labels": np.full((32, 32), 255, np.uint8),
        "inside": np.zeros((FRAME, FRAME), np.uint8),
        "noise": np.nan,
    }


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
        times = np.where(np.isin(self.pack.ids, self._old()), config.old_factor, 1)
        members = [np.flatnonzero((self.pack.sets == s) & ~self.pack.validation) for s in sets]
        self.members = [np.repeat(m, times[m]) for m in members]
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

    def _old(self) -> list[str]:
        """Ids of the faces of `old_age` and more."""
        if self.config.old_factor == 1:
            return []
        ages = [item for path in self.config.data for item in ages_of(path).items()]
        old = [i for i, age in ages if age >= self.config.old_age]
        if not old:
            raise TrainingError("old_factor: no face of `old_age` and more in the column age of the data")
        return old

    def trained_sets(self) -> np.ndarray:
        parts = [self.pack.sets[np.unique(m)] for m in self.drawn]
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
        return _without_truth() | {"lq": made.lq, "gt": made.gt, "mask": sure, "face": 1.0}

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
        return _without_truth() | {"lq": lq, "face": 0.0}

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
