"""Stage `prouigan`: a covered 16x16 face becomes an uncovered 128x128 face, with its geometry and its uncertainty."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.base import Sides, Stage, StageConfig
from stages.batch import HALF_INVENTED, FaceBatch
from stages.consistency import agree, average_to, consistency_db, visible_share
from stages.luma import luma
from stages.networks.layers import smoothed
from stages.networks.prouigan import INPUT_SIZE, OUTPUT_SIZE, ProUiganNet, ProUiganOutput
from stages.precision import Precision
from stages.resample import at_new_size
from stages.weights import load_network

# How much more than its expected error a covered pixel counts. On 480 held-out faces covered parts are then 1.64 times
# as uncertain as the rest (1.44 at .1), for .014 of the rank correlation with the error.
COVERED_MORE = 0.3
# Spread of a landmark's heatmap, px of the 128 frame, at which its confidence is one half.
HALF_CONFIDENT_PX = 4.0
# How painted detail falls as fidelity rises: at .5 a quarter of it is left. With that quarter .913 of 2,614 clean LFW
# pairs are told right, with none .912, with half .906 (AUC .9680, .9675, .9676).
DETAIL_POWER = 2
NOISE_SLACK = 2.0
# Standard deviations, of [0, 1]: up to the first, two and a half grey levels, noise is no reason to depart from the
# input; from the second on it is one in full. The grain of a photograph, averaged to 16x16, reads as something between:
# of 60 bare faces of LFW one at 3.4 levels. Against .004 and .012, noisy covered faces lose .02 dB, and that one agrees
# to 45 dB instead of 36.
LEAST_NOISE, SURE_NOISE = 0.010, 0.024


class ProUiganConfig(StageConfig):
    """Options of `prouigan`."""

    weights: str = "prouigan_128"  # name of a card in weights/
    fidelity: float = Field(default=0.5, ge=0, le=1)  # 1: distortion-optimal, closest to the input; 0: sharpest
    noise_slack: float = Field(
        default=NOISE_SLACK, ge=0, le=10
    )  # input noise that need not be reproduced, in its standard deviations
    flip_ensemble: bool = False  # also restore the mirror image and take the mean: closer to the truth, half as fast


class ProUigan(Stage[ProUiganConfig]):
    """Restores covered CCTV thumbnails, blind or under a given mask.

    Reads `image` (B, 3, n, n) RGB in [0, 1], n = 12..64, which is area-averaged to 16x16, and `observed`, with which
    the visible part of the result agrees exactly. What earlier stages left oblong is padded to a square by its mirror
    image; where they changed the shape of the picture, or made it smaller than a larger input, the evidence is what
    they handed on. Writes `image` (B, 3, 128, 128), `landmarks`, `landmark_confidence`,
    `face_score`, `heatmaps`, `parsing`, `occlusion`, `uncertainty`, `occluded_fraction` and `lr_consistency_db`.
    Method: Zhang, Yu, Lu, Liu: Pro-UIGAN, IEEE TIP 31, 2022. Differs from it in: widths, token counts, a detail branch
    behind `fidelity` instead of one adversarial answer, an uncertainty head, and the exact step at the end.
    """

    Config = ProUiganConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image", "observed", "given_mask"})
    writes: ClassVar[frozenset[str]] = frozenset(
        {
            "image",
            "landmarks",
            "landmark_confidence",
            "face_score",
            "heatmaps",
            "parsing",
            "occlusion",
            "uncertainty",
            "occluded_fraction",
            "lr_consistency_db",
            "notes",
        }
    )
    carries: ClassVar[frozenset[str]] = frozenset({"to_source"})
    accepts_px: ClassVar[tuple[int, int]] = (12, 64)
    training: ClassVar[Mapping[str, str]] = {"weights": "configs/train/prouigan.yaml"}

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        return OUTPUT_SIZE, OUTPUT_SIZE

    def __init__(self, config: ProUiganConfig, device: torch.device, precision: Precision) -> None:
        super().__init__(config, device, precision)
        network = load_network(config.weights, device, torch.bfloat16 if precision == "bf16" else torch.float32)
        if not isinstance(network, ProUiganNet):
            raise TypeError(f"prouigan: {config.weights} holds a {type(network).__name__}, not a restorer")
        self.network = network

    @torch.inference_mode()
    def __call__(self, batch: FaceBatch) -> FaceBatch:
        batch = squared(batch)
        lq = average_to(batch.image, INPUT_SIZE).contiguous(memory_format=torch.channels_last)
        given = None if batch.given_mask is None else average_to(batch.given_mask, INPUT_SIZE)
        fidelity = self.config.fidelity
        out = self.network(lq, given, detail=fidelity < 1)
        observed = (batch.observed if batch.observed.shape[-1] <= self.accepts_px[1] else batch.image).float()
        image = painted(out, fidelity)
        if self.config.flip_ensemble:
            given = None if given is None else given.flip(-1)
            image = (image + painted(self.network(lq.flip(-1), given, detail=fidelity < 1), fidelity).flip(-1)) / 2
        occlusion = found_cover(out) if batch.given_mask is None else in_frame(batch.given_mask)
        image, uncertainty, consistency = finished(image, out, observed, occlusion, batch.grey, self.config.noise_slack)
        to_source = batch.to_source
        if to_source is not None:
            to_source = at_new_size(to_source, torch.full((2,), OUTPUT_SIZE / batch.image.shape[-1]).to(to_source))
        return batch.replace(
            image=image,
            landmarks=out.points[-1].float(),
            landmark_confidence=1 / (1 + (out.spread[-1] / HALF_CONFIDENT_PX) ** 2),
            face_score=torch.sigmoid(out.face_logit),
            heatmaps=torch.softmax(out.heatmap_logits[-1].float().flatten(2), -1).view_as(out.heatmap_logits[-1]),
            parsing=torch.softmax(out.parsing_logits[-1].float(), 1),
            occlusion=occlusion,
            uncertainty=uncertainty,
            occluded_fraction=occlusion.mean((1, 2, 3)),
            lr_consistency_db=consistency,
            to_source=to_source,
        )


def painted(out: ProUiganOutput, fidelity: float | Tensor) -> Tensor:
    """(B, 3, 128, 128) at the fidelity asked for, a number or (B, 1, 1, 1), before the exact step."""
    image = out.images[-1]
    return image if out.detail is None else image + (1 - fidelity) ** DETAIL_POWER * out.detail


def found_cover(out: ProUiganOutput) -> Tensor:
    """(B, 1, 128, 128) in [0, 1]: the last step's estimate, without its pattern of single pixels."""
    return in_frame(smoothed(torch.sigmoid(out.mask_logits[-1].float())))


