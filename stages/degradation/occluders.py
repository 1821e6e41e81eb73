"""What may cover a face, drawn at 128 px from the 68 landmarks: masks, glasses, scarves, hands, hats, hair, objects.

Every drawer takes a `Scene` and returns a `Layer`. Shapes are antialiased polygons with a soft edge; their shading
follows the light found on the face and their brightness its exposure; a grey face gets a grey occluder.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from stages.degradation.config import OccluderKind
from stages.degradation.drawing import (
    FRAME,
    Layer,
    Rng,
    Scene,
    any_colour,
    cloth,
    curve,
    empty_layer,
    lit,
    paint,
    pick,
    polygon,
    shaded,
    soft,
    stroke,
    surface_noise,
    vary,
)  # fmt: skip
from stages.degradation.textures import FOLD_SIZE, NEUTRAL, folds

# Median of 57,000 dlib-marked training faces in the canonical frame, made symmetric; (68, 2) px.
MEAN_SHAPE = np.array([
    (17.2, 52.0), (17.9, 64.0), (19.4, 76.0), (21.5, 87.9), (25.6, 99.1), (32.6, 108.8), (41.7, 116.7), (52.1, 122.9),
    (64.0, 124.7), (75.9, 122.9), (86.3, 116.7), (95.4, 108.8), (102.4, 99.1), (106.5, 87.9), (108.6, 76.0),
    (110.1, 64.0), (110.8, 52.0), (25.7, 42.3), (31.7, 37.1), (40.0, 35.6), (48.4, 36.8), (56.2, 40.0), (71.8, 40.0),
    (79.6, 36.8), (88.0, 35.6), (96.3, 37.1), (102.3, 42.3), (64.0, 49.6), (64.0, 57.6), (64.0, 65.6), (64.0, 73.8),
    (54.6, 79.2), (59.2, 80.8), (64.0, 82.2), (68.8, 80.8), (73.4, 79.2), (35.3, 50.9), (40.4, 48.0), (46.4, 48.1),
    (51.7, 52.1), (46.0, 53.1), (40.0, 53.0), (76.3, 52.1), (81.6, 48.1), (87.6, 48.0), (92.7, 50.9), (88.0, 53.0),
    (82.0, 53.1), (45.7, 93.9), (52.5, 91.0), (59.0, 89.6), (64.0, 90.8), (69.0, 89.6), (75.5, 91.0), (82.3, 93.9),
    (75.8, 100.1), (69.3, 102.9), (64.0, 103.4), (58.7, 102.9), (52.2, 100.1), (48.6, 94.3), (59.0, 93.7), (64.0, 94.2),
    (69.0, 93.7), (79.4, 94.3), (69.1, 96.5), (64.0, 97.1), (58.9, 96.5),
], dtype=np.float32)  # fmt: skip


# ------------------------------------------------------------------------------------------------ masks

# Colours read off about 280 really masked faces, with their rough shares.
_SURGICAL = (
    ((172, 205, 228), 5), ((140, 190, 222), 3), ((105, 165, 215), 1.5), ((236, 238, 242), 5), ((215, 222, 230), 3),
    ((150, 222, 210), 2), ((100, 195, 185), 1.2), ((38, 38, 44), 3), ((62, 64, 74), 1.2), ((130, 134, 142), 1),
    ((240, 190, 205), 1), ((70, 165, 110), 0.8), ((180, 170, 215), 0.7), ((200, 225, 205), 0.8),
)  # fmt: skip
_RESPIRATOR = (
    ((238, 238, 236), 6),
    ((224, 216, 204), 2),
    ((70, 72, 78), 1.5),
    ((36, 36, 40), 1.5),
    ((150, 175, 205), 1),
    ((214, 190, 160), 1),
)
_CLOTH_PLAIN = (
    ((30, 30, 34), 6), ((58, 60, 68), 2.5), ((28, 36, 70), 2), ((235, 232, 226), 2), ((225, 205, 175), 1.5),
    ((200, 165, 130), 1.5), ((195, 30, 45), 1.2), ((120, 20, 45), 0.8), ((40, 90, 185), 1.2), ((60, 130, 70), 0.8),
    ((235, 195, 50), 1.4), ((235, 110, 30), 0.6), ((240, 60, 140), 0.7), ((240, 175, 190), 1.2), ((120, 90, 160), 0.6),
    ((140, 140, 145), 1.5), ((105, 80, 65), 0.8),
)  # fmt: skip


def _along(points: np.ndarray, t: float) -> np.ndarray:
    """Point at fractional index `t` of a polyline."""
    t = min(max(t, 0.0), len(points) - 1.001)
    low = int(t)
    return points[low] + (t - low) * (points[low + 1] - points[low])


def _mask_outline(scene: Scene, rng: Rng, worn: str, flat: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outline of something worn over nose, mouth and chin.

    Args:
        worn: "high" (to the bridge of the nose), "normal", "low" (under the nose) or "chin" (under the lower lip).
        flat: 0 follows the jaw, 1 gives the boxy lower edge of an unfolded surgical mask.

    Returns:
        (K, 2) outline, the two upper side corners (2, 2), the two lower side corners (2, 2).
    """
    p = scene.points
    jaw = p[:17]
    middle = np.stack([p[27], p[28], p[29], p[30], p[33], p[51], p[57]])
    top_at = {"high": (0.3, 1.5), "normal": (1.2, 2.6), "low": (3.6, 4.6), "chin": (5.2, 6.0)}[worn]
    top = _along(middle, rng.uniform(*top_at))
    side_at = {"high": (1.0, 2.4), "normal": (1.4, 3.0), "low": (2.4, 3.6), "chin": (3.4, 4.4)}[worn]
    at = rng.uniform(*side_at)
    right, left = _along(jaw, at + rng.normal(0, 0.2)), _along(jaw, 16 - at + rng.normal(0, 0.2))
    axis = p[8] - p[27]
    axis = axis / (np.linalg.norm(axis) + 1e-6)
    across = np.array([-axis[1], axis[0]], np.float32)
    if across[0] < 0:
        across = -across
    centre = 0.5 * (right + left)
    wide = rng.uniform(0.88, 1.18)
    right, left = centre + (right - centre) * wide, centre + (left - centre) * wide
    drop = rng.uniform(-2, 5)  # how far the edge sags between nose and cheek, px
    hump = rng.uniform(5, 12)
    nose = [top - across * hump + axis * rng.uniform(0.5, 4), top, top + across * hump + axis * rng.uniform(0.5, 4)]
    cheeks = [0.5 * (right + nose[0]) + axis * drop, 0.5 * (left + nose[2]) + axis * (drop + rng.normal(0, 1))]
    pivot = p[33]
    grow, under = rng.uniform(0.95, 1.16), rng.uniform(-3, 9)
    short = rng.random() < 0.12
    lower = []
    for k in range(4, 13):
        q = pivot + (jaw[k] - pivot) * (grow * (0.86 if short else 1.0))
        depth = max(0.0, 1 - abs(k - 8) / 4)
        q = q + axis * under * depth
        if flat:  # the boxy edge: keep the width of the cheeks further down, then straight across the chin
            width = np.dot(left - right, across) / 2 * (0.82 - 0.22 * flat * depth)
            along = np.dot(q - centre, axis)
            boxy = centre + across * width * np.sign(k - 8 + 1e-9) * (min(1.0, abs(k - 8) / 2.2)) + axis * along
            q = q + flat * 0.6 * (boxy - q)
        lower.append(q)
    outline = np.stack([right, cheeks[0], *nose, cheeks[1], left, *lower[::-1]])
    return curve(outline), np.stack([right, left]), np.stack([lower[1], lower[-2]])


