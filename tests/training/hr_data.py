"""Faces for the tests of the high-resolution training scripts: smooth noise, made on the spot."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.degradation.occluders import MEAN_SHAPE


def picture(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(40, 220, (12, 12, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


def points(scale: float, border: float) -> list[float]:
    """The mean shape at `scale` px per pixel of the 128 frame, `border` px from the picture's corner."""
    return list(((np.asarray(MEAN_SHAPE, np.float64) + 0.5) * scale - 0.5 + border).ravel())


def write_omi(path: Path, count: int, side: int = 320, scale: float = 2.0) -> None:
    rng = np.random.default_rng(0)
    keys = ("age", "gender", "happy", "long-haired", "hair-color", "skin-color")
    pq.write_table(
        pa.table(
            {
                "id": [f"omi{i}" for i in range(count)],
                "image": [picture(i, side) for i in range(count)],
                "landmarks": [points(scale, (side - 128 * scale) / 2)] * count,
                "attributes": [{k: float(rng.uniform(0, 100)) for k in keys} for _ in range(count)],
            }
        ),
        path,
    )


def write_pairs(path: Path, side: int = 320, scale: float = 2.0) -> None:
    rows = [(f"{p}_{t}_{n}", p, t, n) for p in ("7", "8") for t in ("age", "gender") for n in range(3)]
    pq.write_table(
        pa.table(
            {
                "id": [r[0] for r in rows],
                "person": [r[1] for r in rows],
                "trait": [r[2] for r in rows],
                "level": [r[3] for r in rows],
                "image": [picture(100 + i, side) for i in range(len(rows))],
                "landmarks": [points(scale, (side - 128 * scale) / 2)] * len(rows),
            }
        ),
        path,
    )
