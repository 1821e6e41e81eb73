"""The one door to basicsr: RRDBNet, NIQE and blur kernels. Nothing else in the project imports it.

basicsr 1.4.2 (Apache-2.0) is no longer maintained. Its import fails with today's torchvision, which has dropped
`torchvision.transforms.functional_tensor`, so that module is supplied here first. Its option parser runs `eval` and
`exec` on its input, its JPEG simulation and image readers break with OpenCV 5, and its deformable convolutions need
CUDA: none of those is used. Where basicsr is missing, everything outside this file works.
"""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Literal

import numpy as np
from torch import nn

KernelKind = Literal["gaussian", "generalised_gaussian", "plateau", "sinc"]

NIQE_BLOCK_PX = 96  # block side of the NIQE authors' release, for which its pristine model was fitted
_LOST_MODULE = "torchvision.transforms.functional_tensor"


def available() -> bool:
    """Whether basicsr is installed; imports nothing."""
    return importlib.util.find_spec("basicsr") is not None


def _supply_lost_module() -> None:
    """Put `torchvision.transforms.functional_tensor` back, with the one function basicsr takes from it."""
    if _LOST_MODULE in sys.modules or importlib.util.find_spec(_LOST_MODULE) is not None:
        return
    functional = importlib.import_module("torchvision.transforms.functional")
    module = ModuleType(_LOST_MODULE, "Stands in for a module that torchvision 0.17 removed.")
    vars(module)["rgb_to_grayscale"] = functional.rgb_to_grayscale
    sys.modules[_LOST_MODULE] = module


def _load(name: str) -> ModuleType:
    """Import `basicsr.<name>`.

    Raises:
        ImportError: basicsr or something it needs is missing, or the installed release does not import here.
    """
    if not available():
        raise ImportError(
            "basicsr is not installed; `make test` installs it, or by hand: "
            "pip install --no-deps --no-build-isolation basicsr==1.4.2"
        )
    try:
        _supply_lost_module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # names that scipy and torchvision have moved since
            return importlib.import_module(f"basicsr.{name}")
    except (ImportError, AttributeError) as error:
        raise ImportError(f"basicsr is installed, but basicsr.{name} does not import: {error}") from error


def rrdbnet(
    *,
    scale: Literal[1, 2, 4] = 4,
    features: int = 64,
    blocks: int = 23,
    growth: int = 32,
    in_channels: int = 3,
    out_channels: int = 3,
) -> nn.Module:
    """An untrained RRDBNet: (B, in_channels, H, W) in [0, 1] -> (B, out_channels, scale * H, scale * W), unbounded.

    The defaults are those of ESRGAN and of Real-ESRGAN x4plus. H and W are multiples of 2 at scale 2, of 4 at scale 1.
    Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV Workshops 2018.

    Raises:
        ImportError: basicsr is missing.
    """
    module = _load("archs.rrdbnet_arch")
    return module.RRDBNet(
        num_in_ch=in_channels,
        num_out_ch=out_channels,
        scale=scale,
        num_feat=features,
        num_block=blocks,
        num_grow_ch=growth,
    )


def niqe(image: np.ndarray) -> float:
    """NIQE of a picture: lower is nearer to the statistics of undistorted photographs. No reference, no border crop.

    It rewards invented detail, so it never stands alone beside a restored face. Luma of BT.601, blocks of 96 px: a
    single 128 px face holds one block, too few for a covariance; lay several faces side by side.
    Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", SPL 2013.

    Args:
        image: (H, W, 3) RGB or (H, W) grey, uint8 in [0, 255], with room for at least two blocks.

    Raises:
        ImportError: basicsr is missing.
        ValueError: wrong shape or dtype, or fewer than two blocks.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"niqe: expected (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}")
    blocks = (image.shape[0] // NIQE_BLOCK_PX) * (image.shape[1] // NIQE_BLOCK_PX)
    if blocks < 2:
        raise ValueError(f"niqe: {image.shape[0]}x{image.shape[1]} px holds {blocks} blocks of {NIQE_BLOCK_PX}, need 2")
    module = _load("metrics.niqe")
    if image.ndim == 2:
        return float(module.calculate_niqe(image, crop_border=0, input_order="HW"))
    return float(module.calculate_niqe(image[:, :, ::-1], crop_border=0, input_order="HWC", convert_to="y"))


def blur_kernel(
    kind: KernelKind,
    size: int,
    *,
    sigma_x_px: float = 1.0,
    sigma_y_px: float = 1.0,
    angle_rad: float = 0.0,
    beta: float = 1.0,
    cutoff_rad: float = float(np.pi / 2),
) -> np.ndarray:
    """A blur kernel, (size, size) float64 that sums to 1; no random draw in it.

    Args:
        kind: `gaussian`; `generalised_gaussian` (beta 1 is Gaussian, below is peaked, above is flat); `plateau`
            (1 / (1 + d^beta)); `sinc`, a round low-pass that rings, and has negative weights.
        size: side in pixels, odd.
        sigma_x_px, sigma_y_px: widths along the two axes before turning, above 0; not for `sinc`.
        angle_rad: turn of the axes; not for `sinc`.
        beta: shape, above 0; for `generalised_gaussian` and `plateau`.
        cutoff_rad: cut-off frequency in radians a pixel, in (0, pi]; for `sinc`.

    The family of Wang et al., "Real-ESRGAN", ICCV Workshops 2021, section 3.

    Raises:
        ImportError: basicsr is missing.
        ValueError: a number out of its range.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"blur_kernel: size must be odd and positive, got {size}")
    if kind == "sinc":
        if not 0 < cutoff_rad <= np.pi:
            raise ValueError(f"blur_kernel: cutoff_rad must lie in (0, pi], got {cutoff_rad}")
        with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 at the centre, which is then set to its limit
            return _load("data.degradations").circular_lowpass_kernel(cutoff_rad, size)
    if min(sigma_x_px, sigma_y_px, beta) <= 0:
        raise ValueError(f"blur_kernel: widths and beta must be above 0, got {sigma_x_px}, {sigma_y_px}, {beta}")
    module = _load("data.degradations")
    shape = (size, sigma_x_px, sigma_y_px, angle_rad)
    if kind == "gaussian":
        return module.bivariate_Gaussian(*shape, isotropic=False)
    if kind == "generalised_gaussian":
        return module.bivariate_generalized_Gaussian(*shape, beta, isotropic=False)
    return module.bivariate_plateau(*shape, beta, isotropic=False)
