"""The editor on whole large faces: what it makes of one when no change is asked."""

from collections.abc import Sequence

import numpy as np
import torch

from evaluation.metrics import psnr
from evaluation.restoring import as_tensor, pictures
from stages.networks.coogan import GLOBAL_SIZE, CooganNet

FACE_PX = 768  # side of the faces that editing is measured on


@torch.inference_mode()
def reconstruction_db(network: CooganNet, faces: Sequence[np.ndarray]) -> float:
    """Mean PSNR in dB of both paths over whole faces when no change is asked, without region."""
    scores = []
    for face in faces:
        image = as_tensor(face)
        small = torch.nn.functional.interpolate(image, size=(GLOBAL_SIZE,) * 2, mode="area")
        none = torch.zeros(1, len(network.attributes))
        step = GLOBAL_SIZE / FACE_PX
        place = torch.tensor([[[step, 0, step / 2 - 0.5], [0, step, step / 2 - 0.5]]])
        change, _ = network.edit_patch(image, network.edit_whole(small, none), place, none)
        scores.append(psnr(pictures(image + change)[0], face))
    return float(np.mean(scores))
