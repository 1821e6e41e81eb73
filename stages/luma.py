"""The luma of RGB pictures: what is left of a picture without its colour."""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma(image: Tensor) -> Tensor:
    """Grey picture (B, 3, H, W) of the same luma."""
    weights = torch.tensor(LUMA, device=image.device, dtype=image.dtype).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
