"""Find the canonical frame of a single face from its parts, where nobody has said where its landmarks lie.

No detector: the picture shows one face, roughly upright, framed tightly, canonically, or as FFHQ does it. The face
parser looks at each of these framings; the centres of eyes, nose and mouth that it finds give the frame.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from landmarks.alignment import CANONICAL_SIZE, apply, invert, similarity, warp
from stages.networks.face_parser import PARSING_CLASSES

# Canonical frame as (left, top, right, bottom) in shares of the picture's width and height. The first is a canonical
# crop; the others are the means of 40 OMI (FFHQ framing) and 40 UTKFace pictures (tight crops), by their landmarks.
FRAMINGS = ((0.0, 0.0, 1.0, 1.0), (0.11, 0.165, 0.88, 0.935), (-0.11, -0.18, 1.09, 1.01))
# Centres of the parser's right eye, left eye, nose and mouth in the canonical 128 px frame: medians of 120 faces.
PART_CENTRES = np.array([(43.5, 50.7), (84.7, 50.5), (63.9, 66.9), (63.9, 95.6)])
_PARTS = (("right_eye",), ("left_eye",), ("nose",), ("mouth", "upper_lip", "lower_lip"))
# Pixels of the 128 px frame that count as wholly there: about the 5th percentile of those faces.
_ENOUGH = {"eyes": 45.0, "nose": 300.0, "mouth": 150.0, "skin": 3000.0}
_FIT_PX = 5.0  # distance of the parts from their places at which a frame is in doubt


@dataclass(frozen=True)
class FaceFrame:
    """Where the face lies.

    Attributes:
        matrix: (2, 3) from pixels of the picture to the canonical 128 px frame.
        score: in [0, 1], how sure it is that there is a face.
        parsing: (1, 19, 128, 128) class probabilities in the frame.
        face: (1, 3, 128, 128) the picture in the frame.
    """

    matrix: np.ndarray
    score: float
    parsing: Tensor
    face: Tensor


def _classes(names: tuple[str, ...]) -> list[int]:
    return [PARSING_CLASSES.index(n) for n in names]


@torch.inference_mode()
def look(picture: np.ndarray, matrix: np.ndarray, parser: nn.Module) -> FaceFrame:
    """Parse the frame that `matrix` cuts out of `picture` (H, W, 3) float32 in [0, 1], and judge it."""
    parameter = next(parser.parameters())
    face = torch.from_numpy(warp(picture, matrix, CANONICAL_SIZE)).permute(2, 0, 1)[None].clamp(0, 1)
    face = face.to(parameter.device).contiguous(memory_format=torch.channels_last)
    parsing = torch.softmax(parser(face.to(parameter.dtype)).float(), 1)
    found = _parts(parsing)
    seen = np.isfinite(found[:, 0])
    distance = float(np.linalg.norm(found - PART_CENTRES, axis=1)[seen].mean()) if seen.any() else np.inf
    area = (parsing > 0.5).float().sum((0, 2, 3)).cpu().numpy()
    covered = area[PARSING_CLASSES.index("eyeglasses")] / 8  # dark glasses hide the eyes they lie on
    there = {
        "eyes": area[_classes(("left_eye", "right_eye"))].sum() + covered,
        "nose": area[_classes(("nose",))].sum(),
        "mouth": area[_classes(_PARTS[3])].sum(),
        "skin": area[_classes(("skin", "nose"))].sum(),
    }
    shares = [min(1.0, float(there[k]) / enough) for k, enough in _ENOUGH.items()]
    return FaceFrame(matrix, min(shares) * float(np.exp(-((distance / _FIT_PX) ** 2) / 2)), parsing, face)


def _parts(parsing: Tensor) -> np.ndarray:
    """(4, 2) centres (x, y) of the parts, NaN where one is hardly there."""
    values = parsing[0].cpu().numpy()
    y, x = np.mgrid[: values.shape[1], : values.shape[2]]
    centres = np.full((4, 2), np.nan)
    for i, names in enumerate(_PARTS):
        mass = values[_classes(names)].sum(0)
        mass = mass * (mass > 0.5)
        if (total := mass.sum()) >= 8:
            centres[i] = (mass * x).sum() / total, (mass * y).sum() / total
    return centres


def frame_of(size: tuple[int, int], framing: tuple[float, float, float, float]) -> np.ndarray:
    """(2, 3) from pixels of a picture of `size` (height, width) to the canonical frame of a framing."""
    left, top, right, bottom = framing
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) * (size[1], size[0]) - 0.5
    edge = CANONICAL_SIZE - 0.5
    return similarity(corners, np.array([(-0.5, -0.5), (edge, -0.5), (edge, edge), (-0.5, edge)]))


def find_frame(picture: np.ndarray, parser: nn.Module) -> FaceFrame:
    """The best frame of a picture (H, W, 3) float32 in [0, 1]; its `score` says whether there is a face at all."""
    best: FaceFrame | None = None
    for framing in FRAMINGS:
        seen = look(picture, frame_of(picture.shape[:2], framing), parser)
        for _ in range(2):
            centres = _parts(seen.parsing)
            known = np.isfinite(centres[:, 0])
            if known.sum() < 3:
                break
            there = apply(invert(seen.matrix), centres[known])  # in the picture
            better = look(picture, similarity(there, PART_CENTRES[known]), parser)
            if better.score <= seen.score:
                break
            seen = better
        if best is None or seen.score > best.score:
            best = seen
    assert best is not None
    return best
