"""Drawing tools for occluders: antialiased shapes at 128 px, cloth, noise, and the light and colours of the scene."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import cv2
import numpy as np

from stages.degradation.textures import NEUTRAL, PATTERN_SIZE, grain, patterns
from stages.luma import LUMA

FRAME = 128  # px, side of the canonical face
_SHIFT = 4  # fractional bits of polygon corners: 1/16 px
Colour = Sequence[float] | np.ndarray  # RGB in 0..255
Rng = np.random.Generator
_T = TypeVar("_T")


@dataclass(frozen=True)
class Scene:
    """What a drawer may know of the face it covers.

    Attributes:
        points: (68, 2) float32, px of the 128 px frame.
        skin: (3,) mean RGB of cheeks and nose, 0..255.
        light: (128, 128) float32, illumination relative to its mean, smooth, about 0.6 to 1.4.
        exposure: brightness of the picture relative to a well-exposed one, about 0.3 to 1.1.
        tint: (3,) colour of the light, mean 1.
        grey: True where the face has no colour.
        donor: (128, 128, 3) uint8 picture of a really masked face, or None.
    """

    points: np.ndarray
    skin: np.ndarray
    light: np.ndarray
    exposure: float
    tint: np.ndarray
    grey: bool
    donor: np.ndarray | None = None


@dataclass
class Layer:
    """A drawn occluder: `colour` (128, 128, 3) uint8 RGB, `alpha` (128, 128) uint8, `shadow` its darkness on the face
    (0..1) and `details` for the record."""

    colour: np.ndarray
    alpha: np.ndarray
    shadow: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def pick(rng: Rng, items: Sequence[_T], weights: Sequence[float] | None = None) -> _T:
    """One of `items`, by `weights` where given; several times faster than `Generator.choice`."""
    if weights is None:
        return items[int(rng.integers(len(items)))]
    sums = list(accumulate(weights))
    return items[min(bisect(sums, rng.random() * sums[-1]), len(items) - 1)]


def observe(face: np.ndarray, points: np.ndarray, rng: Rng, donor: np.ndarray | None = None) -> Scene:
    """Read skin colour, light and exposure off a (128, 128, 3) uint8 face."""
    small = cv2.resize(face, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
    luma = small @ np.array(LUMA, np.float32)
    centre = small[3:6, 2:6].reshape(-1, 3)
    coarse = cv2.resize(luma[1:7, 1:7], (4, 4), interpolation=cv2.INTER_AREA)
    light = np.clip(coarse / (coarse.mean() + 1), 0.4, 1.6) ** rng.uniform(0.15, 0.6)
    top = float(np.partition(luma.ravel(), 51)[51])  # the 80th percentile of 64
    # A dark picture has dark covers; how much of the darkness is exposure and how much skin or clothes is unknown.
    exposure = min(1.1, max(0.2, (top / 175) ** rng.uniform(0.4, 1.0)))
    bright = small.reshape(-1, 3)[np.argsort(luma.ravel())[-20:]].mean(0)
    tint = np.clip(bright / (bright.mean() + 1), 0.7, 1.3) ** rng.uniform(0, 0.5)
    grey = bool(np.abs(small - small.mean(-1, keepdims=True)).max() < 4)
    smooth = cv2.resize(light.astype(np.float32), (FRAME, FRAME), interpolation=cv2.INTER_LINEAR)
    return Scene(points, centre.mean(0), smooth, exposure, tint / tint.mean(), grey, donor)


def lit(scene: Scene, colour: Colour, amount: float = 1.0) -> np.ndarray:
    """A surface colour as this picture's light shows it, (3,) float in 0..255."""
    factor = 1 + amount * (scene.exposure * scene.tint - 1)
    return np.clip(np.asarray(colour, np.float32) * factor, 0, 255)


def vary(rng: Rng, colour: Colour, spread: float = 10.0) -> np.ndarray:
    """A colour near `colour`: brightness by some per cent, each channel by `spread` levels."""
    return np.clip(np.asarray(colour) * rng.uniform(0.88, 1.1) + rng.normal(0, spread, 3), 4, 255)


def any_colour(rng: Rng) -> np.ndarray:
    """A colour as things in the street have it: greys, darks and tints more often than pure hues."""
    kind = rng.random()
    if kind < 0.35:
        return np.clip(rng.uniform(10, 245) + rng.normal(0, 6, 3), 0, 255)
    colour = rng.uniform(0, 255, 3)
    return colour if kind < 0.8 else colour * 0.35


def curve(points: np.ndarray, closed: bool = True, steps: int = 6) -> np.ndarray:
    """Catmull-Rom curve through (K, 2) points, (K * steps, 2) float32."""
    before, after = np.roll(points, 1, 0), np.roll(points, -1, 0)
    beyond = np.roll(points, -2, 0)
    if not closed:
        before[0], after[-1], beyond[-1], beyond[-2] = points[0], points[-1], points[-1], points[-1]
    t = (np.arange(steps, dtype=np.float32) / steps)[None, :, None]
    p0, p1, p2, p3 = (v[:, None].astype(np.float32) for v in (before, points, after, beyond))
    out = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return out.reshape(-1, 2)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points, np.float32) * (1 << _SHIFT)).astype(np.int32)


