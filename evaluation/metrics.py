"""Measures of one restored face against its truth. Pictures are uint8 RGB (H, W, 3), maps float in [0, 1].

Written here so that the definition is in one place and under control; the tests hold them against scikit-image.
"""

import cv2
import numpy as np
from scipy.stats import rankdata

from landmarks.scheme import inter_ocular_px

_LUMA = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601 luma of RGB in 0..255, without the offset of 16
MAX_PSNR_DB = 100.0  # equal pictures would be infinite and spoil every mean


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in studio range (16..235), rounded, (H, W) float64: the "Y" of super-resolution papers.

    That range alone is worth +1.32 dB of PSNR over full-range luma; RGB numbers stand beside it for that reason.
    """
    return np.round(np.asarray(image, np.float64) @ _LUMA + 16.0)


def mse(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean squared difference over all channels, pictures in [0, 1], within `region` (H, W) bool if given."""
    error = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2 / 255.0**2
    return float(error.mean() if region is None else error[region].mean())


def psnr(a: np.ndarray, b: np.ndarray, region: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, no border crop, at most `MAX_PSNR_DB`. Higher is closer."""
    return float(min(-10.0 * np.log10(max(mse(a, b, region), 1e-30)), MAX_PSNR_DB))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity in [-1, 1], higher is closer: mean over channels and over the picture less a 5 px border.

    Gaussian window 11x11 of sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03, range 255.
    Method: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, equation 13.
    """
    x, y = np.asarray(a, np.float64) / 255, np.asarray(b, np.float64) / 255

    def local(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)[5:-5, 5:-5]

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    structure = (
        (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return float(structure.mean())


def area_average(values: np.ndarray, size: int) -> np.ndarray:
    """Mean over equal square cells: (H, W[, C]) -> (size, size[, C]) float64; H and W must be multiples of `size`.

    Raises:
        ValueError: a cell would not be a whole number of pixels.
    """
    height, width = values.shape[:2]
    if height % size or width % size:
        raise ValueError(f"area_average: {height}x{width} does not divide into {size}x{size} whole cells")
    cells = np.asarray(values, np.float64).reshape(size, height // size, size, width // size, *values.shape[2:])
    return cells.mean(axis=(1, 3))


def lr_consistency_db(restored: np.ndarray, lq: np.ndarray, visible: np.ndarray | None = None) -> float:
    """PSNR in dB between `restored` averaged to the size of `lq` and `lq` itself, over `visible` (h, w) bool pixels."""
    return psnr(area_average(restored, len(lq)), lq, visible)


def nme(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Mean distance of 68 points over that of the outer eye corners of `reference`; (68, 2) px. Lower is better."""
    return float(np.linalg.norm(predicted - reference, axis=-1).mean() / inter_ocular_px(reference))


def overlap(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Sizes of intersection and union of two bool maps of one shape."""
    return int((predicted & truth).sum()), int((predicted | truth).sum())


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho of two arrays of one size, ties sharing their mean rank; 0 where one of them is constant."""
    rank_a, rank_b = (rankdata(np.ravel(v)) for v in (a, b))
    rank_a, rank_b = rank_a - rank_a.mean(), rank_b - rank_b.mean()
    norm = float(np.sqrt((rank_a**2).sum() * (rank_b**2).sum()))
    return float((rank_a * rank_b).sum() / norm) if norm else 0.0
