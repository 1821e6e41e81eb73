"""The generator of Pro-UIGAN: progressive upsampling and inpainting under geometry priors (Zhang et al., TIP 2022).

Three steps 16 -> 32 -> 64 -> 128. Each step estimates priors for the current face with a cross-modal transformer
(image features are queries, landmark features keys and values, and the mirror of it), then paints a larger, less
covered face under them. The paper gives no widths; these were chosen for bf16 convolutions on a CPU: most work at 16
and 32 px, narrow above.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmarks.heatmaps import soft_argmax
from landmarks.scheme import POINT_COUNT
from stages.networks.face_parser import PARSING_CLASSES
from stages.networks.layers import ChannelNorm, ResidualBlock, conv, filled, smoothed

INPUT_SIZE, OUTPUT_SIZE = 16, 128
STEPS = 3
PRIOR_CHANNELS = 32
LANDMARK_GRID = 32  # landmark features and heatmaps are kept at 32x32 cells at most: soft-argmax reads points far finer
TOKEN_GRID = 16  # both modalities meet at 16x16 tokens; a 4096-token map at 64 px would cost more than all else there


@dataclass
class ProUiganOutput:
    """What the generator gives; lists hold one entry per step taken, coarse to fine.

    Attributes:
        images: (B, 3, s, s) RGB in about [0, 1] for s = 32, 64, 128; the last is the distortion-optimal face.
        heatmap_logits: (B, 68, g, g) for g = 16, 32, 32.
        points: (B, 68, 2) pixels of the 128 frame; spread: (B, 68) standard deviation, pixels of the 128 frame.
        parsing_logits: (B, 19, g, g) for g = 16, 32, 32.
        mask_logits: (B, 1, s, s) for s = 16, 32, 64: is this covered?
        log_scale: (B, 1, 128, 128) log of the expected absolute error of the last image (Laplace scale); without
            channels where the last step was not taken.
        face_logit: (B,) is there a face at all; log_noise: (B,) log standard deviation of the input's noise.
        detail: (B, 3, 128, 128) what `fidelity` 0 adds to the last image, 0 under a cover; None unless asked for.
    """

    images: list[Tensor]
    heatmap_logits: list[Tensor]
    points: list[Tensor]
    spread: list[Tensor]
    parsing_logits: list[Tensor]
    mask_logits: list[Tensor]
    log_scale: Tensor
    face_logit: Tensor
    log_noise: Tensor
    detail: Tensor | None


def pooled(x: Tensor, size: int) -> Tensor:
    """Average down to `size` cells a side; x itself where it has that size."""
    return x if x.shape[-1] == size else F.avg_pool2d(x, x.shape[-1] // size)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept may be used in training later
def _doubling_matrix(side: int) -> Tensor:
    """(2 side, side) bicubic interpolation along one axis, as `F.interpolate` does it."""
    identity = torch.eye(side).view(1, 1, side, side)
    return F.interpolate(identity, size=(2 * side, side), mode="bicubic", align_corners=False)[0, 0]


def doubled(image: Tensor) -> Tensor:
    """(B, 3, s, s) float32 -> (B, 3, 2s, 2s), bicubic. As two matrix products: on a CPU a tenth of the time."""
    matrix = _doubling_matrix(image.shape[-1]).to(image.device)
    with torch.autocast(image.device.type, enabled=False):  # a picture in bfloat16 would have 256 levels
        return matrix @ image @ matrix.T


def enlarged(x: Tensor, size: int) -> Tensor:
    """Repeat cells up to `size` a side; x itself where it has that size."""
    return x if x.shape[-1] == size else F.interpolate(x, scale_factor=float(size // x.shape[-1]), mode="nearest")


class Attention(nn.Module):
    """Multi-head attention from one feature map to another, with learned position codes (Vaswani et al. 2017).

    queries (B, Cq, 16, 16), keys (B, Ck, 16, 16) -> update (B, Cq, 16, 16).
    """

    def __init__(self, query_channels: int, key_channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = ChannelNorm(query_channels), ChannelNorm(key_channels)
        self.query_place = nn.Parameter(torch.randn(1, query_channels, TOKEN_GRID, TOKEN_GRID) * 0.02)
        self.key_place = nn.Parameter(torch.randn(1, key_channels, TOKEN_GRID, TOKEN_GRID) * 0.02)
        self.query, self.key_value = conv(query_channels, width, 1), conv(key_channels, 2 * width, 1)
        self.out = filled(conv(width, query_channels, 1))

    def _tokens(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.reshape(batch, self.heads, channels // self.heads, height * width).transpose(2, 3)  # (B, heads, N, d)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        batch, _, height, width = queries.shape
        q = self.query(self.query_norm(queries) + self.query_place.to(queries.dtype))
        k, v = self.key_value(self.key_norm(keys) + self.key_place.to(keys.dtype)).chunk(2, 1)
        q, k, v = self._tokens(q), self._tokens(k), self._tokens(v)
        # 256 tokens: written out this is three times as fast on a CPU as scaled_dot_product_attention.
        mixed = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), -1) @ v
        return self.out(mixed.transpose(2, 3).reshape(batch, -1, height, width))


class CrossModalTransformer(nn.Module):
    """Appearance and geometry improve each other: attention both ways, then a feed-forward layer on each side.

    image (B, C, r, r), landmark (B, L, g, g) -> the same shapes.
    """

    def __init__(self, channels: int, landmark_channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.to_image = Attention(channels, landmark_channels, width, heads)
        self.to_landmark = Attention(landmark_channels, channels, width, heads)
        self.image_forward, self.landmark_forward = (
            self._forward_layer(channels),
            self._forward_layer(landmark_channels),
        )

    @staticmethod
    def _forward_layer(channels: int) -> nn.Sequential:
        return nn.Sequential(
            ChannelNorm(channels), conv(channels, 2 * channels, 1), nn.GELU(), conv(2 * channels, channels, 1)
        )

    def forward(self, image: Tensor, landmark: Tensor) -> tuple[Tensor, Tensor]:
        image_tokens, landmark_tokens = pooled(image, TOKEN_GRID), pooled(landmark, TOKEN_GRID)
        image_update = self.to_image(image_tokens, landmark_tokens)
        image_update = image_update + self.image_forward(image_tokens + image_update)
        landmark_update = self.to_landmark(landmark_tokens, image_tokens)
        landmark_update = landmark_update + self.landmark_forward(landmark_tokens + landmark_update)
        return image + enlarged(image_update, image.shape[-1]), landmark + enlarged(landmark_update, landmark.shape[-1])


class GuidedBlock(nn.Module):
    """Residual block whose hidden channels are gated by the priors, so that holes are filled and faces are kept.

    Gated convolution in the spirit of Yu et al., ICCV 2019; the gate is a 1x1 layer on the priors, not a second 3x3.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels, dilation=dilation), filled(conv(channels, channels))
        self.gate = filled(conv(PRIOR_CHANNELS, channels, 1), bias=1, weight=None)  # open at the start

    def forward(self, x: Tensor, priors: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x)) * self.gate(priors)))


