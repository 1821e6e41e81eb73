"""Pictures of no face, for a restorer to refuse: pieces of faces and of what lies around, texture, shapes, writing."""

import string
from collections.abc import Callable

import cv2
import numpy as np

SIDE = 128  # px
LARGEST_PIECE = 48  # px of a packed face, whose eyes are 41 px apart: no piece holds two eyes and a mouth
TILES = (3, 4, 8)  # a side
Draw = Callable[[np.random.Generator], np.ndarray]


def no_face(rng: np.random.Generator, faces: Callable[[], np.ndarray]) -> np.ndarray:
    """(128, 128, 3) uint8 RGB; `faces()` gives any packed picture, (168, 168, 3)."""
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: _piece(rng, faces()), lambda: _piece(rng, faces()), lambda: _shuffled(rng, faces()),
        lambda: np.ascontiguousarray(faces()[::-1][20:-20, 20:-20]), lambda: _collage(rng, faces),
        lambda: _clouds(rng), lambda: _flat(rng), lambda: _stripes(rng), lambda: _shapes(rng), lambda: _writing(rng),
    ]  # fmt: skip
    picture = kinds[int(rng.integers(len(kinds)))]()
    if rng.random() < 0.15:
        picture = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return picture


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(picture), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _piece(rng: np.random.Generator, face: np.ndarray) -> np.ndarray:
    """A square out of a face, its hair, its clothes or the ground behind it, turned at will."""
    side = int(rng.integers(14, LARGEST_PIECE + 1))
    y, x = rng.integers(0, len(face) - side + 1, 2)
    return np.ascontiguousarray(np.rot90(_enlarged(face[y : y + side, x : x + side]), int(rng.integers(4))))


def _shuffled(rng: np.random.Generator, face: np.ndarray) -> np.ndarray:
    """The tiles of a face in another order."""
    count = int(rng.choice(TILES))
    side = SIDE // count
    tiles = [face[20 + side * r :, 20 + side * c :][:side, :side] for r in range(count) for c in range(count)]
    order = rng.permutation(len(tiles))
    rows = [np.concatenate([tiles[order[count * r + c]] for c in range(count)], 1) for r in range(count)]
    return _enlarged(np.concatenate(rows))


def _collage(rng: np.random.Generator, faces: Callable[[], np.ndarray]) -> np.ndarray:
    """Two to five pieces with straight edges between them, as of cloth against skin."""
    pieces = np.stack([_piece(rng, faces()) for _ in range(int(rng.integers(2, 6)))])
    centres = rng.uniform(0, SIDE, (len(pieces), 2, 1, 1))
    nearest = np.square(np.mgrid[:SIDE, :SIDE] - centres).sum(1).argmin(0)
    return np.take_along_axis(pieces, nearest[None, ..., None], 0)[0]


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Smooth colours, or light and shade of one colour, such as folds."""
    size = (int(rng.integers(2, 12)), int(rng.integers(2, 12)))
    coarse = rng.uniform(0, 255, (*size, 3))
    if rng.random() < 0.5:
        coarse = rng.uniform(0.2, 1, (*size, 1)) * np.array(_colour(rng))
    large = cv2.resize(coarse.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return large.clip(0, 255).astype(np.uint8)


def _flat(rng: np.random.Generator) -> np.ndarray:
    """One colour, or noise on it."""
    noise = rng.normal(0, rng.choice([0.0, 4.0, 60.0]), (SIDE, SIDE, 3))
    return (np.array(_colour(rng)) + noise).clip(0, 255).astype(np.uint8)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks or waves between two colours."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    wave: np.ndarray = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(1, 3))):
        angle, periods = rng.uniform(0, np.pi), rng.uniform(1, 9)
        bend = rng.uniform(0, 0.15) * np.sin(2 * np.pi * (rng.uniform(0.5, 3) * rows + rng.random()))
        wave += np.sin(2 * np.pi * periods * (columns * np.cos(angle) + rows * np.sin(angle) + bend))
    share = (wave > 0 if rng.random() < 0.5 else 0.5 + 0.25 * wave).clip(0, 1)[..., None]
    dark, light = np.array(_colour(rng)), np.array(_colour(rng))
    return (dark + share * (light - dark)).clip(0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Any colour, or one near to grey: paper, ink, cloth, walls."""
    red, green, blue = rng.uniform(0, 255, 3) if rng.random() < 0.4 else rng.uniform(0, 255) + rng.normal(0, 15, 3)
    return float(red), float(green), float(blue)


def _shapes(rng: np.random.Generator) -> np.ndarray:
    """Discs, boxes and bars on a ground, shaded and blurred a little: coins, crockery, furniture."""
    picture = _clouds(rng) if rng.random() < 0.5 else _flat(rng)
    for _ in range(int(rng.integers(1, 25))):
        x, y, w, h = (int(v) for v in rng.integers(2, SIDE, 4))
        kind, colour = int(rng.integers(4)), _colour(rng)
        if kind == 0:
            cv2.ellipse(picture, (x, y), (w // 3, h // 3), float(rng.uniform(0, 180)), 0, 360, colour, -1)
        elif kind == 1:
            cv2.rectangle(picture, (x, y), (x + w // 2, y + h // 2), colour, -1)
        elif kind == 2:
            cv2.line(picture, (x, y), (w, h), colour, int(rng.integers(1, 14)))
        else:
            cv2.circle(picture, (x, y), w // 4, colour, int(rng.choice([-1, 2, 5])))
    light = cv2.resize(rng.uniform(0.6, 1.3, (3, 3)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    picture = (picture * light[..., None]).clip(0, 255).astype(np.uint8)
    return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 4)))


def _writing(rng: np.random.Generator) -> np.ndarray:
    """Lines of letters, large and small."""
    picture = np.full((SIDE, SIDE, 3), _colour(rng)).clip(0, 255).astype(np.uint8)
    colour, size = _colour(rng), float(rng.uniform(0.3, 3))
    height = int(26 * size) + 2
    for line in range(int(rng.integers(0, height)), SIDE + height, height):
        letters = rng.choice(list(string.ascii_letters + string.digits + "   ,.-"), 24)
        at = (int(rng.integers(-30, 20)), line)
        cv2.putText(picture, "".join(letters), at, int(rng.integers(8)), size, colour, max(1, round(2 * size)))
    return picture
