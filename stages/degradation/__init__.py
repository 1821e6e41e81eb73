"""The degradation: what befalls a face between the street and a 16 px CCTV thumbnail. Seeded, recorded, usable alone.

`degrade_face` covers, films and compresses one canonical face. Order: tone or infra-red look (which also changes the
truth `gt`), occluders, burnt-in text, motion, defocus and downscaling, interlace, noise, codec.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stages.degradation import camera, drawing, occluders
from stages.degradation.camera import misframing
from stages.degradation.config import DegradationConfig, OccluderKind
from stages.degradation.drawing import FRAME, pick
from stages.degradation.occluders import MEAN_SHAPE, OCCLUDERS

__all__ = ["OCCLUDERS", "Degraded", "DegradationConfig", "degrade_face", "misframing"]

_TRIES = 5  # drawings of one kind until its area fits `coverage`; the nearest is kept
_BESIDE_MASKS: tuple[OccluderKind, ...] = ("sunglasses", "cap", "hood", "hair", "glare")  # what may join a mask


@dataclass(frozen=True)
class Degraded:
    """One degraded face.

    Attributes:
        lq: (n, n, 3) float32 RGB in [0, 1], the thumbnail.
        lq_clean: (n, n, 3) float32, the same optics, sampling, occluder and text, without interlace, noise and codec.
        gt: (128, 128, 3) uint8, the bare face in the thumbnail's own tone (grey where the camera was); what a
            perfect restoration of `lq` shows. The input itself where no tone was drawn.
        covered: (128, 128, 3) uint8, `gt` with occluder and text, before the optics.
        mask: (128, 128) float32 in [0, 1], opacity of occluder and text.
        mask_lq: (n, n) float32, the share of each thumbnail pixel that is covered (area average of `mask`).
        occluder: kind of the (first) occluder, None where bare.
        record: every drawn parameter, plain JSON values.
    """

    lq: np.ndarray
    lq_clean: np.ndarray
    gt: np.ndarray
    covered: np.ndarray
    mask: np.ndarray
    mask_lq: np.ndarray
    occluder: OccluderKind | None
    record: dict[str, Any]


def _cover(
    face: np.ndarray,
    points: np.ndarray,
    rng: np.random.Generator,
    config: DegradationConfig,
    donor: np.ndarray | None,
    record: dict,
) -> tuple[np.ndarray, np.ndarray | None, OccluderKind | None]:
    """Draw the occluders; returns covered face, uint8 alpha (None where bare) and the first one's kind."""
    if config.occluder is None and rng.random() >= config.occluder_probability:
        return face, None, None
    weights = config.occluder_weights
    drawn = pick(rng, tuple(weights), tuple(weights.values()))
    first = config.occluder or drawn
    kinds = [first]
    if rng.random() < config.second_occluder_probability:
        partners = _BESIDE_MASKS if first in occluders.MASKS else OCCLUDERS
        kinds.append(pick(rng, [k for k in partners if k != first]))
    scene = drawing.observe(face, points, rng, donor)
    alpha: np.ndarray | None = None
    entries = record["occluders"] = []
    low, high = config.coverage
    for kind in kinds:
        best, best_miss, best_share = None, np.inf, 0.0
        for _ in range(_TRIES):
            layer = occluders.draw(kind, scene, rng, config.donor_probability)
            share = occluders.coverage(layer.alpha, points)
            miss = max(low - share, share - high, 0.0)
            if miss < best_miss:
                best, best_miss, best_share = layer, miss, share
            if miss == 0:
                break
        assert best is not None, "no occluder was drawn"
        face = drawing.composite(face, best, rng)
        alpha = best.alpha if alpha is None else cv2.max(alpha, best.alpha)
        entries.append({"kind": kind, "coverage": round(best_share, 4), **best.details})
    return face, alpha, first


