"""Stage `paste`: puts restored faces back into the frame they were cut from, without a seam."""

from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from landmarks.alignment import CANONICAL_SIZE
from stages.base import Closing, StageConfig
from stages.batch import FaceBatch

# CelebAMask-HQ classes that make up the face: skin, nose, glasses, eyes, brows, mouth, lips. Hair, ears and neck run on
# beyond the crop and stay as they were.
FACE_CLASSES = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
ELLIPSE = ((64.0, 68.0), (42.0, 54.0))  # centre and half axes (x, y) px at 128, where no parsing was made
MATCH_SIGMA = 0.12  # of the face's side: what is coarser than this is light and colour, what is finer is the face
LEAST_WEIGHT = 0.02  # of seen skin under the blur, below which there is nothing to match the colour with


class PasteConfig(StageConfig):
    """Options of `paste`."""

    feather: float = Field(default=0.05, gt=0, le=0.25)  # spread of the blend, as a share of the face's side
    colour_match: float = Field(default=1.0, ge=0, le=1)  # how far light and colour are brought to the frame's


class Paste(Closing[PasteConfig]):
    """Warps each restored face back over its place, blended along the outline of the face.

    Reads `image` (B, 3, S, S) RGB in [0, 1], `to_source`, and `parsing` where an earlier stage wrote it. The blend is
    as wide as the face is large, so that small and large faces look alike; it ends inside the crop, so that no edge of
    the crop can show. Light and colour of the face are first brought to those of the frame, but for what an occluder
    hid.
    """

    Config = PasteConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image", "to_source"})
    writes: ClassVar[frozenset[str]] = frozenset()
    generative: ClassVar[bool] = False

    def mask(self, batch: FaceBatch) -> Tensor:
        """(B, 1, S, S) in [0, 1]: 1 well inside the face, 0 outside and along the border of the crop."""
        size = batch.image.shape[-1]
        if batch.parsing is None:
            inside = _ellipse(size).to(batch.image.device).expand(len(batch), 1, size, size)
        else:
            face = batch.parsing[:, list(FACE_CLASSES)].float().sum(1, keepdim=True)
            inside = F.interpolate(face, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)
        sigma = self.config.feather * size
        reach = max(1, round(2 * sigma))
        kernel = _gaussian(sigma).to(inside)
        # The border of the crop counts as outside; shrunk by the reach of the blur, the blend ends where the face does.
        solid = F.pad((inside > 0.5).to(inside), (reach,) * 4)
        shrunk = -F.max_pool2d(-solid, 2 * reach + 1, 1)  # (B, 1, S, S)
        soft = F.conv2d(shrunk, kernel.view(1, 1, -1, 1), padding=(len(kernel) // 2, 0))
        soft = F.conv2d(soft, kernel.view(1, 1, 1, -1), padding=(0, len(kernel) // 2))
        return (soft * _border(size, reach).to(soft)).clamp(0, 1)

    def paste(
        self,
        frame: np.ndarray,
        face: np.ndarray,
        mask: np.ndarray,
        to_source: np.ndarray,
        covered: np.ndarray | None = None,
    ) -> np.ndarray:
        """`frame` (H, W, 3) float32 in [0, 1] with `face` (S, S, 3) in it under `mask` (S, S); a new array.

        Args:
            to_source: (2, 3) from pixels of `face` to pixels of `frame`.
            covered: (S, S) in [0, 1], where the frame shows an occluder: its colour is no example.
        """
        size, matrix = len(face), np.asarray(to_source, np.float64)
        corners = np.array([(-0.5, -0.5), (size - 0.5, -0.5), (size - 0.5, size - 0.5), (-0.5, size - 0.5)])
        there = corners @ matrix[:, :2].T + matrix[:, 2]
        limits = np.array([frame.shape[1], frame.shape[0]])
        x0, y0 = np.clip(np.floor(there.min(0)), 0, limits).astype(int)
        x1, y1 = np.clip(np.ceil(there.max(0)) + 1, 0, limits).astype(int)
        if x1 <= x0 or y1 <= y0:
            return frame.copy()
        local = matrix.copy()
        local[:, 2] -= (x0, y0)
        place = (int(x1 - x0), int(y1 - y0))
        laid = _laid(face.astype(np.float32), local, place)
        share = np.clip(_laid(mask.astype(np.float32), local, place, outside=True), 0, 1)
        region = frame[y0:y1, x0:x1]
        if self.config.colour_match:
            seen = share if covered is None else share * (1 - np.clip(_laid(covered, local, place), 0, 1))
            side = size * float(np.hypot(matrix[0, 0], matrix[1, 0]))
            laid = laid + self.config.colour_match * _colour_difference(region, laid, seen, MATCH_SIGMA * side)
        out = frame.astype(np.float32, copy=True)
        out[y0:y1, x0:x1] = region + share[..., None] * (np.clip(laid, 0, 1) - region)
        return out


def _laid(picture: np.ndarray, matrix: np.ndarray, place: tuple[int, int], outside: bool = False) -> np.ndarray:
    """A picture (S, S[, C]) warped by `matrix` into a raster of `place` (width, height); where it shrinks it is blurred
    first. Beyond it lies its reflection, or 0 with `outside`."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.5 * np.sqrt(1 / scale**2 - 1) + 1e-6)
    flags = cv2.INTER_LINEAR if scale < 1 or outside else cv2.INTER_CUBIC
    border = cv2.BORDER_CONSTANT if outside else cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpAffine(picture, matrix, place, flags=flags, borderMode=border))


def _colour_difference(frame: np.ndarray, face: np.ndarray, seen: np.ndarray, sigma: float) -> np.ndarray:
    """(h, w, 3) coarse difference of frame and face over what is seen of it; fades out where nothing is seen near."""
    sigma = max(sigma, 1.0)
    weight = cv2.GaussianBlur(seen, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    summed = cv2.GaussianBlur((frame - face) * seen[..., None], (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return summed / np.maximum(weight, LEAST_WEIGHT)[..., None]


def _ellipse(size: int) -> Tensor:
    """(1, 1, size, size): 1 inside the ellipse of a canonical face."""
    axis = (torch.arange(size) + 0.5) * (CANONICAL_SIZE / size) - 0.5
    (cx, cy), (rx, ry) = ELLIPSE
    return ((((axis[None] - cx) / rx) ** 2 + ((axis[:, None] - cy) / ry) ** 2) <= 1).float()[None, None]


def _gaussian(sigma: float) -> Tensor:
    """A Gaussian kernel that sums to 1, cut at two standard deviations: the reach of the blend."""
    reach = max(1, round(2 * sigma))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(axis**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _border(size: int, reach: int) -> Tensor:
    """(size, size): 0 along the border, rising smoothly to 1 within `reach`."""
    axis = torch.arange(size, dtype=torch.float32)
    rise = (torch.minimum(axis, size - 1 - axis) / reach).clamp(0, 1)
    smooth = rise * rise * (3 - 2 * rise)
    return torch.minimum(smooth[:, None], smooth[None])