def polygon(points: np.ndarray, canvas: np.ndarray | None = None, value: float = 255) -> np.ndarray:
    """Fill an antialiased polygon; returns the (128, 128) uint8 canvas."""
    canvas = np.zeros((FRAME, FRAME), np.uint8) if canvas is None else canvas
    cv2.fillPoly(canvas, [_fixed(points)], value, cv2.LINE_AA, _SHIFT)
    return canvas


def stroke(canvas: np.ndarray, points: np.ndarray, width: float, value: float = 255) -> None:
    """Draw an antialiased line of round joints through (K, 2) points."""
    cv2.polylines(canvas, [_fixed(points)], False, value, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a (128, 128) mask by a Gaussian of `sigma` px: the soft edge of a shape."""
    return cv2.GaussianBlur(mask, (0, 0), sigma)


def shaded(colour: Colour, shade: np.ndarray) -> np.ndarray:
    """Multiply a colour (3,) or a picture (128, 128, 3) uint8 by a float32 shading map (1 = unchanged); uint8."""
    if isinstance(colour, np.ndarray) and colour.ndim == 3:
        level = cv2.convertScaleAbs(shade, alpha=NEUTRAL)
        return cv2.multiply(colour, cv2.merge([level, level, level]), scale=1 / NEUTRAL)
    return cv2.merge([cv2.convertScaleAbs(shade, alpha=float(c)) for c in colour])


def cloth(rng: Rng, palette: Sequence[Colour], scale: tuple[float, float] = (0.5, 1.4)) -> tuple[np.ndarray, int]:
    """A printed cloth of up to four colours, (128, 128, 3) uint8, and its pattern's number."""
    bank = patterns()
    index = int(rng.integers(len(bank)))
    colours = [np.asarray(palette[i % len(palette)], np.float32) for i in range(4)]
    matrix = np.stack([(c - colours[0]) / 255 for c in colours[1:]] + [colours[0]], axis=1).astype(np.float32)  # (3, 4)
    warp = cv2.getRotationMatrix2D(
        (PATTERN_SIZE / 2, PATTERN_SIZE / 2), float(rng.uniform(-30, 30)), float(rng.uniform(*scale))
    )
    warp[:, 2] = warp[:, 2] + FRAME / 2 - PATTERN_SIZE / 2 + rng.uniform(-30, 30, 2)
    weights = cv2.warpAffine(bank[index], warp, (FRAME, FRAME), borderMode=cv2.BORDER_REFLECT_101)
    return cv2.transform(weights, matrix), index


def surface_noise(rng: Rng) -> np.ndarray:
    """A (128, 128) float32 window of smooth noise, mean about 0, deviation about 1."""
    bank = grain()
    y, x = rng.integers(0, bank.shape[1] - FRAME + 1, 2)
    window = bank[int(rng.integers(len(bank))), y : y + FRAME, x : x + FRAME]
    return np.ascontiguousarray(window[:, ::-1] if rng.random() < 0.5 else window)


def paint(layer: Layer, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay a picture (128, 128, 3) or a colour (3,) over a layer where `mask` (uint8) is set."""
    if colour.ndim == 1:
        colour = np.broadcast_to(np.clip(colour, 0, 255).astype(np.uint8), layer.colour.shape)
    if not layer.alpha.any():
        layer.colour = np.ascontiguousarray(colour)
    else:
        a = mask.astype(np.float32) / 255
        layer.colour = cv2.blendLinear(np.ascontiguousarray(colour), layer.colour, a, 1 - a)
    layer.alpha = cv2.max(layer.alpha, mask)


def empty_layer() -> Layer:
    """A layer with nothing on it yet."""
    return Layer(np.zeros((FRAME, FRAME, 3), np.uint8), np.zeros((FRAME, FRAME), np.uint8))


def composite(face: np.ndarray, layer: Layer, rng: Rng) -> np.ndarray:
    """Lay an occluder over a (128, 128, 3) uint8 face, its shadow first; a new uint8 picture."""
    if layer.shadow:
        # The occluder's own outline, shifted down and blurred, darkens what lies beside it.
        near = cv2.resize(layer.alpha, (32, 32), interpolation=cv2.INTER_AREA)
        near = cv2.GaussianBlur(near, (0, 0), rng.uniform(0.6, 1.5))
        near[1:] = near[:-1].copy()
        dark = 1 - layer.shadow / 255 * cv2.resize(near, (FRAME, FRAME), interpolation=cv2.INTER_LINEAR).astype(
            np.float32
        )
        face = shaded(face, dark)
    a = layer.alpha.astype(np.float32) * (1 / 255)
    return cv2.blendLinear(np.ascontiguousarray(layer.colour), face, a, 1 - a)
