"""Stage `fuse`: the thumbnails of one face at several moments become one thumbnail, by measurement alone."""

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from stages.base import Sides, Stage, StageConfig
from stages.batch import FaceBatch
from stages.luma import LUMA

ROUNDS = 3  # registration and fusion in turn; the first leaves errors of 0.03 px on noisy 16 px faces
STEPS = 12  # Gauss-Newton steps of a registration
FARTHEST_SHARE = 0.2  # of the thumbnail's side: a frame that moves farther shows something else and is left out
LEAST_ALIKE = 0.5  # correlation with the first frame under which a frame is left out: turned away, or covered
HUBER = 1.5  # residuals beyond 1.5 standard deviations count less (Huber 1981 gives 95 % efficiency at 1.345)
SMOOTHNESS = 0.002  # weight of the squared Laplacian per frame; decides what no frame has seen
LARGEST_PX = 64  # what the restorer takes
CG_STEPS = 20


class FuseConfig(StageConfig):
    """Options of `fuse`."""

    frames: int = Field(default=16, ge=1, le=64)  # thumbnails of a track, the best ones; 1 takes the best shot alone
    # Reconstruct at so many times the thumbnail's size, up to 64 px. Of 16 noisy frames of 16 px, 2 gives 0.4 dB more
    # at 16 px than 1 does, and 1.6 dB more at 32 px than enlarging that.
    scale: int = Field(default=2, ge=1, le=2)


class Fuse(Stage[FuseConfig]):
    """Combines the moments of a face in a video: sub-pixel registration, then a robust least-squares reconstruction.

    Reads `frames` (B, N, 3, n, n) RGB in [0, 1], the first being `image`; without them (pictures) nothing changes.
    Writes `image` and `observed` (B, 3, n * scale, n * scale): what was measured, with less noise than any one frame
    has. Nothing is learned, and nothing is shown that is not in the frames. `notes["fused"]` has the frames that were
    used, and their largest shift in pixels of the thumbnail.

    Model: frame k is the wanted picture under a similarity transform, with its own brightness and contrast, area
    averaged to its pixels, plus noise with outliers. Method: Irani and Peleg, Improving resolution by image
    registration, CVGIP 1991, with the transforms by Gauss-Newton steps (Lucas and Kanade, IJCAI 1981) and the
    reconstruction by conjugate gradients under Huber weights.
    """

    Config = FuseConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image", "frames"})
    writes: ClassVar[frozenset[str]] = frozenset({"image", "observed", "notes"})
    generative: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = True

    @classmethod
    def is_forensic(cls, config: StageConfig) -> bool:
        return True

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        return sides[0], math.inf

    @property
    def moments(self) -> int:
        """Thumbnails of one face that are made use of."""
        return self.config.frames

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        if batch.frames is None:
            return batch
        fused, notes = [], []
        for i, moments in enumerate(batch.frames.detach().cpu().permute(0, 1, 3, 4, 2).double().numpy()):
            picture, used, shift = fuse(moments[: self.config.frames], self.config.scale)
            fused.append(picture)
            notes.append(batch.notes[i] | {"fused": {"frames": used, "largest_shift_px": round(shift, 3)}})
        image = torch.from_numpy(np.stack(fused)).permute(0, 3, 1, 2).float().contiguous().to(batch.image.device)
        return batch.replace(image=image, observed=image, frames=None, notes=tuple(notes))