def in_frame(mask: Tensor) -> Tensor:
    """(B, 1, h, w) -> (B, 1, 128, 128) in [0, 1], bilinear."""
    size = (OUTPUT_SIZE, OUTPUT_SIZE)
    return F.interpolate(mask.float(), size=size, mode="bilinear", align_corners=False).clamp(0, 1)


def finished(
    image: Tensor, out: ProUiganOutput, observed: Tensor, occlusion: Tensor, grey: Tensor, noise_slack: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The exact step, and what is said of its result.

    Args:
        image: (B, 3, 128, 128) as painted. observed: (B, 3, n, n) the evidence. occlusion: (B, 1, 128, 128).
        grey: (B,) bool, the input is grey. noise_slack: as of `ProUiganConfig`.

    Returns:
        The picture (B, 3, 128, 128), its uncertainty (B, 1, 128, 128), and its agreement with the input (B,), dB.
    """
    visible = visible_share(occlusion, observed.shape[-1])
    image = agree(image, observed, visible, noise_of(out, observed.shape[-1], noise_slack))
    image = torch.where(grey.view(-1, 1, 1, 1), luma(image), image)
    error = out.log_scale.clamp(-7, 1).exp()
    doubt = error / (error + HALF_INVENTED)
    # What was covered is invented, but not all of it alike: a cheek is surer than a mouth.
    uncertainty = (doubt * (1 + COVERED_MORE * occlusion)).clamp(max=1)
    return image, uncertainty, consistency_db((image * 255).round() / 255, observed, visible)


def squared(batch: FaceBatch) -> FaceBatch:
    """A batch whose pictures, masks and evidence are square: as it is, or padded by reflection about the content, with
    `to_source` moved along.

    Noted then: the size before, (height, width), and where it lies now, (x, y)."""
    height, width = batch.image.shape[-2:]
    same = batch.observed.shape[-2:] == batch.image.shape[-2:]
    if height == width:
        square = batch.observed.shape[-2] == batch.observed.shape[-1]
        return batch if square else batch.replace(observed=batch.image)
    mask = batch.given_mask
    if mask is not None:
        mask = _padded(F.interpolate(mask.float(), size=(height, width), mode="area"))
    side = max(height, width)
    offset = [(side - width) // 2, (side - height) // 2]
    note = {"padded_from_px": [height, width], "padded_offset_px": offset}
    to_source = batch.to_source
    if to_source is not None:
        moved = to_source[:, :, 2] - to_source[:, :, :2] @ torch.tensor(offset).to(to_source)
        to_source = torch.cat([to_source[:, :, :2], moved[:, :, None]], dim=2)
    return batch.replace(
        image=_padded(batch.image), observed=_padded(batch.observed if same else batch.image), given_mask=mask,
        to_source=to_source, notes=tuple(earlier | note for earlier in batch.notes),
    )  # fmt: skip


def _padded(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, S, S), S the longer side: mirrored at its edges."""
    side = max(image.shape[-2:])
    for axis in (-2, -1):
        size = image.shape[axis]
        place = torch.arange(side, device=image.device) - (side - size) // 2
        place = torch.where(place < 0, -1 - place, torch.where(place >= size, 2 * size - 1 - place, place))
        image = image.index_select(axis, place)
    return image


def noise_of(out: ProUiganOutput, size: int, deviations: float = NOISE_SLACK) -> Tensor:
    """(B,) differences from an input of `size` px a side that are its noise, as the network reads it.

    None up to `LEAST_NOISE`, all of it from `SURE_NOISE` on; none where less than 16 px were enlarged, which looks like
    noise.
    """
    noise = out.log_noise.exp()
    if size < INPUT_SIZE:
        return torch.zeros_like(noise)
    share = ((noise - LEAST_NOISE) / (SURE_NOISE - LEAST_NOISE)).clamp(0, 1)
    # Averaging n x n pixels to 16x16 divided the noise's standard deviation by n / 16.
    return noise * share * deviations * (size / INPUT_SIZE)
