"""Texture banks for occluders: cloth patterns, folds and noise, built once per process from a fixed seed.

A pattern is a (192, 192, 3) uint8 picture of three weights: each channel says how much of one further colour lies over
the ground colour, so that one pattern serves every palette. A fold map is (128, 128) uint8 shading in the mask's own
frame (x from side to side, y from nose to chin), 128 meaning unchanged.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

PATTERN_SIZE, FOLD_SIZE = 192, 128
NEUTRAL = 128.0  # shading value that leaves a colour as it is
_Rng = np.random.Generator


def fractal_noise(rng: _Rng, size: int, cells: tuple[int, ...], aspect: float = 1.0) -> np.ndarray:
    """Smooth noise of several scales, (size, size) float32 of mean 0 and deviation 1; `aspect` > 1 stretches it."""
    total = np.zeros((size, size), np.float32)
    for c in cells:
        grid = rng.standard_normal((max(2, c), max(2, round(c / aspect)))).astype(np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * (8.0 / (c + 4))
    return (total - total.mean()) / (total.std() + 1e-6)


def _stripes(rng: _Rng, s: int) -> np.ndarray:
    x = np.arange(s) / s
    out = np.zeros((s, s, 3), np.float32)
    for c in range(int(rng.integers(1, 4))):
        wave = np.sin(2 * np.pi * (x * rng.uniform(4, 22) + rng.uniform()))
        out[..., c] = np.clip((wave - rng.uniform(-0.4, 0.8)) * 6, 0, 1)[None]
    return out


def _plaid(rng: _Rng, s: int) -> np.ndarray:
    a, b = _stripes(rng, s), _stripes(rng, s)
    return 0.5 * a + 0.5 * b.transpose(1, 0, 2)


def _checks(rng: _Rng, s: int) -> np.ndarray:
    out = np.zeros((s, s, 3), np.float32)
    step = int(rng.integers(6, 24))
    y, x = np.mgrid[:s, :s] // step
    out[..., 0] = (x + y) % 2
    return out


def _dots(rng: _Rng, s: int) -> np.ndarray:
    out = np.zeros((s, s, 3), np.uint8)
    step, share = rng.uniform(10, 28), rng.uniform(0.2, 0.42)
    for i, y in enumerate(np.arange(0, s + step, step)):
        for x in np.arange(0, s + step, step):
            centre = (int(x + (i % 2) * step / 2), int(y))
            cv2.circle(out, centre, max(1, int(step * share)), (255, 0, 0), -1, cv2.LINE_AA)
    return out / np.float32(255)


def _flowers(rng: _Rng, s: int) -> np.ndarray:
    layers = [np.zeros((s, s), np.uint8) for _ in range(3)]
    for _ in range(int(rng.integers(25, 90))):
        x, y, r = rng.uniform(0, s), rng.uniform(0, s), rng.uniform(3, 11)
        c, turn, petals = int(rng.integers(0, 2)), rng.uniform(0, 6.3), int(rng.integers(4, 7))
        for k in range(petals):
            a = turn + 2 * np.pi * k / petals
            cv2.circle(
                layers[c], (int(x + r * np.cos(a)), int(y + r * np.sin(a))), max(1, int(0.7 * r)), 255, -1, cv2.LINE_AA
            )
        cv2.circle(layers[2], (int(x), int(y)), max(1, int(0.5 * r)), 255, -1, cv2.LINE_AA)
    return np.stack(layers, -1) / np.float32(255)


def _leopard(rng: _Rng, s: int) -> np.ndarray:
    out = np.zeros((s, s, 3), np.uint8)
    for _ in range(int(rng.integers(60, 180))):
        centre = (int(rng.uniform(0, s)), int(rng.uniform(0, s)))
        axes = (int(rng.uniform(3, 9)), int(rng.uniform(2, 7)))
        start = rng.uniform(0, 360)
        cv2.ellipse(
            out, centre, axes, rng.uniform(0, 180), start, start + rng.uniform(150, 360), (255, 0, 0), 3, cv2.LINE_AA
        )
        cv2.ellipse(out, centre, (axes[0] // 2, axes[1] // 2), 0, 0, 360, (0, 255, 0), -1, cv2.LINE_AA)
    return out / np.float32(255)


def _camouflage(rng: _Rng, s: int) -> np.ndarray:
    cells = (int(rng.integers(4, 8)), int(rng.integers(10, 24)))
    return np.stack([np.clip(fractal_noise(rng, s, cells) * 8 - rng.uniform(-2, 5), 0, 1) for _ in range(3)], -1)


def _tie_dye(rng: _Rng, s: int) -> np.ndarray:
    cells = (int(rng.integers(2, 5)), int(rng.integers(5, 12)))
    return np.stack([np.clip(fractal_noise(rng, s, cells) * 0.35 + 0.4, 0, 1) for _ in range(3)], -1)


def _zigzag(rng: _Rng, s: int) -> np.ndarray:
    y, x = np.mgrid[:s, :s].astype(np.float32)
    period, teeth = rng.uniform(10, 30), rng.uniform(10, 30)
    wave = np.sin(2 * np.pi * (y + abs((x % teeth) - teeth / 2)) / period)
    out = np.zeros((s, s, 3), np.float32)
    out[..., 0], out[..., 1] = np.clip(wave * 5, 0, 1), np.clip(-wave * 5 - 3, 0, 1)
    return out


def _bands(rng: _Rng, s: int) -> np.ndarray:
    out = np.zeros((s, s, 3), np.float32)
    a, b = sorted(rng.uniform(0.3, 0.7, 2))
    out[:, int(a * s) : int(b * s) + 6, 0] = 1
    out[:, int(b * s) + 6 :, 1] = 1
    return out if rng.uniform() < 0.5 else np.ascontiguousarray(out.transpose(1, 0, 2))


def _emblem(rng: _Rng, s: int) -> np.ndarray:
    out = [np.zeros((s, s), np.uint8) for _ in range(3)]
    for _ in range(int(rng.integers(1, 5))):
        c = out[int(rng.integers(0, 3))]
        x, y, r = int(rng.uniform(0.3, 0.7) * s), int(rng.uniform(0.35, 0.65) * s), rng.uniform(6, 26)
        if rng.uniform() < 0.5:
            cv2.ellipse(
                c, (x, y), (int(r), int(r * rng.uniform(0.4, 1))), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA
            )
        else:
            word = "".join(chr(int(v)) for v in rng.integers(65, 91, int(rng.integers(2, 8))))
            cv2.putText(c, word, (int(s * 0.2), y), cv2.FONT_HERSHEY_DUPLEX, r / 20, 255, 3, cv2.LINE_AA)
    return np.stack(out, -1) / np.float32(255)


def _specks(rng: _Rng, s: int) -> np.ndarray:
    grid = rng.uniform(0, 1, (int(rng.integers(16, 96)),) * 2 + (3,)).astype(np.float32)
    return cv2.resize(np.clip((grid - rng.uniform(0.2, 0.8)) * 4, 0, 1), (s, s), interpolation=cv2.INTER_LINEAR)


_FAMILIES: tuple[tuple[Callable[[_Rng, int], np.ndarray], int], ...] = (
    (_stripes, 5), (_plaid, 4), (_checks, 2), (_dots, 4), (_flowers, 8), (_leopard, 4), (_camouflage, 5),
    (_tie_dye, 5), (_zigzag, 2), (_bands, 3), (_emblem, 7), (_specks, 4),
)  # fmt: skip


@lru_cache(maxsize=1)
def patterns() -> tuple[np.ndarray, ...]:
    """All cloth patterns, each (192, 192, 3) uint8 weights that sum to at most 255."""
    rng = np.random.default_rng(20)
    made = []
    for family, count in _FAMILIES:
        for _ in range(count):
            weights = family(rng, PATTERN_SIZE).astype(np.float32)
            weights /= np.maximum(weights.sum(-1, keepdims=True), 1)
            made.append((weights * 255).astype(np.uint8))
    return tuple(made)


def _fold_grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:FOLD_SIZE, :FOLD_SIZE].astype(np.float32)
    return (x + 0.5) / FOLD_SIZE * 2 - 1, (y + 0.5) / FOLD_SIZE


def _rounding(rng: _Rng, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The dark sides and underside of anything worn round a face."""
    side = rng.uniform(0.1, 0.4) * np.abs(x) ** rng.uniform(1.6, 3.2)
    return (
        1
        - side
        - rng.uniform(0.02, 0.28) * np.clip(y - 0.45, 0, 1) * 1.8
        + rng.uniform(0, 0.1) * np.exp(-((y - 0.3) ** 2) / 0.04)
    )


