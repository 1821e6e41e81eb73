"""A copy of a generated picture to hand out: the standing words burnt in below it, outside of the picture."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.provenance import STRIP

LEAST_FONT_PX = 9  # the smallest at which the built-in font can be read
WIDTHS_PER_FONT_PX = 14  # 128 px wide: 9 px type in two lines; 768 px wide: 54 px type


@lru_cache(maxsize=8)
def strip(width: int, grey: bool) -> np.ndarray:
    """The words in white on black, (h, `width`) or (h, `width`, 3) uint8."""
    size = max(LEAST_FONT_PX, width // WIDTHS_PER_FONT_PX)
    font = ImageFont.load_default(size)
    lines, line = [], ""
    for word in STRIP.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width - 4:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    step = round(size * 1.25)
    picture = Image.new("L", (width, step * len(lines) + size // 3), 0)
    draw = ImageDraw.Draw(picture)
    for row, text in enumerate(lines):
        draw.text((width / 2, row * step + step / 2 + size / 6), text, 255, font, anchor="mm")
    pixels = np.asarray(picture)
    return pixels if grey else np.repeat(pixels[..., None], 3, axis=2)


def marked(image: np.ndarray) -> np.ndarray:
    """A picture, (H, W) or (H, W, 3) uint8, with the strip under it."""
    return np.concatenate([image, strip(image.shape[1], image.ndim == 2)])