class Step(nn.Module):
    """One step: priors for the face at `size`, then a face of twice the size under them.

    Args:
        size: side of the incoming face, px.
        channels: width here; next_channels: of the features handed on at 2 * size, None at the last step.
        painted: channels of the picture painted at 2 * size.
        carried: channels of the features handed over by the step before (0 at the first).
        blocks: residual blocks before the transformer; dilations: guided blocks after it.
        landmark_dilations: residual blocks of the landmark features.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        next_channels: int | None,
        painted: int,
        carried: int,
        carried_landmark: int,
        landmark_channels: int,
        blocks: int,
        dilations: tuple[int, ...],
        landmark_dilations: tuple[int, ...],
        width: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.grid = min(size, LANDMARK_GRID)
        self.stem = conv(5, channels)  # RGB, mask, mask known
        self.carry = conv(carried, channels) if carried else None
        self.place = nn.Parameter(torch.zeros(1, channels, self.grid, self.grid))
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.landmark_stem = conv(3, landmark_channels)
        self.landmark_carry = conv(carried_landmark, landmark_channels) if carried_landmark else None
        self.landmark_mix = conv(channels, landmark_channels, 1)
        self.landmark_place = nn.Parameter(torch.zeros(1, landmark_channels, self.grid, self.grid))
        self.landmark_blocks = nn.Sequential(
            *(ResidualBlock(landmark_channels, dilation=d) for d in landmark_dilations)
        )
        self.transformer = CrossModalTransformer(channels, landmark_channels, width, heads)
        self.heatmap_head = conv(landmark_channels, POINT_COUNT, 1)
        self.parsing_head = conv(channels, len(PARSING_CLASSES), 1)
        # Faces start as bare: else the skip would start half closed.
        self.mask_head = filled(conv(channels, 1), bias=-3, weight=None)
        self.prior = conv(POINT_COUNT + len(PARSING_CLASSES), PRIOR_CHANNELS, 1)
        self.prior_mask = conv(1, PRIOR_CHANNELS, 1)
        self.prior_in = conv(PRIOR_CHANNELS, channels, 1)
        self.guided = nn.ModuleList(GuidedBlock(channels, d) for d in dilations)
        self.up = conv(channels, 4 * next_channels, 1) if next_channels else None
        self.paint = filled(conv(channels, 4 * painted))

    def forward(
        self, rgb: Tensor, mask: Tensor, known: Tensor, carried: Tensor | None, carried_landmark: Tensor | None
    ) -> dict[str, Tensor]:
        """Priors and features of this step.

        Args:
            rgb: (B, 3, s, s) in [-1, 1]. mask: (B, 1, s, s), so far. known: (B, 1, 1, 1), 1 where it was given.
        """
        dtype = self.stem.weight.dtype  # pictures stay float32; features take the weights' type
        x = self.stem(torch.cat([rgb, mask, known.expand_as(mask)], 1).to(dtype))  # (B, C, s, s)
        if self.carry is not None and carried is not None:
            x = x + self.carry(carried)
        x = self.blocks(x + enlarged(self.place, x.shape[-1]).to(x.dtype))  # a float32 code would make all float32
        small, small_rgb = pooled(x, self.grid), pooled(rgb, self.grid).to(dtype)
        points = self.landmark_stem(small_rgb) + self.landmark_mix(small)  # (B, L, g, g)
        if self.landmark_carry is not None and carried_landmark is not None:
            points = points + self.landmark_carry(carried_landmark)
        points = self.landmark_blocks(points + self.landmark_place.to(points.dtype))
        x, points = self.transformer(x, points)
        heatmap_logits = self.heatmap_head(F.silu(points))
        parsing_logits = self.parsing_head(F.silu(pooled(x, self.grid)))
        mask_logits = self.mask_head(F.silu(x))
        found = torch.where(known > 0.5, mask, torch.sigmoid(mask_logits.float()).to(mask.dtype))
        coordinates, spread, heatmaps = soft_argmax(heatmap_logits)
        # A heatmap's cells sum to 1: scaled so that a sharp peak is of the order of 1.
        maps = torch.cat([heatmaps * self.grid, torch.softmax(parsing_logits.float(), 1)], 1).to(dtype)
        priors = F.silu(enlarged(self.prior(maps), x.shape[-1]) + self.prior_mask(found.to(dtype)))  # (B, 32, s, s)
        x = x + self.prior_in(priors)
        for block in self.guided:
            x = block(x, priors)
        active = F.silu(x)
        return {
            "features": x,
            "landmark": points,
            "mask": found,
            "painted": F.pixel_shuffle(self.paint(active), 2).float(),  # (B, painted, 2s, 2s)
            "up": active if self.up is None else F.pixel_shuffle(self.up(active), 2),
            "heatmap_logits": heatmap_logits,
            "parsing_logits": parsing_logits,
            "mask_logits": mask_logits,
            "points": coordinates,
            "spread": spread,
        }


class DetailBranch(nn.Module):
    """Sharp detail for fidelity 0, trained adversarially on top of the finished distortion-optimal trunk.

    (B, C3, 64, 64) features of the last step, (B, C2, 32, 32) of the one before, (B, 3, 128, 128) the trunk's picture
    -> (B, 3, 128, 128) residual, in which nothing alternates from pixel to pixel: critics like such patterns, and
    whatever enlarges the face next makes them plain.
    """

    def __init__(self, fine_channels: int, coarse_channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.fine, self.coarse = conv(fine_channels, width, 1), conv(coarse_channels, 4 * width, 1)
        self.picture = conv(12, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.paint = filled(conv(width, 12))

    def forward(self, fine: Tensor, coarse: Tensor, picture: Tensor) -> Tensor:
        x = self.fine(fine) + F.pixel_shuffle(self.coarse(coarse), 2) + self.picture(F.pixel_unshuffle(picture, 2))
        return smoothed(F.pixel_shuffle(self.paint(F.silu(self.blocks(x))), 2).float())


class FaceHead(nn.Module):
    """Is it a face? (B, C, 16, 16) features of the first step -> (B,) logit. It sees where things lie."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze = conv(channels, width, 1)
        self.halve = nn.ModuleList([conv(width, width, stride=2), conv(width, width, stride=2)])
        self.join = nn.Linear(width * (INPUT_SIZE // 4) ** 2, width)
        self.judge = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.squeeze(F.silu(features))
        for layer in self.halve:
            x = layer(F.silu(x))
        return self.judge(F.silu(self.join(F.silu(x).flatten(1))))[:, 0]


class ProUiganNet(nn.Module):
    """Covered 16x16 face -> uncovered 128x128 face, its geometry, its occluder and its uncertainty.

    Args:
        widths: channels at 16, 32 and 64 px; 128 px are painted from 64 by a pixel shuffle.
        blocks: residual blocks of each step before its transformer.
        dilations: guided blocks of each step after it.
        landmark_width, landmark_dilations: channels and residual blocks of the landmark features.
        attention_width, heads: of the transformers.
        detail_width, detail_blocks: channels and residual blocks of the detail branch at 64 px.
        face_width: channels of the head that tells faces from other things; 0: one weight per feature does it.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (192, 96, 32),
        blocks: tuple[int, ...] = (3, 0, 0),
        dilations: tuple[tuple[int, ...], ...] = ((1, 2, 4), (1, 2), (1,)),
        landmark_width: int = 48,
        landmark_dilations: tuple[tuple[int, ...], ...] = ((1, 2, 1), (2,), (2,)),
        attention_width: int = 64,
        heads: int = 2,
        detail_width: int = 48,
        detail_blocks: int = 2,
        face_width: int = 0,
    ) -> None:
        super().__init__()
        steps = []
        for k in range(STEPS):
            steps.append(
                Step(
                    size=INPUT_SIZE * 2**k,
                    channels=widths[k],
                    next_channels=widths[k + 1] if k < 2 else None,
                    painted=3 if k < 2 else 4,
                    carried=widths[k] if k else 0,
                    carried_landmark=landmark_width if k else 0,
                    landmark_channels=landmark_width,
                    blocks=blocks[k],
                    dilations=tuple(dilations[k]),
                    landmark_dilations=tuple(landmark_dilations[k]),
                    width=attention_width,
                    heads=heads,
                )
            )
        self.steps = nn.ModuleList(steps)
        self.verdict_head = nn.Linear(widths[0], 2)
        self.face_head = FaceHead(widths[0], face_width) if face_width else None
        self.detail = DetailBranch(widths[2], widths[1], detail_width, detail_blocks)

    def forward(
        self,
        lq: Tensor,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        detail: bool = False,
        steps: int = STEPS,
    ) -> ProUiganOutput:
        """Restore.

        Args:
            lq: (B, 3, 16, 16) RGB in [0, 1].
            mask: (B, 1, 16, 16) covered share of each pixel, used where `known`; None: blind.
            known: (B, 1, 1, 1), 1 where `mask` is given for that face; None: given for all if `mask` is there.
            detail: also compute the detail branch.
            steps: how many to take, 1 to 3; all for `detail`.
        """
        image = lq * 2 - 1
        if mask is None:
            mask, known = torch.zeros_like(lq[:, :1]), torch.zeros_like(lq[:, :1, :1, :1])
        elif known is None:
            known = torch.ones_like(lq[:, :1, :1, :1])
        mask = mask * known
        covered = torch.zeros_like(mask)  # what earlier steps already painted over
        carried = carried_landmark = None
        outs: list[dict[str, Tensor]] = []
        images: list[Tensor] = []
        for step in self.steps[:steps]:
            out = step(image, mask, known, carried, carried_landmark)
            outs.append(out)
            # The skip loses what was found covered here and not before, so no occluder colour leaks into the next size.
            fresh = (out["mask"] - covered).clamp_min(0).detach()
            base = doubled((image * (1 - fresh)).float())
            mask = F.interpolate(out["mask"].float(), scale_factor=2.0, mode="bilinear", align_corners=False)
            covered = mask
            carried = out["up"]
            image = base + out["painted"][:, :3]
            carried_landmark = enlarged(out["landmark"], min(image.shape[-1], LANDMARK_GRID))
            images.append(image * 0.5 + 0.5)
        last = outs[-1]["painted"][:, 3:]
        verdict = self.verdict_head(outs[0]["features"].mean((2, 3))).float()
        detail_there = None
        if detail:  # only where something was seen: under a cover sharp detail would be texture of no face
            fine, coarse = outs[2]["features"], outs[1]["features"]
            detail_there = self.detail(fine, coarse, image.to(fine.dtype)).float() * 0.5 * (1 - covered)
        to_frame = [OUTPUT_SIZE / out["heatmap_logits"].shape[-1] for out in outs]  # pixels of the 128 frame per cell
        return ProUiganOutput(
            images=images,
            heatmap_logits=[out["heatmap_logits"] for out in outs],
            points=[(out["points"] + 0.5) * cell - 0.5 for out, cell in zip(outs, to_frame, strict=True)],
            spread=[out["spread"] * cell for out, cell in zip(outs, to_frame, strict=True)],
            parsing_logits=[out["parsing_logits"] for out in outs],
            mask_logits=[out["mask_logits"] for out in outs],
            log_scale=last - 3,  # an error of 0.05, about the mean of a trained network, at the start
            face_logit=verdict[:, 0] if self.face_head is None else self.face_head(outs[0]["features"]).float(),
            log_noise=verdict[:, 1],
            detail=detail_there,
        )
