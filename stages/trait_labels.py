"""What data sets say about a face, as values of named traits: one place for the rules of training and evaluation.

A trait is a class (`expression`), a number (`age`, years) or a yes or no (all others, 1 and 0). What a set does not
say, or says with doubt, is left out. Labels are other people's judgements of pictures, not facts about a person.
"""

import csv
import io
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from landmarks.scheme import inter_ocular_px

# LFW faces have disgust, fear and contempt too, 22 pictures of 9,030: too few to learn or to measure.
EXPRESSIONS = ("neutral", "happiness", "surprise", "anger", "sadness")
AGE_BANDS = (3, 10, 20, 40, 60, 80)  # years at which a band begins, after the first: 0-2, 3-9, ..., 80 and more
LABEL_COLUMNS = ("age", "gender", "expression", "attributes", "mask")
SEEN = "seen"  # key of a row under which `read_columns` puts its labels of `BY_EYE`
GLASSES, MOUTH, HAT = 3, 10, 14  # classes of CelebAMask-HQ
# Share of the picture that a class must cover: below, a few stray pixels. Eyeglasses start at .004 where there are any.
PRESENT = 0.002
# Distance of the inner lips over that of the outer eye corners. Of 866 faces with masks, 93 % of the mouths that show
# an inside lie above OPEN and 2 % below CLOSED; 4 % and 90 % of those that show none.
OPEN, CLOSED = 0.055, 0.025
BY_EYE = Path(__file__).with_name("labels_by_eye.csv")  # set, id, trait, 1 or 0: what no set says, seen by us
_OMI = {  # trait -> rating of OMI (means of people's answers, 0-100), at most for no, at least for yes
    "masculine": ("gender", 40, 60),  # falls with long hair, r = -.87: 100 is a man
    "smiling": ("happy", 40, 65),
    "hair_long": ("long-haired", 25, 60),
    "hair_black": ("hair-color", 50, 80),  # falls with the lightness of the hair's pixels, r = -.81: 100 is black
}
_BLOND_AT_MOST, _NOT_BLOND_AT_LEAST = 25, 60  # hair-color


def age_band(years: np.ndarray) -> np.ndarray:
    """Number of the age band, 0 to 6."""
    return np.digitize(years, AGE_BANDS)


def mouth_opening(landmarks: np.ndarray) -> float:
    """Mean distance of the inner lips over that of the outer eye corners, from (68, 2) points; NaN where unknown."""
    gap = (landmarks[65:68, 1] - landmarks[61:64, 1]).mean()
    return float(gap / max(float(inter_ocular_px(landmarks)), 1e-6))


def traits_of(row: Mapping[str, Any], landmarks: np.ndarray | None = None) -> dict[str, float]:
    """Traits that one face is labelled with.

    Args:
        row: columns of its Parquet file (`LABEL_COLUMNS`), None or absent where a set lacks them; `mask` is the encoded
            class map of CelebAMask-HQ, `SEEN` what was labelled by eye. landmarks: (68, 2) upright points of the face,
            where known.
    """
    found: dict[str, float] = {}
    if (age := row.get("age")) is not None:
        found["age"] = float(age)
    if (gender := row.get("gender")) is not None:
        found["masculine"] = 1.0 - float(gender)
    if (expression := row.get("expression")) in EXPRESSIONS:
        found["expression"] = float(EXPRESSIONS.index(str(expression)))
        if expression != "surprise":  # a surprised mouth may smile
            found["smiling"] = float(expression == "happiness")
    if (ratings := row.get("attributes")) is not None:
        for trait, (name, low, high) in _OMI.items():
            if not low < ratings[name] < high:
                found[trait] = float(ratings[name] >= high)
        if not _BLOND_AT_MOST < ratings["hair-color"] < _NOT_BLOND_AT_LEAST:
            found["hair_blond"] = float(ratings["hair-color"] <= _BLOND_AT_MOST)
    if landmarks is not None and np.isfinite(opening := mouth_opening(landmarks)) and not CLOSED < opening < OPEN:
        found["mouth_open"] = float(opening >= OPEN)
    if (mask := row.get("mask")) is not None:
        classes = np.asarray(Image.open(io.BytesIO(mask)))
        share = np.bincount(classes.ravel(), minlength=19) / classes.size
        found["eyeglasses"], found["hat"] = float(share[GLASSES] > PRESENT), float(share[HAT] > PRESENT)
        if not PRESENT / 10 < share[MOUTH] <= PRESENT:
            found["mouth_open"] = float(share[MOUTH] > PRESENT)
    return found | (row.get(SEEN) or {})


@cache
def labelled_by_eye() -> dict[str, dict[str, dict[str, float]]]:
    """Set -> id -> trait -> 1 or 0, as found by looking at numbered pictures; doubtful ones were left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with BY_EYE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            found.setdefault(row["set"], {}).setdefault(row["id"], {})[row["trait"]] = float(row["label"])
    return found


def read_columns(path: Path, columns: Collection[str] = LABEL_COLUMNS) -> dict[str, dict[str, Any]]:
    """Rows of a Parquet file by id, with those of `columns` that it has and what was labelled by eye (`SEEN`).

    Raises:
        FileNotFoundError: no such file.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"labels: {path} does not exist")
    names = pq.ParquetFile(path).schema_arrow.names
    table = pq.read_table(path, columns=["id", *(c for c in names if c in columns)]).to_pylist()
    rows = {str(row.pop("id")): row for row in table}
    for face, seen in labelled_by_eye().get(path.stem, {}).items():
        if face in rows:
            rows[face][SEEN] = seen
    return rows
