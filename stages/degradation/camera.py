"""Optics, sensor and codec of a surveillance camera, from a 128 px face to a thumbnail. Pictures here are RGB.

The shot-and-read noise model and the chain blur -> sampling -> noise -> codec follow the usual practice of blind
restoration (for instance Zhang et al., ICCV 2021, BSRGAN); interlace, infra-red and burnt-in text come on top.
"""

from functools import lru_cache

import cv2
import numpy as np

from stages.degradation.config import DegradationConfig, Kernel
from stages.degradation.drawing import FRAME
from stages.degradation.textures import time_stamps
from stages.luma import LUMA


def misframing(rng: np.random.Generator, config: DegradationConfig) -> np.ndarray:
    """A random framing error as a (2, 3) float64 matrix from canonical to mis-framed pixels of the 128 px frame.

    Rotation and scale are about the frame's centre. The identity where the draw says no error. The caller warps a crop
    wide enough that no border shows, and maps landmarks with the same matrix.
    """
    if rng.random() >= config.misframing_probability:
        return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    angle = np.deg2rad(rng.uniform(-1, 1) * config.misframing_roll_deg)
    scale = 1 + rng.uniform(-1, 1) * config.misframing_scale
    shift = rng.uniform(-1, 1, 2) * config.misframing_shift_px
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    centre = (FRAME - 1) / 2
    rotation = np.array([[c, -s], [s, c]])
    return np.concatenate([rotation, (np.full(2, centre) - rotation @ np.full(2, centre) + shift)[:, None]], axis=1)


def _cubic(t: np.ndarray) -> np.ndarray:  # Keys 1981, a = -0.5
    t = abs(t)
    return np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0.0))


def _lanczos(t: np.ndarray) -> np.ndarray:
    return np.where(abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0.0)


@lru_cache(maxsize=2048)
def _sampling(kernel: Kernel, size: int, sigma_tenths: int, source: int = FRAME) -> np.ndarray:
    """Blur and downscaling of one axis as a (size, source) float32 matrix whose rows sum to 1.

    Args:
        kernel: shape of the antialiasing kernel, stretched by the step; "subsample" reads a third of each step only.
        size: pixels out; `source`: pixels in.
        sigma_tenths: defocus before sampling, in tenths of a source pixel; 0 for none.
    """
    step = source / size
    edges = np.arange(size + 1) * step
    if kernel == "area" or kernel == "subsample":
        shrink = 0.0 if kernel == "area" else step / 3
        low, high = edges[:-1, None] + shrink, edges[1:, None] - shrink
        x = np.arange(source)[None]
        weights = np.clip(np.minimum(high, x + 1) - np.maximum(low, x), 0, None)
    else:
        t = (np.arange(source)[None] + 0.5 - (edges[:-1, None] + step / 2)) / step
        weights = {"bilinear": lambda v: np.clip(1 - abs(v), 0, None), "bicubic": _cubic, "lanczos": _lanczos}[kernel](
            t
        )
    weights = weights / weights.sum(1, keepdims=True)
    if sigma_tenths:
        sigma = sigma_tenths / 10
        pad = int(np.ceil(3 * sigma)) + 1
        tap = np.exp(-0.5 * (np.arange(-pad, pad + 1) / sigma) ** 2)
        tap /= tap.sum()
        blur = np.zeros((source, source))
        rows = np.arange(source)
        for k, value in zip(range(-pad, pad + 1), tap, strict=True):  # reflected borders, as cv2.BORDER_REFLECT
            at = (rows + k) % (2 * source)
            np.add.at(blur, (rows, np.where(at < source, at, 2 * source - 1 - at)), value)
        weights = weights @ blur
    return np.ascontiguousarray(weights, np.float32)


def downscale(image: np.ndarray, size: int, kernel: Kernel = "area", sigma_px: float = 0.0) -> np.ndarray:
    """Defocus and downscale a square picture.

    Args:
        image: (H, H, C) or (H, H), any real dtype and range.
        size: px of the result.
        kernel: the antialiasing kernel; "area" with no blur is plain averaging.
        sigma_px: Gaussian defocus in source pixels, rounded to tenths.

    Returns:
        (size, size[, C]) float32 in the range of `image` (bicubic and lanczos may overshoot).
    """
    source = image.shape[0]
    matrix = _sampling(kernel, size, round(sigma_px * 10), source)
    planes = image.astype(np.float32)
    # Rows first, over all channels at once; then columns, channel by channel through the batched product.
    rows = (matrix @ planes.reshape(source, -1)).reshape(size, source, -1)
    out = np.matmul(matrix, rows)
    return out.reshape((size, size) + image.shape[2:])


