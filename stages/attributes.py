"""The attributes that can be edited: their names, and what a request for a change must look like."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

ATTRIBUTES = (
    "smiling", "age", "masculine", "eyeglasses", "hat", "mouth_open", "beard", "brows", "lipstick", "hair_black",
    "hair_blond", "hair_brown", "hair_grey", "hair_long",
)  # fmt: skip
HAIR_COLOURS = ("hair_black", "hair_blond", "hair_brown", "hair_grey")
MAX_STRENGTH = 2.0  # beyond +-1 the effect is exaggerated; further out nothing was ever seen in training

# Parts of the face (classes of the parser) that each edit may touch. Outside, pixels stay as they were.
# Hair and hats reach past what is there before the edit.
_SKIN = ("skin", "nose", "left_ear", "right_ear", "neck")
_EYES = ("left_eye", "right_eye", "left_brow", "right_brow", "eyeglasses")
_MOUTH = ("mouth", "upper_lip", "lower_lip")
_HAIR = ("hair", "hat")
REGIONS: dict[str, tuple[str, ...]] = {
    "smiling": ("skin", "nose", *_MOUTH, "left_eye", "right_eye"),
    "age": (*_SKIN, *_EYES, *_MOUTH),
    "masculine": (*_SKIN, *_EYES, *_MOUTH),
    "eyeglasses": ("skin", "nose", *_EYES, "left_ear", "right_ear"),
    "hat": ("hair", "hat", "skin", "background", "left_ear", "right_ear"),
    "mouth_open": ("skin", *_MOUTH),
    "beard": ("skin", "neck", "nose", *_MOUTH),
    "brows": ("skin", "left_brow", "right_brow"),
    "lipstick": _MOUTH,
    "hair_black": ("hair", "left_brow", "right_brow"),
    "hair_blond": ("hair", "left_brow", "right_brow"),
    "hair_brown": ("hair", "left_brow", "right_brow"),
    "hair_grey": ("hair", "left_brow", "right_brow"),
    "hair_long": ("hair", "background", "neck", "cloth", "left_ear", "right_ear"),
}

# Parts that an edit leaves alone even where its own parts, widened, reach into them: hair has attributes of its own,
# and background and clothes would get a rim.
SPARED = dict.fromkeys(("smiling", "age", "masculine", "mouth_open", "beard"), (*_HAIR, "background", "cloth"))
# The first row of the canonical 128 px frame that an edit reaches: beards begin below the eyes.
FIRST_ROW = {"beard": 60}


def check_attributes(wanted: Mapping[str, float]) -> None:
    """Refuse what cannot be edited.

    Raises:
        ValueError: nothing asked for, an attribute that is none of `ATTRIBUTES` (the nearest is named), or a strength
            beyond +-`MAX_STRENGTH`.
    """
    if not wanted:
        raise ValueError(f"no attribute to change; known: {', '.join(ATTRIBUTES)}")
    for name, strength in wanted.items():
        if name not in ATTRIBUTES:
            near = difflib.get_close_matches(name, ATTRIBUTES, 1, 0.5)
            hint = f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(ATTRIBUTES)}"
            raise ValueError(f"unknown attribute {name!r}{hint}")
        if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:  # refuses NaN too
            raise ValueError(f"{name} = {strength}: expected a strength from -{MAX_STRENGTH:g} to +{MAX_STRENGTH:g}")


def unlearned(wanted: Iterable[str], known: Sequence[str]) -> str | None:
    """What to say of attributes that weights, which know the `known`, were not taught; None where there are none."""
    missing = [name for name in wanted if name not in known]
    said = f"attributes: the loaded weights have not learned {', '.join(missing)}; they know {', '.join(known)}"
    return said if missing else None