def fuse(frames: np.ndarray, scale: int = 1) -> tuple[np.ndarray, list[int], float]:
    """One picture from several of the same face.

    Args:
        frames: (N, n, n, 3) float64 in [0, 1]; the first fixes where the face lies and how bright it is.
        scale: size of the result over n.

    Returns:
        (n * scale, n * scale, 3) in [0, 1], n where one frame is all there is or n * scale exceeds `LARGEST_PX`; which
        frames were used; the largest shift between them, px.
    """
    size = frames.shape[1]
    if len(frames) == 1:
        return frames[0].copy(), [0], 0.0  # nothing to gain; enlarging is not measuring
    scale = scale if size * scale <= LARGEST_PX else 1
    grey = frames @ np.array(LUMA)
    moves, gains = np.zeros((len(frames), 4)), np.tile([0.0, 1.0], (len(frames), 1))
    used = list(range(len(frames)))
    template, picture = grey[0], frames[0]
    for turn in range(ROUNDS):
        fits = [(moves[0], gains[0], 1.0), *(register(grey[k], template, moves[k]) for k in range(1, len(frames)))]
        moves, gains = np.stack([f[0] for f in fits]), np.stack([f[1] for f in fits])
        far = np.hypot(moves[:, 0], moves[:, 1]) > FARTHEST_SHARE * size
        used = [k for k, fit in enumerate(fits) if k == 0 or (fit[2] >= LEAST_ALIKE and not far[k])]
        even = np.stack([(frames[k] - gains[k, 0]) / gains[k, 1] for k in used])
        last = turn == ROUNDS - 1
        picture = reconstruct(even, moves[used], scale if last else 1, 3 if last else 1)
        template = picture @ np.array(LUMA)
    shift = float(np.hypot(moves[used, 0], moves[used, 1]).max())
    return np.clip(picture, 0, 1), used, shift


def places(size: int, move: np.ndarray, parts: int = 1) -> np.ndarray:
    """Where the pixels of a moved frame lie in the wanted picture.

    Args:
        size: n of the frame. move: (4,) shift x and y in pixels, relative change of scale, roll in radians (small).
        parts: points per pixel and axis.

    Returns:
        (n * n, parts * parts, 2) points (x, y) in pixels of the frame's own raster.
    """
    sub = (np.arange(size * parts) + 0.5) / parts - 0.5
    centre = (size - 1) / 2
    y, x = np.meshgrid(sub - centre, sub - centre, indexing="ij")
    dx, dy, grow, roll = move
    moved = np.stack([x + grow * x - roll * y + dx, y + roll * x + grow * y + dy], -1) + centre
    blocks = moved.reshape(size, parts, size, parts, 2).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(size * size, parts * parts, 2)


