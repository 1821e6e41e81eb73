"""What the data say about the attributes that can be edited, as labels in [-1, 1]; NaN is unknown.

| attribute | where its labels come from |
|---|---|
| smiling | LFW expressions, OMI `happy` |
| age | years of UTKFace and AAF, OMI `age`, levels of `omi_pairs` |
| masculine | UTKFace, AAF, generated and portraits, OMI `gender`, levels of `omi_pairs` |
| eyeglasses, hat | class maps of CelebAMask-HQ; hats of 173 CelebA crops, 94 with one, by eye |
| mouth_open | landmarks of every set, class maps |
| hair_black, hair_blond | OMI `hair-color`, colour of the hair's pixels in CelebAMask-HQ |
| hair_brown, hair_grey | colour of the hair's pixels in CelebAMask-HQ |
| hair_long | OMI `long-haired`, hair below the chin in the class maps |
| beard | 563 men of OMI, CelebAMask-HQ and UTKFace, 182 of them bearded, labelled by eye (`stages/labels_by_eye.csv`) |
| brows, lipstick | no set says: the classifier alone, once it has such a head |

What stays unknown, the classifier `attributes_training` may fill in while training. The rules shared with the
classifiers stand in `stages.trait_labels`. Ethnicity and skin colour are in no row: they are never an edit target.
"""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from landmarks.scheme import POINT_COUNT
from stages.attributes import ATTRIBUTES
from stages.networks.face_parser import PARSING_CLASSES
from stages.trait_labels import SEEN, labelled_by_eye, traits_of

UNKNOWN = float("nan")
MIDDLE_AGE, AGE_REACH = 37.0, 25.0  # years that are label 0, and the distance to +-1: 12 and less, 62 and more
_HAIR = PARSING_CLASSES.index("hair")
Rule = Callable[[dict[str, Any]], float]


def graded(value: float, middle: float, reach: float) -> float:
    """A number as a label: `middle` is 0, `middle` +- `reach` and beyond are +-1."""
    return float(np.clip((value - middle) / reach, -1, 1))


def _level(trait: str) -> Rule:
    """The level (0, 1, 2) of the one trait that differs within a person of `omi_pairs`."""
    return lambda row: float(row["level"]) - 1.0 if row["trait"] == trait else UNKNOWN


def _omi_age(row: dict[str, Any]) -> float:
    return graded(row["attributes"]["age"], MIDDLE_AGE, AGE_REACH)


def hair_colour(row: dict[str, Any]) -> str | None:
    """`black`, `blond`, `brown`, `grey`, or None where it cannot be told: mean CIELAB colour of the hair's pixels.

    Between the bounds lie gaps, for hair has shades.
    """
    hair = np.asarray(Image.open(io.BytesIO(row["mask"]))) == _HAIR
    return colour_of(np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB").resize(hair.shape[::-1])), hair)


def colour_of(picture: np.ndarray, hair: np.ndarray) -> str | None:
    """As `hair_colour`, from `picture` (h, w, 3) uint8 RGB and `hair` (h, w) bool."""
    if hair.mean() < 0.04:
        return None
    lightness, a, b = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[hair].mean(0)
    chroma = float(np.hypot(a, b))
    if lightness < 20 and chroma < 12:
        return "black"
    if lightness > 48 and b > 18:
        return "blond"
    if lightness > 42 and chroma < 9:
        return "grey"
    if 22 < lightness < 44 and b > 9:
        return "brown"
    return None


def _coloured(colour: str) -> Rule:
    def rule(row: dict[str, Any]) -> float:
        found = hair_colour(row) if "image" in row else None
        return UNKNOWN if found is None else 1.0 if found == colour else -1.0

    return rule


def _hair_length(row: dict[str, Any]) -> float:
    """Share of hair in the lower third of the picture, beside and below the chin: none is -1, 12 % is +1."""
    classes = np.asarray(Image.open(io.BytesIO(row["mask"])))
    return graded(float((classes[classes.shape[0] * 2 // 3 :] == _HAIR).mean()), 0.06, 0.06)


# What `stages.trait_labels` does not say: set -> attribute -> rule.
FURTHER: dict[str, dict[str, Rule]] = {
    "omi": {"age": _omi_age},
    "omi_pairs": {"age": _level("age"), "masculine": _level("gender")},
    "celebamask": {
        "hair_black": _coloured("black"), "hair_blond": _coloured("blond"), "hair_brown": _coloured("brown"),
        "hair_grey": _coloured("grey"), "hair_long": _hair_length,
    },
}  # fmt: skip


def labels_of_row(row: dict[str, Any], name: str) -> np.ndarray:
    """(A,) float32 labels of one Parquet row of set `name`, in the order of `ATTRIBUTES`."""
    points = row.get("landmarks")
    if SEEN not in row:  # not by `read_columns`, which has put it there
        row = row | {SEEN: labelled_by_eye().get(name, {}).get(str(row.get("id")))}
    traits = traits_of(row, None if points is None else np.asarray(points, np.float64).reshape(POINT_COUNT, 2))
    found = {a: graded(v, MIDDLE_AGE, AGE_REACH) if a == "age" else 2 * v - 1 for a, v in traits.items()}
    for attribute, rule in FURTHER.get(name, {}).items():
        if attribute not in found:
            found[attribute] = rule(row)
    return np.array([found.get(a, UNKNOWN) for a in ATTRIBUTES], np.float32)


def label_of_answer(attribute: str, answer: Tensor) -> Tensor:
    """A classifier's answer (a logit, or years for `age`) as a label in [-1, 1]."""
    if attribute == "age":
        return ((answer - MIDDLE_AGE) / AGE_REACH).clamp(-1, 1)
    return torch.tanh(answer / 2)  # 2 * sigmoid - 1
