"""The README's picture: the astronaut's thumbnails, restored, with the maps beside them.

python examples/make_thumbnails.py out/example
python run_pipeline.py restore -i "out/example/thumbnails/astronaut_*.png" -o out/example/soft -w 1
python run_pipeline.py restore -i "out/example/thumbnails/astronaut_*.png" -o out/example/sharp -w 0
python examples/contact_sheet.py out/example docs/astronaut.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, LABEL = 128, 118  # px: a picture, and the column of labels
ROWS = (
    ("thumbnail, 16x16", "thumbnails"),
    ("fidelity 1", "soft/restored"),
    ("fidelity 0", "sharp/restored"),
    ("occluder found", "soft/occlusion"),
    ("how invented", "soft/uncertainty"),
    ("original", "originals"),
)


def contact_sheet(example: Path) -> Image.Image:
    """One column a thumbnail, one row a kind of picture, in the order of `ROWS`."""
    names = sorted(p.name for p in (example / "thumbnails").glob("astronaut_*.png"))
    sheet = Image.new("RGB", (LABEL + SIDE * len(names), SIDE * len(ROWS)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, folder) in enumerate(ROWS):
        draw.text((4, row * SIDE + SIDE // 2 - 6), label, fill="black", font_size=13)
        for column, name in enumerate(names):
            picture = Image.open(example / folder / name).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (LABEL + column * SIDE, row * SIDE))
    return sheet


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: contact_sheet.py EXAMPLE_FOLDER OUT.png")
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(Path(sys.argv[1])).save(target, optimize=True)
    print(target)