def _pleated(rng: _Rng) -> np.ndarray:
    x, y = _fold_grid()
    out = _rounding(rng, x, y)
    sag, count = rng.uniform(-0.12, 0.2), int(rng.integers(2, 5))
    for k in range(count):
        line = 0.28 + 0.5 * k / max(1, count - 1) + rng.uniform(-0.03, 0.03) - sag * x**2 + rng.uniform(-0.04, 0.04) * x
        d = (y - line) / rng.uniform(0.02, 0.05)
        out += rng.uniform(0.03, 0.16) * (np.exp(-((d - 1.4) ** 2)) - 1.2 * np.exp(-(d**2)))
    return out + rng.uniform(0.01, 0.05) * fractal_noise(rng, FOLD_SIZE, (6, 14), aspect=2)


def _domed(rng: _Rng) -> np.ndarray:
    x, y = _fold_grid()
    cx, cy = rng.uniform(-0.2, 0.2), rng.uniform(0.35, 0.6)
    out = 1.08 - rng.uniform(0.15, 0.4) * ((x - cx) ** 2 + (2 * (y - cy)) ** 2)
    if rng.uniform() < 0.5:  # a horizontal seam, the lower half turned away from the light
        out -= rng.uniform(0.06, 0.2) * np.clip((y - cy) * 30, 0, 1)
    if rng.uniform() < 0.4:  # the valve
        d = np.hypot((x - cx - 0.25) / 0.22, (y - cy - 0.1) / 0.12)
        out += rng.uniform(-0.3, 0.15) * np.clip((1 - d) * 6, 0, 1) - 0.12 * np.exp(-((d - 1) ** 2) / 0.03)
    return out + rng.uniform(0.01, 0.03) * fractal_noise(rng, FOLD_SIZE, (10, 24))


