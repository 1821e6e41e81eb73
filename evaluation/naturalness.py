"""How natural do restored faces look, as a set? NIQE, and distances between clouds of features, by their own names.

None of the three knows the face that was there: a picture of somebody else scores as well. They stand beside fidelity
and identity, never alone. A Frechet distance in the space of a face embedder is not the FID of papers, which uses an
Inception network trained on ImageNet: numbers compare only with each other, for one embedder and one number of faces.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.statistics import Estimate
from stages.basicsr_adapter import NIQE_BLOCK_PX, niqe

SHEET_SIDE = 3  # faces a side of a sheet: nine blocks give NIQE a covariance, and 90 faces ten values to average
KERNEL_DEGREE = 3


def sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """Central 96 px of nine faces (128, 128, 3) uint8, side by side: (288, 288, 3). A block of NIQE is one face."""
    cut = [(i.shape[0] - NIQE_BLOCK_PX) // 2 for i in images]
    blocks = [i[c : c + NIQE_BLOCK_PX, c : c + NIQE_BLOCK_PX] for i, c in zip(images, cut, strict=True)]
    rows = [np.concatenate(blocks[r : r + SHEET_SIDE], 1) for r in range(0, len(blocks), SHEET_SIDE)]
    return np.ascontiguousarray(np.concatenate(rows))


def niqe_of_faces(images: Sequence[np.ndarray]) -> np.ndarray:
    """(sheets,) NIQE of sheets of nine faces each, lower is nearer to undistorted photographs; the rest is left out.

    NIQE judges blocks of 96 px and needs several, so one face of 128 px has none of its own. Rows of a table must lay
    the same faces on the same sheets, in the same order.

    Raises:
        ValueError: fewer than nine faces, or one smaller than 96 px. ImportError: basicsr is missing.
    """
    size = SHEET_SIDE**2
    if len(images) < size or min(min(i.shape[:2]) for i in images) < NIQE_BLOCK_PX:
        raise ValueError(f"niqe: needs {size} faces of {NIQE_BLOCK_PX} px or more, got {len(images)}")
    starts = range(0, len(images) - size + 1, size)
    return np.array([niqe(sheet(images[s : s + size])) for s in starts], np.float64)


def _clouds(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"distance: expected two clouds (n, D) of at least two points, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("distance: a vector is not finite; leave faces without an embedding out")
    return x, y


def _root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric root of a symmetric, positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the normal laws with the means and covariances of two clouds (n, D); 0 when equal.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Biased upwards where n is not far above D, by about as much for
    every row of one table: compare rows, not tables. Dowson and Landau 1982; Heusel et al., NeurIPS 2017.
    """
    x, y = _clouds(a, b)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    root = _root(cov_x)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()  # = tr (S_a S_b)^(1/2)
    means = float(np.square(x.mean(0) - y.mean(0)).sum())
    return max(0.0, means + float(np.trace(cov_x) + np.trace(cov_y) - 2 * cross))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of two clouds (n, D) under the kernel (x.y / s + 1)^3.

    Row i of `a` and of `b` are of one face. It is not compared with itself, or every restoration that keeps the person
    would seem nearer than a second picture of the same crowd (Gretton et al. 2012, lemma 6).

    Its mean is 0 for clouds of one law whatever n, so single values may lie below 0. Binkowski, Sutherland, Arbel,
    Gretton: "Demystifying MMD GANs", ICLR 2018 (KID). There s = D; here it is the mean squared length of the vectors
    of `b`, the reference: embedders give unit rows, for which D would leave little but the difference of means.
    """
    x, y = _clouds(a, b)
    if len(x) != len(y):
        raise ValueError(f"distance: rows must be of the same faces, got {len(x)} and {len(y)}")
    scale = float(np.square(y).sum(1).mean()) or 1.0

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (p @ q.T / scale + 1) ** KERNEL_DEGREE

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        k = kernel(p, q)
        return float((k.sum() - np.trace(k)) / (len(p) * (len(p) - 1)))  # no face is compared with itself

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def with_interval(
    distance: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, seed: int = 0, blocks: int = 20
) -> Estimate:
    """A distance of two clouds and its 95 % interval, by leaving out one block of faces at a time.

    Row i of `a` and of `b` are of one face and are left out together; so are faces with a row of NaN (no embedding) in
    either. A bootstrap would be wrong here: a face drawn twice is a distance of zero that the data do not hold.
    Kunsch, Annals of Statistics 1989 (block jackknife).

    Raises:
        ValueError: clouds of different sizes, or as the distance.
    """
    if len(a) != len(b):
        raise ValueError(f"distance: rows must be of the same faces, got {len(a)} and {len(b)}")
    known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    x, y = _clouds(a[known], b[known])
    value = distance(x, y)
    blocks = min(blocks, len(x) // 2)
    if blocks < 2:
        return Estimate(value, float("nan"), float("nan"), len(x))
    member = np.random.default_rng(seed).permutation(len(x)) % blocks
    without = np.array([distance(x[member != k], y[member != k]) for k in range(blocks)])
    error = float(np.sqrt((blocks - 1) / blocks * np.square(without - without.mean()).sum()))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, len(x))