def taps(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cubic interpolation (Keys 1981, a = -0.5) of a size x size picture at (M, 2) points; edges are repeated.

    Returns:
        (M, 16) indices into the flat picture and their weights.
    """
    base = np.floor(points)
    offsets = np.arange(-1, 3)
    t = np.abs(points[:, :, None] - base[:, :, None] - offsets)  # (M, 2, 4)
    weight = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0.0))
    at = np.clip(base[:, :, None].astype(int) + offsets, 0, size - 1)
    index = at[:, 1, :, None] * size + at[:, 0, None, :]
    return index.reshape(-1, 16), (weight[:, 1, :, None] * weight[:, 0, None, :]).reshape(-1, 16)


def register(frame: np.ndarray, template: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The move of `frame` against `template`, both (n, n) grey in [0, 1], from a first guess.

    Returns:
        (4,) move as in `places`; (2,) offset and gain of the frame's brightness; their correlation once aligned.
    """
    size = len(template)
    smooth, wanted = _smoothed(template), _smoothed(frame).ravel()
    gy, gx = (g.ravel() for g in np.gradient(smooth))
    centre = (size - 1) / 2
    inner = _window(size).ravel()
    move = start.copy()
    offset = gain = 0.0
    likeness = 0.0
    # A tenth of the pull of the picture: changes of scale and roll are small, and noise must not invent them.
    prior = np.array([0, 0, 1, 1]) * 0.1 * (inner * (gx**2 + gy**2)).sum() * (size / 4) ** 2
    for step in range(STEPS + 1):
        points = places(size, move).reshape(-1, 2)
        index, weight = taps(points, size)
        seen = (smooth.ravel()[index] * weight).sum(1)
        mean_seen, mean_wanted = (inner @ seen) / inner.sum(), (inner @ wanted) / inner.sum()
        spread = inner @ (seen - mean_seen) ** 2 + 1e-12
        both = inner @ ((seen - mean_seen) * (wanted - mean_wanted))
        likeness = float(both / np.sqrt(spread * (inner @ (wanted - mean_wanted) ** 2 + 1e-12)))
        gain = float(np.clip(both / spread, 0.5, 2.0))
        offset = float(mean_wanted - gain * mean_seen)
        if step == STEPS:
            break
        slope_x, slope_y = ((g[index] * weight).sum(1) * gain for g in (gx, gy))
        x, y = (np.tile(np.arange(size) - centre, size), np.repeat(np.arange(size) - centre, size))
        jacobian = np.stack([slope_x, slope_y, slope_x * x + slope_y * y, slope_y * x - slope_x * y], 1)
        error = wanted - offset - gain * seen
        hessian = jacobian.T @ (jacobian * inner[:, None]) + np.diag(prior * gain**2 + 1e-9)
        move = move + np.linalg.solve(hessian, jacobian.T @ (inner * error) - prior * gain**2 * move)
    return move, np.array([offset, gain]), likeness


def _smoothed(picture: np.ndarray) -> np.ndarray:
    """A binomial blur of about 0.7 px: gradients of noise would misguide the registration."""
    padded = np.pad(picture, 1, mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _window(size: int) -> np.ndarray:
    """(n, n) weights that favour the middle: the face's border is background, which moves on its own."""
    axis = np.hanning(size + 2)[1:-1]
    return np.sqrt(np.outer(axis, axis))


def reconstruct(frames: np.ndarray, moves: np.ndarray, scale: int, rounds: int = 3) -> np.ndarray:
    """The picture whose moved, area-averaged copies agree best with the frames.

    Args:
        frames: (N, n, n, 3) of even brightness. moves: (N, 4) as in `places`. rounds: 1 for plain least squares, more
            to weigh outliers less.

    Returns:
        (n * scale, n * scale, 3).
    """
    count, size = frames.shape[:2]
    fine = size * scale
    indices, weights = [], []
    for move in moves:
        points = (places(size, move, scale).reshape(-1, 2) + 0.5) * scale - 0.5
        index, weight = taps(points, fine)
        indices.append(index.reshape(size * size, -1))
        weights.append(weight.reshape(size * size, -1) / scale**2)
    index, weight = np.concatenate(indices), np.concatenate(weights)  # (N n n, 16 scale^2)
    seen = frames.reshape(-1, 3)
    trust = np.ones(len(seen))
    start = np.repeat(np.repeat(frames.mean(0), scale, 0), scale, 1).reshape(-1, 3)
    picture = start
    for turn in range(rounds):
        picture = _solve(index, weight, seen, trust, picture, fine, SMOOTHNESS * count / scale**2)
        if turn == rounds - 1:
            break
        residual = np.sqrt((((picture[index] * weight[..., None]).sum(1) - seen) ** 2).mean(1))
        deviation = 1.4826 * float(np.median(residual)) + 1e-4
        trust = np.minimum(1.0, HUBER * deviation / np.maximum(residual, 1e-9))
    return picture.reshape(fine, fine, 3)


def _solve(
    index: np.ndarray,
    weight: np.ndarray,
    seen: np.ndarray,
    trust: np.ndarray,
    start: np.ndarray,
    fine: int,
    smooth: float,
) -> np.ndarray:
    """Weighted least squares by conjugate gradients, all channels together; (fine * fine, 3)."""
    flat = index.ravel()

    def back(values: np.ndarray) -> np.ndarray:
        spread = weight[..., None] * values[:, None]
        return np.stack([np.bincount(flat, spread[..., c].ravel(), fine * fine) for c in range(3)], 1)

    def normal(x: np.ndarray) -> np.ndarray:
        there = (x[index] * weight[..., None]).sum(1) * trust[:, None]
        return back(there) + smooth * _laplacian(_laplacian(x.reshape(fine, fine, 3))).reshape(-1, 3)

    x = start.copy()
    residual = back(seen * trust[:, None]) - normal(x)
    direction, size = residual.copy(), (residual**2).sum()
    first = size
    for _ in range(CG_STEPS):
        if size <= 1e-7 * first + 1e-20:
            break
        along = normal(direction)
        length = size / ((direction * along).sum() + 1e-30)
        x += length * direction
        residual -= length * along
        new = (residual**2).sum()
        direction = residual + new / size * direction
        size = new
    return x


def _laplacian(picture: np.ndarray) -> np.ndarray:
    """Five-point Laplacian of (n, n, 3) with repeated edges; a symmetric operator."""
    p = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * picture