def motion_blur(image: np.ndarray, length_px: float, angle_deg: float) -> np.ndarray:
    """Blur along a line of `length_px` at `angle_deg`; uint8 in and out, any channels."""
    reach = int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    half = 0.5 * length_px * np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))])
    a, b = np.round((reach - half) * 256).astype(int), np.round((reach + half) * 256).astype(int)
    cv2.line(kernel, a.tolist(), b.tolist(), 1.0, 1, cv2.LINE_AA, 8)
    if kernel.sum() <= 0:
        return image
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def draw_tone(rng: np.random.Generator, config: DegradationConfig, record: dict, grey: bool) -> np.ndarray | None:
    """Draw brightness, contrast, gamma and colour cast as a (256, 3) uint8 table, or None where nothing changes.

    A picture without colour (`grey`) gets no cast.
    """
    if rng.random() >= config.tone_probability:
        return None
    brightness, contrast, gamma = (
        rng.uniform(*config.brightness),
        rng.uniform(*config.contrast),
        rng.uniform(*config.gamma),
    )
    gains = 1 + rng.uniform(-1, 1, 3) * config.cast
    if grey:
        gains = np.ones(3)
    record["tone"] = {
        "brightness": round(brightness, 2), "contrast": round(contrast, 3), "gamma": round(gamma, 3),
        "gains": [round(float(g), 3) for g in gains],
    }  # fmt: skip
    curve = 255 * (np.arange(256) / 255) ** gamma
    table = ((curve - 128) * contrast + 128 + brightness)[:, None] * gains
    return np.clip(np.round(table), 0, 255).astype(np.uint8)


def draw_grey(rng: np.random.Generator, config: DegradationConfig, record: dict) -> np.ndarray | None:
    """Draw a grey or an infra-red look as a (256, 3) float32 table of channel contributions, or None for colour.

    The grey level of a pixel is the sum of its channels' entries. Infra-red light brightens skin and hides colour: the
    red channel dominates and a gamma below 1 lifts the shadows.
    """
    chance = rng.random()
    if chance < config.infrared_probability:
        red = rng.uniform(0.5, 0.9)
        mix, gamma = np.array([red, (1 - red) * 0.7, (1 - red) * 0.3]), rng.uniform(*config.infrared_gamma)
        record["infrared"] = {"mix": [round(float(m), 3) for m in mix], "gamma": round(gamma, 3)}
    elif chance < config.infrared_probability + config.grey_probability:
        mix, gamma = np.array(LUMA), 1.0
        record["grey"] = True
    else:
        return None
    return np.append(mix, gamma).astype(np.float32)


def apply_look(image: np.ndarray, tone: np.ndarray | None, grey: np.ndarray | None) -> np.ndarray:
    """Apply the drawn tone table and grey mix to a (H, W, 3) uint8 picture; the same object where both are None."""
    if tone is not None:
        image = cv2.LUT(image, tone[None])
    if grey is not None:
        level = cv2.transform(image, grey[None, :3])
        if grey[3] != 1:
            level = cv2.LUT(level, np.round(255 * (np.arange(256) / 255) ** float(grey[3])).astype(np.uint8))
        image = cv2.merge([level, level, level])
    return image


