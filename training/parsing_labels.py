"""Parsing labels for faces that have none: made once per pack by the trained face parser."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from stages.networks.face_parser import FaceParser
from stages.trait_labels import GLASSES
from training.faces import MARGIN, PACK_SIZE, Pack

LABEL_SIZE = PACK_SIZE // 2
WINDOW = 144  # px, the middle part that is parsed: what a mis-framed sample can reach, and a size the parser accepts
# Class numbers after a mirror: left and right parts change places; 255 (unknown) stays.
MIRRORED = np.arange(256, dtype=np.uint8)
MIRRORED[[4, 5, 6, 7, 8, 9]] = [5, 4, 7, 6, 9, 8]
# Share of the canonical frame that the parser calls eyeglasses: for a yes, and for a no. By eye, on about 80 faces,
# nearly all above .06 wear some and half of those between .005 and .01 do not. Its hats are too often wrong: not used.
SURE_GLASSES, NO_GLASSES = 0.06, 0.001


@torch.inference_mode()
def parsed(parser: FaceParser, pictures: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The best class (B, h / factor, w / factor) uint8 of pictures (B, h, w, 3) uint8, and its probability."""
    parameter = next(parser.parameters())
    image = torch.from_numpy(pictures).to(parameter.device).permute(0, 3, 1, 2).to(parameter.dtype) / 255
    logits = parser(image.contiguous(memory_format=torch.channels_last)).float()
    probability, best = torch.softmax(F.avg_pool2d(logits, factor), 1).max(1)
    return best.to(torch.uint8).cpu().numpy(), probability.cpu().numpy()


def parsing_labels(pack: Pack, folder: Path, parser: FaceParser, sure: float = 0.5, batch_size: int = 32) -> np.ndarray:
    """(N, 84, 84) uint8 class maps of the packed pictures at half their size, kept in `folder` as `parsing.npy`.

    The outer rim, and pixels where the parser's best class has a probability below `sure`, get 255, "unknown".
    """
    path = folder / "parsing.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    labels = np.lib.format.open_memmap(
        path.with_suffix(".part"), "w+", np.uint8, (len(pack.images), LABEL_SIZE, LABEL_SIZE)
    )
    cut = (PACK_SIZE - WINDOW) // 2
    labels[:] = 255
    for start in range(0, len(pack.images), batch_size):
        pictures = np.ascontiguousarray(pack.images[start : start + batch_size, cut : cut + WINDOW, cut : cut + WINDOW])
        best, probability = parsed(parser, pictures, PACK_SIZE // LABEL_SIZE)
        best[probability < sure] = 255
        labels[start : start + len(pictures), cut // 2 : -cut // 2, cut // 2 : -cut // 2] = best
    labels.flush()
    path.with_suffix(".part").replace(path)
    return np.load(path, mmap_mode="r")


def parsed_glasses(labels: np.ndarray) -> np.ndarray:
    """(N,) 1 where the parser saw eyeglasses, 0 where none, NaN in between, from (N, 84, 84) class maps."""
    inner = slice(MARGIN // 2, -MARGIN // 2)
    share = np.array([(picture[inner, inner] == GLASSES).mean() for picture in labels])
    return np.where(share >= SURE_GLASSES, 1.0, np.where(share <= NO_GLASSES, 0.0, np.nan)).astype(np.float32)
