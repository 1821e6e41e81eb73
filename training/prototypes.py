"""What an attribute changes on average, in shape and colour, laid onto a face: targets for training the editor.

Smiles, ages, genders and open mouths by prototypes: the mean shape and the shape-free mean colours of faces with and
without an attribute; a face takes the difference (Rowland and Perrett, "Manipulating facial appearance through shape
and color", IEEE Computer Graphics and Applications 15(5), 1995), of colours as a ratio (Liu, Shan and Zhang,
"Expressive expression mapping with ratio images", SIGGRAPH 2001). Eyeglasses are drawn; hair takes another mean colour.
These edits are soft, but the face stays the same person, they need no pairs of pictures, and either side can be the
truth: what was laid on is to be taken off again. Training only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

FRAME = 128  # px, the canonical frame; all shapes here are in its pixels
INNER = slice(32, 112)  # px of the frame, across and down: all face
STEP = 2  # px of the frame between the points at which a warp is worked out
BLACK = 24.0  # grey levels added to colours before a ratio is taken, or the darkest would have any
STIFFNESS = 0.02  # of the splines: landmarks are out by a pixel or two, and a closed mouth folds
_EDGE = np.array([(x, y) for x in (-24, 64, 152) for y in (-24, 64, 152) if (x, y) != (64, 64)], np.float64)
_AXIS = np.arange(FRAME // STEP, dtype=np.float32) * STEP + (STEP - 1) / 2
_GRID = np.stack(np.meshgrid(_AXIS, _AXIS), -1).reshape(-1, 2)  # (4096, 2) x, y
# Mean colours that hair takes, CIELAB: medians of 60 faces each whose hair `attribute_labels.colour_of` calls so.
HAIR_LAB = {
    "hair_black": (14.4, 2.8, 4.3),
    "hair_blond": (57.8, 12.5, 23.9),
    "hair_brown": (32.6, 8.8, 15.7),
    "hair_grey": (50.0, 1.5, 4.0),  # a little lighter and less red than the median: by eye
}
HAIR_SPREAD = 22.0  # CIELAB lightness within the hair of one face: by eye on 10 faces


@dataclass(frozen=True)
class Prototype:
    """Mean faces without ([0]) and with ([1]) an attribute.

    Attributes:
        shapes: (2, 68, 2) float32, px of the frame.
        ratios: (2, 128, 128, 3) float32, what colours (+ `BLACK`) are multiplied by when the face goes to that side, in
            that side's shape; natural logarithms.
        span: label of the faces with it less that of those without.
    """

    shapes: np.ndarray
    ratios: np.ndarray
    span: float


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Thin-plate kernel r^2 log r^2 between (n, 2) and (k, 2) points."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    square = np.maximum(square, 0)
    return square * np.log(square + 1e-9)


def spline_map(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(128, 128, 2) float32: where each pixel of the frame goes under the thin-plate spline that takes the points `at`
    (68, 2) to `values` (68, 2) and holds the surroundings (Bookstein, TPAMI 1989)."""
    scale = 1 / 64
    points = np.concatenate([at, _EDGE]) * scale - 1
    moved = np.concatenate([values - at, np.zeros_like(_EDGE)])
    n = len(points)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = _kernel(points, points) + STIFFNESS * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    system[:n, n + 1 :] = points
    system[n + 1 :, :n] = points.T
    weights = np.linalg.solve(system, np.concatenate([moved, np.zeros((3, 2))])).astype(np.float32)
    grid = (_GRID * scale - 1).astype(np.float32)
    coarse = _kernel(grid, points.astype(np.float32)) @ weights[:n] + weights[n] + grid @ weights[n + 1 :]
    side = FRAME // STEP
    moves = cv2.resize(coarse.reshape(side, side, 2), (FRAME, FRAME), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[:FRAME, :FRAME].astype(np.float32)
    return moves + np.stack([x, y], -1)


def moved(picture: np.ndarray, where: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """`picture` (h, w, c) read at `where` (H, W, 2)."""
    x, y = cv2.split(where.astype(np.float32))
    return cv2.remap(picture, x, y, interpolation, borderMode=cv2.BORDER_REFLECT_101)


def fit_prototype(
    faces: Sequence[np.ndarray], shapes: np.ndarray, side: np.ndarray, weight: np.ndarray, span: float
) -> Prototype:
    """Means of both sides.

    Args:
        faces: (128, 128, 3) uint8 pictures. shapes: (N, 68, 2) their landmarks. side: (N,) bool, with it.
        weight: (N,) how much each counts. span: difference of the mean labels.
    """
    means = np.stack([np.average(shapes[side == s], axis=0, weights=weight[side == s]) for s in (False, True)])
    colours = np.zeros((2, FRAME, FRAME, 3))
    for s in (0, 1):
        share = weight[side == bool(s)] / weight[side == bool(s)].sum()
        for i, w in zip(np.flatnonzero(side == bool(s)), share, strict=True):
            colours[s] += w * moved(faces[int(i)], spline_map(means[s], shapes[i]))
    ratios = np.empty_like(colours)
    for s in (0, 1):
        other = moved(colours[1 - s].astype(np.float32), spline_map(means[s], means[1 - s]))
        ratios[s] = np.log((colours[s] + BLACK) / (other + BLACK))
    # What most of the face shares is light and complexion of the sets, not the attribute.
    ratios -= np.median(ratios[:, INNER, INNER], (1, 2), keepdims=True)
    return Prototype(means.astype(np.float32), ratios.astype(np.float32), span)


def prototype_edit(prototype: Prototype, shape: np.ndarray, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """An edit of one face.

    Args:
        shape: (68, 2) its landmarks in the frame. amount: wanted change of the label; below 0 away from the attribute.

    Returns:
        `where` (128, 128, 2): the pixel of the face that each pixel of the edited face shows; `ratio` (128, 128, 3)
        float32, the logarithm of what its colour is multiplied by (`relit`).
    """
    side, share = int(amount > 0), amount / prototype.span
    new = shape + share * (prototype.shapes[1] - prototype.shapes[0])
    where = spline_map(new, shape)
    ratio = moved(prototype.ratios[side], spline_map(new, prototype.shapes[side].astype(np.float64)))
    return where, ratio * abs(share)


def relit(picture: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """`picture` (h, w, 3) float32 in 0-255 under the `ratio` (h, w, 3) of a prototype."""
    return (picture + BLACK) * np.exp(ratio) - BLACK


def recoloured(picture: np.ndarray, hair: np.ndarray, colour: str) -> np.ndarray:
    """The change (h, w, 3) float32 in 0-255 that gives the hair of `picture` (uint8) another mean colour.

    `hair` (h, w) float32 in [0, 1]. Lightness keeps its relative contrast (after Reinhard et al., IEEE CGA 2001).
    """
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    mass = max(float(hair.sum()), 1e-3)
    mean = (lab * hair[..., None]).sum((0, 1)) / mass
    goal = np.array(HAIR_LAB[colour], np.float32)
    new = lab - mean + goal
    contrast = float(np.clip((goal[0] / max(mean[0], 4.0)) ** 0.5, 0.5, 1.6))
    new[..., 0] = goal[0] + (lab[..., 0] - mean[0]) * contrast
    painted = np.clip(cv2.cvtColor(new, cv2.COLOR_LAB2RGB), 0, 1) * 255
    # What is much lighter or darker than the hair is skin or background at its border.
    hair = hair * np.exp(-0.5 * ((lab[..., 0] - mean[0]) / HAIR_SPREAD) ** 2)
    return (painted - picture) * hair[..., None]


@dataclass(frozen=True)
class Glasses:
    """Eyeglasses of one kind. Lengths are shares of the distance of the eyes."""

    width: float = 0.40  # of a lens, half
    height: float = 0.29  # of a lens, half
    square: float = 3.2  # exponent of the outline: 2 is round
    rim: float = 0.045
    drop: float = 0.06
    frame: tuple[float, float, float] = (28.0, 24.0, 24.0)  # RGB
    lens: tuple[float, float, float] = (60.0, 62.0, 70.0)
    tint: float = 0.10  # how much of the lens is seen


def any_glasses(rng: np.random.Generator) -> Glasses:
    """Glasses as they come: dark, brown or light rims, clear lenses or sunglasses."""
    dark = rng.random() < 0.25
    base = np.array([(25, 22, 22), (90, 60, 40), (150, 145, 140), (190, 160, 90), (110, 30, 40)])[
        int(rng.choice(5, p=(0.5, 0.18, 0.16, 0.08, 0.08)))
    ]
    r, g, b = np.clip(base + rng.normal(0, 10, 3), 0, 255)
    shade = float(rng.uniform(20, 70))
    return Glasses(
        width=float(rng.uniform(0.34, 0.46)), height=float(rng.uniform(0.20, 0.40)),
        square=float(rng.uniform(2, 4.5)), rim=float(rng.uniform(0.015, 0.075)), drop=float(rng.uniform(0, 0.13)),
        frame=(float(r), float(g), float(b)), lens=(shade, shade, shade + 5),
        tint=float(rng.uniform(0.75, 1.0) if dark else rng.uniform(0.0, 0.2)),
    )  # fmt: skip


def draw_glasses(picture: np.ndarray, points: np.ndarray, kind: Glasses) -> np.ndarray:
    """`picture` (h, w, 3) uint8 with eyeglasses on; `points` (68, 2) landmarks in its pixels, at any scale."""
    eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
    apart = float(np.linalg.norm(eyes[1] - eyes[0])) + 1e-3
    across = (eyes[1] - eyes[0]) / apart
    down = np.array([-across[1], across[0]])
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / kind.square)
    y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / kind.square)
    lenses, rims = np.zeros(picture.shape[:2], np.uint8), np.zeros(picture.shape[:2], np.uint8)
    stroke = kind.rim * apart

    def drawn(line: np.ndarray, closed: bool, thick: float) -> None:
        whole = max(1, int(round(thick)))  # OpenCV draws whole widths; thinner lines are drawn fainter
        cv2.polylines(
            rims, [np.round(line * 16).astype(np.int32)], closed, int(255 * min(1.0, thick)), whole, cv2.LINE_AA, 4
        )

    for s, eye in ((-1, eyes[0]), (1, eyes[1])):
        middle = eye + across * s * 0.03 * apart + down * kind.drop * apart
        outline = middle + np.outer(x * kind.width * apart, across) + np.outer(y * kind.height * apart, down)
        cv2.fillPoly(lenses, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        drawn(outline, True, stroke)
        corner = middle + across * s * kind.width * apart - down * 0.35 * kind.height * apart
        drawn(np.stack([corner, points[0 if s < 0 else 16] - down * 0.1 * apart]), False, stroke)
    inner = [e + across * d * (kind.width - 0.03) * apart + down * (kind.drop - 0.3 * kind.height) * apart
             for e, d in ((eyes[0], 1), (eyes[1], -1))]  # fmt: skip
    drawn(np.stack([inner[0], (inner[0] + inner[1]) / 2 - down * 0.03 * apart, inner[1]]), False, stroke)
    out = picture.astype(np.float32)
    blur = max(0.4, 0.008 * apart)
    for mask, colour, share in ((lenses, kind.lens, kind.tint), (rims, kind.frame, 0.95)):
        alpha = cv2.GaussianBlur(mask, (0, 0), blur).astype(np.float32)[..., None] * (share / 255)
        out = out * (1 - alpha) + np.array(colour, np.float32) * alpha
    grey = float(np.abs(picture.astype(np.float32) - picture.mean(2, keepdims=True)).mean()) < 1
    if grey:
        out = np.repeat(out.mean(2, keepdims=True), 3, 2)
    return np.round(np.clip(out, 0, 255)).astype(np.uint8)
