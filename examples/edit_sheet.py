"""The README's picture of edits: the astronaut, one attribute a row, from strength -1 to +1.

python examples/edit_sheet.py docs/edits.png
"""

import sys
from pathlib import Path

from PIL import Image
from skimage import data

from pipeline.editing import contact_sheet

FACE = (158, 48, 290, 180)  # px of the picture: left, top, right, bottom
ATTRIBUTES = ("smiling", "age", "eyeglasses", "masculine", "beard")


def edit_sheet() -> Image.Image:
    """One row an attribute, in the order of `ATTRIBUTES`; one column a strength."""
    face = Image.fromarray(data.astronaut()).crop(FACE)
    return Image.fromarray(contact_sheet([face], ATTRIBUTES))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: edit_sheet.py OUT.png")
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    edit_sheet().save(target, optimize=True)
    print(target)