def _seamed(rng: _Rng) -> np.ndarray:
    x, y = _fold_grid()
    at = rng.uniform(-0.08, 0.08) + rng.uniform(-0.1, 0.1) * y
    out = _rounding(rng, x, y) + rng.uniform(-0.14, 0.14) * np.tanh((x - at) * 12)
    out += rng.uniform(-0.15, 0.12) * np.exp(-(((x - at) / 0.04) ** 2))
    return out + rng.uniform(0.02, 0.07) * fractal_noise(rng, FOLD_SIZE, (5, 9))


def _crumpled(rng: _Rng) -> np.ndarray:
    x, y = _fold_grid()
    base = fractal_noise(rng, FOLD_SIZE, (4, 8, 16), aspect=float(rng.uniform(1, 3)))
    turned = cv2.getRotationMatrix2D((64, 64), float(rng.uniform(-40, 40)), 1.3)
    ridges = cv2.warpAffine(base, turned, (FOLD_SIZE, FOLD_SIZE), borderMode=cv2.BORDER_REFLECT_101)
    return _rounding(rng, x, y) + rng.uniform(0.05, 0.14) * (1 - 1.2 * np.abs(ridges))


FOLD_KINDS = ("pleated", "domed", "seamed", "crumpled")
_FOLD_MAKERS = {"pleated": _pleated, "domed": _domed, "seamed": _seamed, "crumpled": _crumpled}


@lru_cache(maxsize=1)
def folds() -> dict[str, tuple[np.ndarray, ...]]:
    """Fold maps by kind, each (128, 128) uint8 with 128 = unchanged; twelve of each kind."""
    rng = np.random.default_rng(21)
    return {
        k: tuple(np.clip(_FOLD_MAKERS[k](rng) * NEUTRAL, 20, 255).astype(np.uint8) for _ in range(12))
        for k in FOLD_KINDS
    }


@lru_cache(maxsize=1)
def grain() -> np.ndarray:
    """Noise for surfaces without folds, (12, 160, 160) float32 of mean 0 and standard deviation 1."""
    rng = np.random.default_rng(22)
    return np.stack([fractal_noise(rng, 160, (3, 6, 12, 24)[int(i % 3) :]) for i in range(12)])


@lru_cache(maxsize=1)
def time_stamps() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Burnt-in lines: pairs of ink and backing, each (h, 160) uint8 with 255 = there; h about 9 to 26 px."""
    rng = np.random.default_rng(23)
    made = []
    for i in range(24):
        if i % 3 == 2:
            text = f"CAM {rng.integers(1, 33):02d} {'ENTRANCE LOBBY GATE EXIT STAIRS'.split()[int(rng.integers(0, 5))]}"
        else:
            year, month, day, hour, minute = (
                int(rng.integers(*r)) for r in ((10, 27), (1, 13), (1, 29), (0, 24), (0, 60))
            )
            text = f"20{year}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}"
        scale = float(rng.uniform(0.35, 1.0))
        height = int(24 * scale) + 4
        start = (int(rng.uniform(-30 * scale, 12)), height - 4)
        ink, backing = np.zeros((height, 160), np.uint8), np.zeros((height, 160), np.uint8)
        cv2.putText(backing, text, start, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, max(3, round(6 * scale)), cv2.LINE_AA)
        cv2.putText(ink, text, start, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, max(1, round(2.4 * scale)), cv2.LINE_AA)
        made.append((ink, backing))
    return tuple(made)