def _mask_frame(scene: Scene, corners: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Three points of a mask: middle of its two sides and of its lower edge, (3, 2); they carry folds and donors."""
    p = scene.points
    low = outline[np.argmax(outline @ (p[8] - p[27]))]
    return np.stack([corners[0], corners[1], low]).astype(np.float32)


def _folded(rng: Rng, kind: str, frame: np.ndarray, strength: float) -> np.ndarray:
    """A fold map laid onto a mask's frame, (128, 128) float32 shading, 1 = unchanged."""
    source = np.array([(2, 38), (FOLD_SIZE - 3, 38), (FOLD_SIZE / 2, FOLD_SIZE - 3)], np.float32)
    if rng.random() < 0.5:
        source[:2] = source[1::-1]
    matrix = cv2.getAffineTransform(source, frame)
    chart = pick(rng, folds()[kind])
    flat = cv2.warpAffine(chart, matrix, (FRAME, FRAME), borderMode=cv2.BORDER_REPLICATE)
    return 1 + strength * (flat.astype(np.float32) * (1 / NEUTRAL) - 1)


def _slope(rng: Rng, most: float) -> np.ndarray:
    """Light that falls off linearly in a random direction, by up to `most` at the frame's edges; (128, 128) float32."""
    across, down = rng.uniform(-most, most), rng.uniform(-most, most) * 0.6
    ramp = np.linspace(-1, 1, FRAME, dtype=np.float32)
    return 1 + np.float32(across) * ramp[None] + np.float32(down) * ramp[:, None]


def _from_donor(rng: Rng, scene: Scene, frame: np.ndarray) -> np.ndarray:
    """The lower part of a really masked face, stretched onto a mask's frame; (128, 128, 3) uint8."""
    assert scene.donor is not None
    # Where nearly all the covered training faces show mask and nothing else: by eye on 280 of them.
    source = np.array([(38, 74), (90, 74), (64, 106)], np.float32) + rng.normal(0, 2, (3, 2)).astype(np.float32)
    if rng.random() < 0.5:
        source[:2] = source[1::-1]
    return cv2.warpAffine(
        scene.donor, cv2.getAffineTransform(source, frame), (FRAME, FRAME), borderMode=cv2.BORDER_REFLECT_101
    )


def _worn(rng: Rng) -> str:
    return pick(rng, ("high", "normal", "low", "chin"), (0.52, 0.38, 0.08, 0.02))


def _mask(scene: Scene, rng: Rng, kind: OccluderKind, donor_probability: float) -> Layer:
    """The three kinds of face mask share outline, folds, loops and donor."""
    worn = _worn(rng)
    flat = {"surgical_mask": rng.uniform(0, 1), "cloth_mask": rng.uniform(0, 0.4), "respirator": 0.0}[kind]
    outline, upper, lower = _mask_outline(scene, rng, worn, flat)
    frame = _mask_frame(scene, upper, outline)
    details: dict[str, Any] = {"worn": worn}
    fold = {
        "surgical_mask": ("pleated", "pleated", "crumpled"),
        "cloth_mask": ("seamed", "crumpled", "seamed", "domed"),
        "respirator": ("domed", "seamed"),
    }[kind]
    fold_kind = pick(rng, fold)
    layer = empty_layer()
    loops = rng.random() < {"surgical_mask": 0.7, "cloth_mask": 0.45, "respirator": 0.7}[kind]
    if scene.donor is not None and rng.random() < donor_probability:
        picture = _from_donor(rng, scene, frame)
        if rng.random() < 0.4:
            picture = shaded(picture, _folded(rng, fold_kind, frame, rng.uniform(0.2, 0.7)))
        details["filled"] = "donor"
        loop_colour = lit(scene, (225, 228, 232))
    else:
        shade = _folded(rng, fold_kind, frame, rng.uniform(0.6, 1.7)) * scene.light * _slope(rng, 0.28)
        strength = rng.uniform(0.6, 1.0)
        if rng.random() < {"cloth_mask": 0.62, "surgical_mask": 0.06, "respirator": 0.12}[kind]:
            white = rng.random() < 0.25
            ground = vary(rng, (238, 234, 228) if white else pick(rng, *zip(*_CLOTH_PLAIN, strict=True)))
            others = [any_colour(rng) for _ in range(3)]
            if rng.random() < 0.4:  # two-tone prints are the commonest
                others = [others[0]] * 3
            fabric, number = cloth(rng, [lit(scene, c, strength) for c in (ground, *others)], (0.35, 1.1))
            picture = shaded(fabric, shade)
            details |= {"filled": "print", "pattern": number}
            base = ground
        else:
            table = {"surgical_mask": _SURGICAL, "cloth_mask": _CLOTH_PLAIN, "respirator": _RESPIRATOR}[kind]
            near_skin = rng.random() < 0.07  # beige and pink masks are the hardest to see
            base = scene.skin * rng.uniform(0.8, 1.3) if near_skin else pick(rng, *zip(*table, strict=True))
            base = vary(rng, base, 7)
            colour = lit(scene, base, strength)
            if base.mean() < 90:  # dark cloth shows its folds by sheen: lift it where it is lit
                colour = colour + rng.uniform(0, 22)
                shade = shade + (shade - 1) * rng.uniform(0, 0.8)
            picture = shaded(colour, np.maximum(shade, 0.0))
            details["filled"] = "plain"
        details |= {"colour": [int(c) for c in base], "folds": fold_kind}
        loop_colour = lit(scene, base if kind == "cloth_mask" or base.mean() < 90 else (232, 234, 238))
    if loops:
        strap = np.zeros((FRAME, FRAME), np.uint8)
        for s, jaw in ((0, 0), (1, 16)):
            ear = scene.points[jaw] + np.array([(-1, 1)[s] * rng.uniform(0, 10), rng.uniform(-6, 10)], np.float32)
            stroke(strap, np.stack([upper[s], ear]), rng.uniform(1, 2.5))
            stroke(
                strap, np.stack([lower[s], ear + np.array([0, rng.uniform(4, 16)], np.float32)]), rng.uniform(1, 2.5)
            )
        paint(layer, soft(strap, 0.7), loop_colour)
    body = soft(polygon(outline), rng.uniform(0.6, 1.2))
    if not loops:
        layer.colour, layer.alpha = picture, body
    else:
        paint(layer, body, picture)
    layer.shadow, layer.details = rng.uniform(0.05, 0.35), details
    return layer


# ------------------------------------------------------------------------------------------------ other things worn


def _sunglasses(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    eyes = np.stack([p[36:42].mean(0), p[42:48].mean(0)])
    apart = float(np.linalg.norm(eyes[1] - eyes[0])) + 1e-3
    across = (eyes[1] - eyes[0]) / apart
    down = np.array([-across[1], across[0]], np.float32)
    half_w, half_h = apart * rng.uniform(0.36, 0.5), apart * rng.uniform(0.26, 0.46)
    power, drop, taper = rng.uniform(2, 4.5), apart * rng.uniform(0, 0.14), rng.uniform(-0.05, 0.3)
    angle = np.arange(0, 2 * np.pi, np.pi / 14)
    c, s = np.cos(angle), np.sin(angle)
    x, y = np.sign(c) * np.abs(c) ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)
    dark = rng.uniform(0, 1) < 0.75
    lens = np.asarray(
        vary(rng, (24, 24, 28) if dark else pick(rng, ((90, 60, 40), (40, 70, 110), (150, 90, 60), (60, 90, 80))), 8)
    )
    frame = vary(
        rng, pick(rng, ((20, 20, 22), (20, 20, 22), (90, 60, 40), (200, 190, 170), (230, 230, 230), (150, 30, 40))), 8
    )
    layer = empty_layer()
    rims, lenses = np.zeros((FRAME, FRAME), np.uint8), np.zeros((FRAME, FRAME), np.uint8)
    rim = rng.uniform(0.5, 3.5)
    corners = []
    for side, centre in ((-1, eyes[0]), (1, eyes[1])):
        middle = centre + across * side * apart * 0.02 + down * drop
        shape = (
            middle + np.outer(x * (half_w * (1 - taper * 0.5 * np.clip(y, 0, 1))), across) + np.outer(y * half_h, down)
        )
        polygon(shape, lenses)
        stroke(rims, np.concatenate([shape, shape[:1]]), 2 * rim)
        corners.append(middle + across * side * half_w * 0.97 - down * half_h * rng.uniform(0.2, 0.6))
    bridge = eyes.mean(0) + down * (drop - half_h * rng.uniform(0.1, 0.5))
    stroke(
        rims,
        np.stack(
            [eyes[0] + across * half_w * 0.8 + down * drop, bridge, eyes[1] - across * half_w * 0.8 + down * drop]
        ),
        1 + rim,
    )
    for corner, ear in zip(corners, (p[0], p[16]), strict=True):
        stroke(rims, np.stack([corner, ear + np.array([0, -4], np.float32)]), 1 + rim)
    paint(layer, soft(rims, 0.7), lit(scene, frame))
    gradient = np.linspace(1, rng.uniform(1, 2.2), FRAME, dtype=np.float32)[:, None] + np.zeros((1, FRAME), np.float32)
    picture = shaded(lit(scene, lens), gradient * scene.light)
    if rng.random() < 0.5:  # the street in the lens
        reflection = np.zeros((FRAME, FRAME), np.uint8)
        at = eyes[0] + rng.uniform(-0.3, 0.3, 2) * half_w
        tilt = rng.uniform(0.2, 0.9) * half_w * np.array([1, -1], np.float32)
        stroke(reflection, np.stack([at - tilt, at + tilt]), rng.uniform(2, 6), int(rng.integers(40, 160)))
        stroke(
            reflection, np.stack([at - tilt, at + tilt]) + across * apart, rng.uniform(2, 6), int(rng.integers(40, 160))
        )
        picture = cv2.add(picture, cv2.merge([soft(reflection, 1.5)] * 3))
    opaque = rng.uniform(0.86, 1.0)
    paint(layer, soft(cv2.convertScaleAbs(lenses, alpha=opaque), 0.7), picture)
    layer.shadow, layer.details = 0.15, {"dark": bool(dark), "opacity": round(opaque, 2)}
    return layer


def _fabric(scene: Scene, rng: Rng, shade: np.ndarray, plain: float = 0.55) -> tuple[np.ndarray, dict[str, Any]]:
    """A piece of cloth, plain or patterned, under the scene's light."""
    ground = vary(rng, pick(rng, *zip(*_CLOTH_PLAIN, strict=True))) if rng.random() < 0.7 else any_colour(rng)
    shade = np.maximum(shade * scene.light, 0.05)
    details: dict[str, Any] = {"colour": [int(c) for c in ground]}
    if rng.random() < plain:
        return shaded(lit(scene, ground) + rng.uniform(0, 12), shade), details
    palette = [lit(scene, c) for c in (ground, any_colour(rng), any_colour(rng), any_colour(rng))]
    fabric, details["pattern"] = cloth(rng, palette, (0.6, 2.0))
    return shaded(fabric, shade), details


def _scarf(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    height = pick(rng, ("mouth", "nose", "bridge"), (0.35, 0.4, 0.25))
    middle = np.stack([p[27], p[28], p[29], p[30], p[33], p[51], p[57]])
    top = _along(middle, rng.uniform(*{"mouth": (4.2, 5.3), "nose": (2.4, 4.0), "bridge": (0.8, 2.2)}[height]))
    sides = np.stack([_along(p[:17], rng.uniform(1.0, 3.6)), _along(p[:17], 16 - rng.uniform(1.0, 3.6))])
    reach = rng.uniform(0, 22, 2)
    right, left = sides[0] - np.array([reach[0], 0]), sides[1] + np.array([reach[1], 0])
    sag = rng.uniform(-3, 6, 2)
    upper = [right, 0.5 * (right + top) + (0, sag[0]), top, 0.5 * (left + top) + (0, sag[1]), left]
    low = [(left[0] + rng.uniform(-14, 12), FRAME + 12), (right[0] + rng.uniform(-12, 14), FRAME + 12)]
    outline = curve(np.stack([np.asarray(q, np.float32) for q in (*upper, *low)]))
    noise = surface_noise(rng)
    turn = rng.uniform(-0.5, 0.5)
    y, x = np.mgrid[:FRAME, :FRAME].astype(np.float32)
    wave = np.sin((y + turn * x + 5 * noise) * rng.uniform(0.15, 0.4))
    shade = (
        0.95 + rng.uniform(0.04, 0.16) * wave + 0.05 * noise - rng.uniform(0.05, 0.3) * (np.abs(x - top[0]) / 64) ** 2
    )
    picture, details = _fabric(scene, rng, shade)
    alpha = soft(polygon(outline), rng.uniform(0.7, 1.4))
    return Layer(picture, alpha, rng.uniform(0.1, 0.35), {"height": height, **details})


def _cap(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    brows = p[17:27].mean(0)
    eyes = p[36:48].mean(0)
    rise = float(p[8, 1] - brows[1])
    line = brows[1] + rise * rng.uniform(-0.1, 0.1)  # the brim's front edge; past 0 it hides the brows
    if rng.random() < 0.2:
        line = eyes[1] + rng.uniform(-3, 3)
    half = 0.5 * float(p[16, 0] - p[0, 0]) * rng.uniform(1.0, 1.2) + 2
    centre = float(eyes[0] + rng.normal(0, 3))
    tilt = rng.normal(0, 3)
    sag = rng.uniform(-3, 10)
    knit = rng.random() < 0.35  # a woollen hat has no peak
    start = line - (rng.uniform(6, 14) if not knit else rng.uniform(0, 5))
    right, left = np.array([-half, tilt]), np.array([half, -tilt])  # the temples, from the middle of the hat's edge
    middle = np.array([centre, start])
    crown = [
        (-half * 1.02, -18),
        (-half * 0.8, -8 - start),
        (0, -24 - start),
        (half * 0.8, -8 - start),
        (half * 1.02, -18),
    ]
    dome = middle + np.array([right, *crown, left, (0, sag)])
    shade = 1 + 0.07 * surface_noise(rng) - 0.25 * np.abs((np.arange(FRAME, dtype=np.float32) - centre) / 64)[None] ** 2
    picture, details = _fabric(scene, rng, shade, 0.75)
    layer = Layer(picture, soft(polygon(curve(dome)), rng.uniform(0.7, 1.4)), 0.0, details)
    if not knit:
        drop = line - start
        front = [(-half * 0.6, drop + 0.5 * (tilt + sag)), (0, drop + sag + 3), (half * 0.6, drop + 0.5 * (sag - tilt))]
        peak = middle + np.array([right * 0.9 + (0, 1), *front, left * 0.9 + (0, 1), (0, -4)])
        colour = lit(
            scene, vary(rng, layer.details["colour"]) if rng.random() < 0.7 else any_colour(rng)
        ) * rng.uniform(0.5, 0.95)
        paint(layer, soft(polygon(curve(peak)), 0.9), shaded(colour + 6, scene.light))
    layer.shadow = rng.uniform(0.25, 0.6)
    layer.details["knit"] = bool(knit)
    return layer


def _hood(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    centre = np.array([p[:17, 0].mean(), 0.5 * (p[27, 1] + p[30, 1])], np.float32) + rng.normal(0, 3, 2).astype(
        np.float32
    )
    half_w = 0.5 * float(p[16, 0] - p[0, 0]) * rng.uniform(0.6, 0.88)
    up, down = (
        float(centre[1] - p[19:25, 1].mean()) + rng.uniform(-8, 8),
        float(p[8, 1] - centre[1]) * rng.uniform(0.85, 1.3),
    )
    angle = np.arange(0, 2 * np.pi, np.pi / 16)
    radius = np.where(np.sin(angle) < 0, up, down)
    opening = centre + np.stack([half_w * np.cos(angle), radius * np.sin(angle)], -1)
    hole = polygon(opening.astype(np.float32))
    if rng.random() < 0.5:  # open below: a hood, not a headscarf
        gap = np.array(
            [
                (centre[0] - half_w, centre[1]),
                (centre[0] + half_w, centre[1]),
                (centre[0] + half_w * 0.8, 140),
                (centre[0] - half_w * 0.8, 140),
            ]
        )
        polygon(gap, hole)
    alpha = soft(255 - hole, rng.uniform(0.8, 1.4))
    y, x = np.mgrid[:FRAME, :FRAME].astype(np.float32)
    turn = np.arctan2(y - centre[1], x - centre[0])
    noise = surface_noise(rng)
    shade = 0.95 + rng.uniform(0.03, 0.1) * np.sin(turn * float(rng.integers(4, 12)) + noise) + 0.06 * noise
    picture, details = _fabric(scene, rng, shade, 0.85)
    return Layer(picture, alpha, rng.uniform(0.3, 0.6), details)


_HAIR = (
    (24, 20, 18),
    (40, 30, 26),
    (70, 48, 34),
    (110, 75, 45),
    (165, 125, 75),
    (205, 175, 125),
    (130, 60, 35),
    (140, 138, 136),
    (205, 203, 200),
)
_HAIR_WEIGHTS = (4.0, 3.0, 2.0, 1.5, 1.0, 0.8, 0.5, 0.5, 0.4)


def _hair(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    colour = lit(scene, vary(rng, pick(rng, _HAIR, _HAIR_WEIGHTS), 6))
    style = pick(rng, ("fringe", "side", "strands"), (0.45, 0.35, 0.2))
    brow, eye = float(p[17:27, 1].mean()), float(p[36:48, 1].mean())
    body, shade = np.zeros((FRAME, FRAME), np.uint8), np.full((FRAME, FRAME), 128, np.uint8)
    count = int(rng.integers(22, 34))
    if style == "fringe":
        ends_x = np.linspace(p[0, 0] - 2, p[16, 0] + 2, count) + rng.normal(0, 2, count)
        level = rng.uniform(brow - 9, eye + 6)
        ends_y = (
            level
            + rng.normal(0, rng.uniform(1, 5), count)
            + rng.uniform(-0.12, 0.25) * (ends_x - 64) * rng.choice([-1, 1])
        )
        roots = np.stack([64 + (ends_x - 64) * rng.uniform(0.5, 0.95) + rng.normal(0, 6), np.full(count, -8.0)], -1)
        ends, width = np.stack([ends_x, ends_y], -1), (5, 9)
    elif style == "side":
        side = int(rng.choice([-1, 1]))
        cheek = float((p[2] if side < 0 else p[14])[0])
        inner = cheek - side * rng.uniform(6, 28)
        ends_x = np.linspace(inner, cheek + side * 22, count) + rng.normal(0, 2, count)
        ends = np.stack([ends_x, np.full(count, rng.uniform(90, 150)) + rng.normal(0, 8, count)], -1)
        roots = np.stack([np.linspace(64 - side * rng.uniform(0, 30), 64 + side * 60, count), np.full(count, -6.0)], -1)
        width = (5, 9)
    else:
        ends = np.stack([rng.uniform(16, 112, count), rng.uniform(min(eye, 120.0), 128, count)], -1)
        roots = np.stack([ends[:, 0] + rng.normal(0, 18, count), rng.uniform(-10, 20, count)], -1)
        width = (2, 6)
    bend = rng.normal(0, 6, count) + rng.normal(0, 6)
    for k in range(count):
        middle = 0.5 * (roots[k] + ends[k]) + (bend[k], 0)
        lock = np.stack([roots[k], 0.6 * middle + 0.4 * roots[k], 0.6 * middle + 0.4 * ends[k], ends[k]])
        thick = rng.uniform(*width)
        stroke(body, lock, thick)
        stroke(shade, lock, thick * 0.7, int(rng.integers(80, 190)))
    gloss = soft(shade, 0.8).astype(np.float32) / 128
    return Layer(
        shaded(colour + 4, gloss * scene.light),
        soft(body, 0.9),
        0.2,
        {"style": style, "colour": [int(c) for c in colour]},
    )


# ------------------------------------------------------------------------------------------------ things in front

_SKIN = (
    (244, 214, 190),
    (232, 190, 160),
    (214, 166, 132),
    (190, 138, 102),
    (150, 102, 72),
    (112, 74, 52),
    (78, 52, 38),
)


def _skin_colour(scene: Scene, rng: Rng) -> np.ndarray:
    """Mostly the covered person's own skin, else somebody's."""
    if rng.random() < 0.65:
        return np.clip(scene.skin * rng.uniform(0.85, 1.2) + rng.normal(0, 4, 3), 0, 255)
    return lit(scene, vary(rng, pick(rng, _SKIN), 5))


def _hand_parts(rng: Rng, wrist: np.ndarray, tip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hand reaching from `wrist` to `tip`: its mask and its relief (128 = flat), both (128, 128) uint8."""
    length = float(np.linalg.norm(tip - wrist)) + 1e-3
    forward = (tip - wrist) / length
    side = np.array([-forward[1], forward[0]]) * rng.choice([-1, 1])
    body, relief = np.zeros((FRAME, FRAME), np.uint8), np.full((FRAME, FRAME), 118, np.uint8)
    knuckle = wrist + forward * length * rng.uniform(0.42, 0.55)
    half = length * rng.uniform(0.2, 0.27)
    palm = np.stack(
        [wrist - side * half * 0.75, knuckle - side * half, knuckle + side * half, wrist + side * half * 0.75]
    )
    polygon(curve(palm), body)
    polygon(curve(palm), relief, 128)
    stroke(body, np.stack([wrist - forward * 70, wrist]), half * 1.6)
    spread = rng.uniform(0.0, 0.32)
    width = half * rng.uniform(0.46, 0.54)
    bent = rng.uniform(-0.15, 0.3)
    for k in range(4):
        offset = (k - 1.5) / 1.5
        base = knuckle + side * offset * half * 0.76
        direction = forward + side * offset * spread
        reach = length * (0.5 - 0.07 * abs(offset - 0.2)) * rng.uniform(0.85, 1.1)
        joint = base + direction * reach * 0.55
        end = joint + (direction + side * bent * 0.4) * reach * 0.5
        finger = np.stack([base, joint, end])
        stroke(body, finger, width)
        stroke(relief, finger, width + 2, 84)
        stroke(relief, finger, width * 0.78, int(rng.integers(126, 140)))
    base = wrist + forward * length * 0.2 + side * half * 0.8
    thumb = np.stack(
        [base, base + (forward * 0.5 + side * 0.7) * length * 0.22, base + (forward + side * 0.6) * length * 0.34]
    )
    stroke(body, thumb, width * 1.15)
    stroke(relief, thumb, width * 1.1, 96)
    stroke(relief, thumb, width * 0.8, 132)
    return body, relief


def _hand(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    where = pick(rng, ("mouth", "cheek", "eye", "chin", "nose"), (0.35, 0.2, 0.15, 0.15, 0.15))
    target = {
        "mouth": p[48:60].mean(0), "cheek": p[pick(rng, (3, 13))], "eye": p[pick(rng, (36, 45))],
        "chin": p[8], "nose": p[30],
    }[where] + rng.normal(0, 5, 2)  # fmt: skip
    length = rng.uniform(62, 100)
    angle = rng.uniform(np.pi * 0.02, np.pi * 0.98)  # the arm comes from below or from a side
    towards = np.array([np.cos(angle), np.sin(angle)])
    wrist, tip = target + towards * length * 0.62, target - towards * length * 0.38
    body, relief = _hand_parts(rng, wrist, tip)
    layer = empty_layer()
    shade = soft(relief, 1.4).astype(np.float32) / 128 * scene.light * (1 + 0.03 * surface_noise(rng))
    paint(layer, soft(body, 0.9), shaded(_skin_colour(scene, rng), shade))
    layer.shadow, layer.details = rng.uniform(0.15, 0.4), {"where": where}
    return layer


def _head(scene: Scene, rng: Rng) -> Layer:
    side = int(rng.choice([-1, 1]))
    layer = empty_layer()
    if rng.random() < 0.55:  # a head seen from behind or the side, in a lower corner
        radius = rng.uniform(26, 46)
        centre = np.array([64 + side * rng.uniform(34, 62), FRAME + rng.uniform(-34, 12)])
        angle = np.arange(0, 2 * np.pi, np.pi / 10)
        wobble = 1 + 0.04 * np.sin(angle * 3 + rng.uniform(0, 6))
        shape = centre + radius * wobble[:, None] * np.stack([0.82 * np.cos(angle), 1.05 * np.sin(angle)], -1)
        hair = lit(scene, vary(rng, pick(rng, _HAIR, _HAIR_WEIGHTS), 6))
        strands = 1 + 0.12 * surface_noise(rng)
        if rng.random() < 0.5:
            paint(layer, soft(polygon(curve(shape)), 1.0), shaded(_skin_colour(scene, rng), scene.light))
            shape[:, 1] = np.minimum(shape[:, 1], centre[1] + radius * rng.uniform(-0.3, 0.4))
        paint(layer, soft(polygon(curve(shape)), 1.2), shaded(hair + 4, strands * scene.light))
        details: dict[str, Any] = {"part": "head"}
    else:
        height = FRAME - rng.uniform(14, 52)
        far = 64 - side * rng.uniform(-10, 50)
        shape = np.array(
            [
                (64 + side * 90, height - rng.uniform(0, 20)),
                (64 + side * 24, height + 4),
                (far, FRAME + 6),
                (64 + side * 90, FRAME + 40),
            ]
        )
        picture, details = _fabric(scene, rng, 0.95 + 0.08 * surface_noise(rng), 0.75)
        paint(layer, soft(polygon(curve(shape)), 1.2), picture)
        details["part"] = "shoulder"
    layer.shadow, layer.details = rng.uniform(0, 0.25), details
    return layer


def _any_surface(scene: Scene, rng: Rng) -> tuple[np.ndarray, dict[str, Any]]:
    """Flat colour, noise or pattern, lit or not: what free forms and boxes are filled with."""
    kind = pick(rng, ("flat", "cloudy", "pattern", "pixels"), (0.35, 0.2, 0.35, 0.1))
    if kind == "flat":
        picture = shaded(any_colour(rng), np.ones((FRAME, FRAME), np.float32))
    elif kind == "cloudy":
        picture = shaded(any_colour(rng), np.maximum(1 + rng.uniform(0.05, 0.4) * surface_noise(rng), 0) * scene.light)
    elif kind == "pattern":
        picture, _ = cloth(rng, [any_colour(rng) for _ in range(4)], (0.4, 2.5))
    else:
        cells = int(rng.integers(8, 40))
        picture = cv2.resize(
            rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8), (FRAME, FRAME), interpolation=cv2.INTER_NEAREST
        )
    return picture, {"surface": kind}


def _brush(scene: Scene, rng: Rng) -> Layer:
    picture, details = _any_surface(scene, rng)
    alpha = np.zeros((FRAME, FRAME), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        steps = int(rng.integers(2, 7))
        turns = rng.uniform(0, 6.3) + np.cumsum(rng.normal(0, 0.9, steps))
        moves = np.stack([np.cos(turns), np.sin(turns)], -1) * rng.uniform(8, 30, (steps, 1))
        path = rng.uniform(24, 112, 2) + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
        stroke(alpha, curve(path, closed=False), rng.uniform(6, 26))
    return Layer(picture, soft(alpha, rng.uniform(0.6, 1.3)), 0.0, details)


def _box(scene: Scene, rng: Rng) -> Layer:
    picture, details = _any_surface(scene, rng)
    area, aspect = rng.uniform(0.06, 0.45) * 10500, np.exp(rng.uniform(-0.9, 0.9))
    half = 0.5 * np.array([np.sqrt(area * aspect), np.sqrt(area / aspect)])
    turn = rng.normal(0, 0.15) if rng.random() < 0.6 else rng.uniform(0, 3.2)
    c, s = np.cos(turn), np.sin(turn)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half @ np.array([(c, s), (-s, c)])
    shape = corners + np.array([rng.uniform(20, 108), rng.uniform(28, 116)])
    return Layer(picture, soft(polygon(shape), rng.uniform(0.5, 1.2)), 0.0, details)


def _glare(scene: Scene, rng: Rng) -> Layer:
    y, x = np.mgrid[:FRAME, :FRAME].astype(np.float32)
    total = np.zeros((FRAME, FRAME), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        cx, cy, turn = rng.uniform(10, 118), rng.uniform(15, 115), rng.uniform(0, 3.15)
        a, b = rng.uniform(14, 34), rng.uniform(10, 26)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        total = np.maximum(total, np.exp(-(((u / a) ** 2 + (v / b) ** 2) ** rng.uniform(0.8, 2.5))))
        if rng.random() < 0.3:
            total = np.maximum(total, 0.7 * np.exp(-np.abs(v) / 3 - np.abs(u) / 60))
    peak = rng.uniform(0.75, 1.0)
    colour = np.clip(
        np.array([255, 253, 246]) - rng.uniform(0, 40) * np.array([0, 0.3, 1]) * rng.integers(0, 2), 0, 255
    )
    picture = np.ascontiguousarray(np.broadcast_to(colour.astype(np.uint8), (FRAME, FRAME, 3)))
    return Layer(picture, cv2.convertScaleAbs(total, alpha=255 * peak), 0.0, {"peak": round(float(peak), 2)})


def _object(scene: Scene, rng: Rng) -> Layer:
    p = scene.points
    what = pick(rng, ("phone", "cup", "microphone"), (0.4, 0.35, 0.25))
    mouth = p[48:60].mean(0)
    layer = empty_layer()
    y, x = np.mgrid[:FRAME, :FRAME].astype(np.float32)
    if what == "phone":
        centre = p[pick(rng, (3, 13, 57, 30, 36, 45))] + rng.normal(0, 6, 2)
        half = np.array([rng.uniform(15, 26), rng.uniform(28, 46)])
        turn = rng.normal(0, 0.35) + (np.pi / 2 if rng.random() < 0.15 else 0)
        colour = pick(rng, ((22, 22, 26), (30, 32, 40), (225, 225, 228), (190, 150, 130), (160, 30, 40), (60, 90, 140)))
        shape = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    elif what == "cup":
        centre, turn = mouth + rng.normal(0, 4, 2) + (0, 16), rng.normal(0, 0.25)
        w, h = rng.uniform(17, 28), rng.uniform(24, 40)
        shape = np.array([(-w, -h), (w, -h), (w * 0.75, h), (-w * 0.75, h)])
        colour = pick(
            rng, ((240, 240, 238), (225, 215, 200), (120, 75, 45), (40, 90, 60), (190, 40, 45), (60, 110, 180))
        )
    else:
        centre, turn = mouth + rng.normal(0, 4, 2) + (0, 10), rng.normal(0, 0.5)
        r = rng.uniform(13, 20)
        angle = np.arange(0, 2 * np.pi, np.pi / 8)
        shape = r * np.stack([np.cos(angle), np.sin(angle)], -1)
        colour = pick(rng, ((40, 40, 42), (70, 70, 72), (110, 110, 112), (20, 20, 22)))
        down = np.array([-np.sin(turn), np.cos(turn)])
        handle = np.zeros((FRAME, FRAME), np.uint8)
        stroke(handle, np.stack([centre + down * r * 0.8, centre + down * 90]), r * rng.uniform(0.9, 1.3))
        paint(layer, soft(handle, 0.8), lit(scene, (28, 28, 30)) + 5)
    c, s = np.cos(turn), np.sin(turn)
    outline = shape @ np.array([(c, s), (-s, c)]) + centre
    u = (x - centre[0]) * c + (y - centre[1]) * s
    shade = (1.1 - 0.35 * (u / 28) ** 2 if what != "phone" else 1 + 0.12 * np.sin(u / 20 + y / 30)) * scene.light
    paint(
        layer,
        soft(polygon(outline), 0.9),
        shaded(lit(scene, vary(rng, colour, 6)) + 4, np.maximum(shade, 0.2).astype(np.float32)),
    )
    if what == "cup" and rng.random() < 0.6:  # a lid or a sleeve
        top, bottom = outline[:2], outline[2:]
        band = np.concatenate([top, 0.75 * top[::-1] + 0.25 * bottom]) if rng.random() < 0.5 else np.concatenate(
            [0.65 * top + 0.35 * bottom[::-1], (0.25 * top + 0.75 * bottom[::-1])[::-1]]
        )  # fmt: skip
        paint(layer, soft(polygon(band), 0.8), lit(scene, any_colour(rng)))
    if rng.random() < (0.75 if what != "microphone" else 0.5):
        skin, relief = np.zeros((FRAME, FRAME), np.uint8), np.full((FRAME, FRAME), 100, np.uint8)
        hold = centre + (0, 28 if what == "microphone" else 14)
        side = rng.choice([-1, 1])
        for k in range(4):
            row = hold + (0, (k - 1.5) * 8.5)
            finger = np.stack(
                [row + (side * 34, 4), row + (side * 14, 0), row + (-side * rng.uniform(2, 9), rng.normal(0, 1))]
            )
            stroke(skin, finger, 8.5)
            stroke(relief, finger, 6, 132)
        paint(
            layer,
            soft(skin, 0.9),
            shaded(_skin_colour(scene, rng), soft(relief, 1.2).astype(np.float32) / 128 * scene.light),
        )
    layer.shadow, layer.details = rng.uniform(0.1, 0.3), {"what": what}
    return layer


_DRAWERS: dict[OccluderKind, Callable[[Scene, Rng], Layer]] = {
    "sunglasses": _sunglasses, "scarf": _scarf, "hand": _hand, "cap": _cap, "hood": _hood, "hair": _hair, "head": _head,
    "brush": _brush, "box": _box, "glare": _glare, "object": _object,
}  # fmt: skip
MASKS: tuple[OccluderKind, ...] = ("surgical_mask", "cloth_mask", "respirator")
OCCLUDERS: tuple[OccluderKind, ...] = (*MASKS, *_DRAWERS)


def draw(kind: OccluderKind, scene: Scene, rng: Rng, donor_probability: float = 0.5) -> Layer:
    """Draw one occluder of `kind`; masks may be filled from the scene's donor."""
    layer = _mask(scene, rng, kind, donor_probability) if kind in MASKS else _DRAWERS[kind](scene, rng)
    if scene.grey:
        level = cv2.cvtColor(layer.colour, cv2.COLOR_RGB2GRAY)
        layer.colour = cv2.merge([level, level, level])
    return layer


def face_box(points: np.ndarray) -> tuple[int, int, int, int]:
    """Box round the landmarks plus the forehead (0.25 of its height), cut to the frame: x0, y0, x1, y1 px."""
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    y0 -= 0.25 * (y1 - y0)
    low = np.clip(np.floor([x0, y0]), 0, FRAME - 8).astype(int)
    high = np.clip(np.ceil([x1, y1]) + 1, low + 8, FRAME).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def coverage(alpha: np.ndarray, points: np.ndarray) -> float:
    """Share of the face box that a (128, 128) uint8 alpha covers, 0..1."""
    x0, y0, x1, y1 = face_box(points)
    return cv2.mean(alpha[y0:y1, x0:x1])[0] / 255