def burn_text(
    rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, record: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Write a line of a recorder's text over a (128, 128, 3) uint8 picture; returns picture and alpha with it added."""
    stamps = time_stamps()
    index = int(rng.integers(len(stamps)))
    ink, backing = stamps[index]
    height = ink.shape[0]
    left = int(rng.integers(0, 160 - FRAME + 1))
    top = int(rng.integers(0, 24)) if rng.random() < 0.5 else int(rng.integers(FRAME - height - 24, FRAME - height + 1))
    level = 255 if rng.random() < 0.85 else 20
    outlined = bool(rng.random() < 0.7)
    rows = slice(top, top + height)
    there = (backing if outlined else ink)[:, left : left + FRAME].astype(np.float32) / 255
    value = ink[:, left : left + FRAME].astype(np.float32) * (level / 255) + (
        255 - ink[:, left : left + FRAME].astype(np.float32)
    ) * ((255 - level) / 255 if outlined else level / 255)
    image, alpha = image.copy(), alpha.copy()
    strip = image[rows].astype(np.float32)
    image[rows] = np.round(strip + (value[..., None] - strip) * there[..., None]).astype(np.uint8)
    alpha[rows] = np.maximum(alpha[rows], there)
    record["text"] = {"stamp": index, "top_px": top, "left_px": left, "outlined": outlined, "level": level}
    return image, alpha


def interlace(image: np.ndarray, shift_px: float) -> np.ndarray:
    """Shift every second row sideways by `shift_px`, as a field recorded 1/50 s later does; (H, W, C) float32."""
    out = image.copy()
    width = image.shape[1]
    x = np.clip(np.arange(width) - shift_px, 0, width - 1)
    low = np.minimum(x.astype(int), width - 2)
    part = (x - low).astype(np.float32)[None, :, None]
    odd = image[1::2]
    out[1::2] = odd[:, low] * (1 - part) + odd[:, low + 1] * part
    return out


def sensor_noise(rng: np.random.Generator, image: np.ndarray, read: float, shot: float, grey: bool) -> np.ndarray:
    """Add read noise and signal-dependent shot noise to a (H, W, 3) float32 picture in 0..255.

    Args:
        read: standard deviation at black, grey levels.
        shot: further standard deviation at white; its variance grows linearly with the signal.
        grey: one noise field for all channels, as a monochrome sensor gives.
    """
    shape = image.shape[:2] + ((1,) if grey else (3,))
    sigma = np.sqrt(read**2 + shot**2 / 255 * np.clip(image, 0, 255))
    return image + sigma * rng.standard_normal(shape, np.float32)


def _in_frame(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Lay a thumbnail into a larger frame of whole 16 px macroblocks at a random phase, borders reflected."""
    height, width = image.shape[:2]
    top, left = (int(v) for v in rng.integers(0, 16, 2))
    bottom, right = -(height + top) % 16, -(width + left) % 16
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT), top, left


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """One JPEG round trip (4:2:0) of a (H, W, 3) uint8 RGB picture."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok, "the JPEG encoder failed on a valid picture"
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None, "the JPEG decoder failed on its own encoder's picture"
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=2)
def _dct(size: int) -> np.ndarray:
    k, x = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * x + 1) * k / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _quantise_blocks(plane: np.ndarray, block: int, step: float) -> np.ndarray:
    """Transform, quantise with a dead zone and transform back every block of a plane, then soften the block edges."""
    height, width = plane.shape
    basis = _dct(block)
    blocks = plane.reshape(height // block, block, width // block, block).transpose(0, 2, 1, 3)
    coefficients = basis @ blocks @ basis.T
    # H.264's encoder rounds with an offset of about 1/3 (inter 1/6): small coefficients fall to zero.
    levels = np.floor(np.abs(coefficients) / step + 0.33) * np.sign(coefficients)
    out = (basis.T @ (levels * step) @ basis).transpose(0, 2, 1, 3).reshape(height, width)
    for turned in (out, out.T):  # the in-loop filter: where the step at a block edge is small, it is an artefact
        p, q = turned[block - 1 : -1 : block], turned[block::block]
        change = np.where(abs(p - q) < 1.5 * step, (q - p) / 4, 0)
        p += change
        q -= change
    return out


def h264(image: np.ndarray, step: float) -> np.ndarray:
    """Intra coding in the manner of H.264: 4x4 transforms, flat quantiser of `step` grey levels, 4:2:0, deblocking.

    (H, W, 3) uint8 RGB in and out; H and W multiples of 16.
    """
    luma, red, blue = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
    half = (image.shape[1] // 2, image.shape[0] // 2)
    planes = [_quantise_blocks(luma.astype(np.float32), 4, step)]
    for chroma in (red, blue):
        small = cv2.resize(chroma, half, interpolation=cv2.INTER_AREA).astype(np.float32)
        coded = _quantise_blocks(small - 128, 4, step) + 128
        planes.append(cv2.resize(coded, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    coded = np.clip(np.round(np.stack(planes, -1)), 0, 255).astype(np.uint8)
    return cv2.cvtColor(coded, cv2.COLOR_YCrCb2RGB)


def encode(
    rng: np.random.Generator, image: np.ndarray, config: DegradationConfig, codec: str, record: dict
) -> np.ndarray:
    """Compress a (H, W, 3) float32 picture in 0..255 as part of a larger frame, so that block edges fall anywhere."""
    frame, top, left = _in_frame(rng, np.clip(np.round(image), 0, 255).astype(np.uint8))
    if codec == "jpeg":
        quality = int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1))
        frame = jpeg(frame, quality)
        record["jpeg"] = {"quality": quality, "phase_px": [left, top]}
    else:
        step = rng.uniform(*config.h264_step)
        frame = h264(frame, max(step, 0.5))
        record["h264"] = {"step": round(step, 2), "phase_px": [left, top]}
    return frame[top : top + image.shape[0], left : left + image.shape[1]].astype(np.float32)
