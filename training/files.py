"""What training keeps on disk: files that are there whole or not at all, and the pictures in them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes its name when the block ends, and does not where the block fails."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        yield file
    part.replace(path)


def picture_of(data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, upright; None where the bytes cannot be decoded."""
    try:
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    except (OSError, ValueError):
        return None


def as_webp(picture: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB as WebP, lossy."""
    done, data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done
    return data.tobytes()


def from_webp(data: bytes | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises `ValueError` where it cannot be decoded."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("a pack holds a picture that cannot be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