def degrade_face(
    face: np.ndarray,
    landmarks: np.ndarray | None,
    rng: np.random.Generator,
    config: DegradationConfig,
    donor: np.ndarray | None = None,
) -> Degraded:
    """Turn a canonical face into a CCTV thumbnail.

    Args:
        face: (128, 128, 3) uint8 RGB in the canonical frame; never changed.
        landmarks: (68, 2) px of that frame; None or not finite: the mean shape stands in.
        rng: the only source of chance: the same state gives the same result.
        config: probabilities and ranges. With everything off the thumbnail is the plain area average.
        donor: a (H, W, 3) uint8 picture of a really masked face in the canonical frame, or in it with an even margin;
            masks are then filled from it with `donor_probability`.

    Raises:
        ValueError: `face` or `donor` has the wrong shape or dtype.
    """
    if face.shape != (FRAME, FRAME, 3) or face.dtype != np.uint8:
        raise ValueError(f"degrade_face: expected a ({FRAME}, {FRAME}, 3) uint8 face, got {face.shape} {face.dtype}")
    if donor is not None:
        if donor.ndim != 3 or donor.shape[2] != 3 or min(donor.shape[:2]) < FRAME or donor.dtype != np.uint8:
            found = f"{donor.shape} {donor.dtype}"
            raise ValueError(f"degrade_face: expected a donor of at least ({FRAME}, {FRAME}, 3) uint8, got {found}")
        top, left = (donor.shape[0] - FRAME) // 2, (donor.shape[1] - FRAME) // 2
        donor = np.ascontiguousarray(donor[top : top + FRAME, left : left + FRAME])
    known = landmarks is not None and bool(np.isfinite(landmarks).all())
    points = np.asarray(landmarks, np.float32) if known else MEAN_SHAPE
    record: dict[str, Any] = {"size": config.size, "landmarks": "given" if known else "mean shape"}

    sample = face[::8, ::8].astype(np.int16)
    colourless = bool((np.ptp(sample, axis=-1) <= 2).all())
    tone = camera.draw_tone(rng, config, record, colourless)
    grey = camera.draw_grey(rng, config, record)
    gt = camera.apply_look(np.ascontiguousarray(face), tone, grey)
    covered, alpha, kind = _cover(gt, points, rng, config, donor, record)
    mask = np.zeros((FRAME, FRAME), np.float32) if alpha is None else alpha.astype(np.float32) * np.float32(1 / 255)
    if rng.random() < config.text_probability:
        covered, mask = camera.burn_text(rng, covered, mask, record)

    seen = covered
    if rng.random() < config.motion_probability:
        length, angle = rng.uniform(*config.motion_length_px), rng.uniform(0, 180)
        seen = camera.motion_blur(seen, length, angle)
        record["motion"] = {"length_px": round(length, 2), "angle_deg": round(angle, 1)}
    sigma = 0.0
    if rng.random() < config.defocus_probability:
        sigma = round(rng.uniform(*config.defocus_sigma_px), 1)
        record["defocus_sigma_px"] = sigma
    kernel = pick(rng, list(config.kernel_weights), list(config.kernel_weights.values()))
    record["kernel"] = kernel

    codec = None
    if rng.random() < config.jpeg_probability:
        codec = "jpeg"
    elif rng.random() < config.h264_probability:
        codec = "h264"
    scale = 1
    if codec is not None:
        chance = rng.random() - config.codec_at_4x_probability
        scale = 4 if chance < 0 else 2 if chance < config.codec_at_2x_probability else 1
        scale = min(scale, FRAME // config.size)
        record["codec_scale"] = scale
    signal = camera.downscale(seen, config.size * scale, kernel, sigma)  # (n * scale, n * scale, 3), 0..255
    clean = signal if scale == 1 else camera.downscale(signal, config.size)
    if rng.random() < config.interlace_probability:
        shift = rng.uniform(*config.interlace_shift_lq_px) * rng.choice([-1, 1])
        signal = camera.interlace(signal, shift * scale)
        record["interlace_shift_lq_px"] = round(float(shift), 3)
    if rng.random() < config.noise_probability:
        stronger = 1.5 if "infrared" in record else 1.0  # a night picture is amplified more
        read, shot = rng.uniform(*config.read_noise) * stronger, rng.uniform(*config.shot_noise) * stronger
        one_field = grey is not None or colourless
        signal = camera.sensor_noise(rng, signal, read * scale, shot * scale, one_field)
        record["noise"] = {"read": round(read, 3), "shot": round(shot, 3)}
    if codec is not None:
        signal = camera.encode(rng, signal, config, codec, record)
    lq = signal if scale == 1 else camera.downscale(signal, config.size)
    unit = np.float32(1 / 255)
    return Degraded(
        lq=np.clip(lq * unit, 0, 1),
        lq_clean=np.clip(clean * unit, 0, 1),
        gt=gt,
        covered=covered,
        mask=mask,
        mask_lq=camera.downscale(mask, config.size),
        occluder=kind,
        record=record,
    )
