"""Make example CCTV thumbnails out of the faces that scikit-image ships, so that no picture of anyone is kept here.

    python examples/make_thumbnails.py out/example

writes `thumbnails/*.png` (16x16, to be restored), `originals/*.png` (128x128, to compare with) and
`degradation.jsonl` (what was done to each). The same command makes the same files.

The astronaut is Eileen Collins, photographed by NASA, in the public domain; she is degraded in colour, once clean and
once under each cover listed below. The others are 25x25 grey faces of the LFW subset, brought up to 128x128 first:
their originals are as soft as that, so they show the input side of the job and are no truth to measure with.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from landmarks.alignment import CANONICAL_SIZE, to_canonical, warp
from stages.degradation import DegradationConfig, degrade_face
from stages.degradation.config import OccluderKind

# Eye centres, nose tip, mouth corners of skimage.data.astronaut() in its pixels (x, y), set by eye.
ASTRONAUT_FIVE_POINTS = np.array([(202, 102), (243, 105), (225, 126), (202, 140), (245, 142)], dtype=np.float64)
LFW_FACE_COUNT = 100  # the first hundred of the subset are faces, the second hundred are not
LFW_EXAMPLES = 24
COVERS: tuple[OccluderKind | None, ...] = (None, "surgical_mask", "sunglasses", "scarf", "hand", "cap", "hair", "box")


def astronaut_face() -> np.ndarray:
    """The astronaut's face in the canonical frame, (128, 128, 3) uint8 RGB."""
    return warp(data.astronaut(), to_canonical(ASTRONAUT_FIVE_POINTS), CANONICAL_SIZE)


def lfw_faces(count: int) -> list[np.ndarray]:
    """`count` grey faces spread over the subset, (128, 128, 3) uint8 with equal channels.

    The subset's own framing lies within 3 px (at 128) of the canonical one, which the restorer bears: no alignment.
    """
    chosen = np.linspace(0, LFW_FACE_COUNT - 1, count).round().astype(int)
    faces = []
    for small in data.lfw_subset()[chosen]:  # (25, 25) float64 in [0, 1]
        grey = Image.fromarray((small * 255).round().astype(np.uint8))
        large = np.asarray(grey.resize((CANONICAL_SIZE, CANONICAL_SIZE), Image.Resampling.BICUBIC))
        faces.append(np.dstack([large] * 3))
    return faces


def recipe(cover: OccluderKind | None) -> DegradationConfig:
    """A camera at night: slight defocus, sensor noise, JPEG; under `cover`, or under nothing."""
    return DegradationConfig.clean(
        occluder_probability=float(cover is not None),
        occluder=cover,
        defocus_probability=0.5,
        noise_probability=1.0,
        jpeg_probability=0.5,
        jpeg_quality=(60, 95),
    )


def main(out: Path) -> int:
    """Write the examples under `out`; returns how many."""
    faces = [(f"astronaut_{cover or 'clean'}", astronaut_face(), cover) for cover in COVERS]
    for index, face in enumerate(lfw_faces(LFW_EXAMPLES)):
        cover = COVERS[index % len(COVERS)]
        faces.append((f"lfw_{index:02d}_{cover or 'clean'}", face, cover))

    for folder in ("thumbnails", "originals"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    records = []
    for index, (name, face, cover) in enumerate(faces):
        degraded = degrade_face(face, None, np.random.default_rng([0, index]), recipe(cover))
        thumbnail = (degraded.lq * 255).round().astype(np.uint8)
        if name.startswith("lfw"):
            thumbnail = thumbnail.mean(axis=2).round().astype(np.uint8)  # a grey camera stays grey under its cover too
        Image.fromarray(thumbnail).save(out / "thumbnails" / f"{name}.png")
        Image.fromarray(face).save(out / "originals" / f"{name}.png")
        records.append(json.dumps({"name": name, **degraded.record}, sort_keys=True))
    (out / "degradation.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    return len(faces)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_thumbnails.py OUT")
    target = Path(sys.argv[1])
    print(f"{main(target)} example thumbnails in {target / 'thumbnails'}")
