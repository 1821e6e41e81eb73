"""Edit one large picture in the memory of a small one: decoded once into a scratch file, edited and written in bands.

The scratch file is read by rows and never mapped, so what the process holds is a band of rows and the network's patch.
Only decoding holds the whole picture, in Pillow's four bytes a pixel, and is over before the networks run.
"""

import struct
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from pipeline.chain import Chain
from pipeline.images import GREY_TOLERANCE, PNG_LEVEL, ImageError, Limits, open_header, opened, to_uint8
from stages.coogan import MIN_FACE_SCORE, Coogan
from stages.prouigan import LUMA

_BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error)  # of data that Pillow cannot decode
BAND_ROWS = 64  # rows decoded and analysed at a time
_PLAIN_MODES = ("RGB", "L")  # what is edited in bands; other kinds of picture take the ordinary way


class FileRows:
    """A picture of raw RGB bytes in a scratch file, as `stages.coogan.RowSource`; grey pictures come out grey."""

    def __init__(self, file: BinaryIO, height: int, width: int) -> None:
        self.file, self.height, self.width, self.grey = file, height, width, False

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, width, 3) uint8."""
        self.file.seek(top * self.width * 3)
        pixels = np.fromfile(self.file, np.uint8, (bottom - top) * self.width * 3)
        pixels = pixels.reshape(bottom - top, self.width, 3)
        if not self.grey:
            return pixels
        luma = np.rint(pixels.astype(np.float32) @ np.array(LUMA, np.float32)).astype(np.uint8)
        return np.repeat(luma[..., None], 3, axis=2)

    def rows(self, top: int, bottom: int) -> Tensor:
        return torch.from_numpy(self.pixels(top, bottom)).permute(2, 0, 1)


class PngRows:
    """Writes a PNG from top to bottom: 8 bits, grey or RGB, each row as differences from its left neighbours."""

    def __init__(self, path: Path, height: int, width: int, channels: int, info: PngImagePlugin.PngInfo) -> None:
        self.file: BinaryIO = path.open("wb")
        self.channels, self.packer = channels, zlib.compressobj(PNG_LEVEL)
        self.file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0))
        for kind, data, *_ in info.chunks:
            self._chunk(kind, data)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, pixels: np.ndarray) -> None:
        """The next rows, (n, W) or (n, W, channels) uint8."""
        rows = pixels.reshape(len(pixels), -1)
        coded = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        coded[:, 0] = 1  # filter "Sub"
        coded[:, 1 : 1 + self.channels] = rows[:, : self.channels]
        np.subtract(rows[:, self.channels :], rows[:, : -self.channels], out=coded[:, 1 + self.channels :])
        if packed := self.packer.compress(coded.tobytes()):
            self._chunk(b"IDAT", packed)

    def close(self, finished: bool) -> None:
        if finished:
            self._chunk(b"IDAT", self.packer.flush())
            self._chunk(b"IEND", b"")
        self.file.close()


@dataclass(frozen=True)
class LargeEdit:
    """What became of a picture edited in bands.

    Attributes:
        face_score: how sure it is that there is a face; with less than the verdict asks for, nothing was written.
        size: (height, width), px. notes: for the journal. seconds: spent.
    """

    face_score: float
    size: tuple[int, int]
    notes: dict[str, Any]
    seconds: float


def editor_of(chain: Chain) -> Coogan | None:
    """The editor of a chain that is an editor and nothing else."""
    stages = [stage for _, _, stage in chain.stages]
    whole = chain.opening is None and chain.closing is None and len(stages) == 1
    return stages[0] if whole and isinstance(stages[0], Coogan) else None


def takes(image: Image.Image) -> bool:
    """Whether an opened picture can be edited in bands: plain 8-bit RGB or grey, upright, one frame.

    Raises `ImageError` for damaged data: of a PNG, all of it is read to find its orientation.
    """
    try:
        upright = image.getexif().get(0x0112, 1) in (0, 1)
    except _BROKEN as error:
        raise ImageError("corrupt", f"damaged or cut short: {error}") from error
    return image.mode in _PLAIN_MODES and upright and not image.has_transparency_data


def spill(image: Image.Image, file: BinaryIO) -> FileRows:
    """Decode an opened picture into `file`. Raises `ImageError` for damaged data."""
    try:
        image.load()
    except _BROKEN as error:
        raise ImageError("corrupt", f"damaged or cut short: {error}") from error
    source, spread = FileRows(file, image.height, image.width), 0.0
    for top in range(0, image.height, BAND_ROWS):
        bottom = min(image.height, top + BAND_ROWS)
        band = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGB"))
        spread += float((band.max(-1) - band.min(-1)).sum(dtype=np.float64))
        file.write(band.tobytes())
    file.flush()
    source.grey = spread / (image.height * image.width) < GREY_TOLERANCE
    return source


def edit_picture(
    path: Path,
    image_out: Path,
    invented_out: Path,
    stage: Coogan,
    limits: Limits,
    info: PngImagePlugin.PngInfo,
    least_score: float = 0.5,
) -> LargeEdit | None:
    """Edit a picture file; None where it is not of a kind that can be edited in bands.

    Args:
        path: the picture.
        image_out, invented_out: PNG files to write: the edited picture, and how invented each pixel is.
        stage: the editor. info: text chunks. least_score: of the face; below it nothing is written.

    Raises:
        ImageError: not readable, or outside the limits. OSError: the outputs cannot be written.
    """  # fmt: skip
    started = time.perf_counter()
    with opened(path) as file, tempfile.TemporaryFile(prefix="revisage-edit-") as scratch:
        image = open_header(file, str(path), limits)
        if not takes(image):
            return None
        source = spill(image, scratch)
        image.close()
        del image
        plan = stage.editor.plan(source)
        notes: dict[str, Any] = {"edit": stage.note(plan), "in_bands": True}
        size, score = (source.height, source.width), plan.frame.score
        if score < max(least_score, MIN_FACE_SCORE):
            return LargeEdit(score, size, notes, time.perf_counter() - started)
        writers = [
            PngRows(image_out, *size, 1 if source.grey else 3, info),
            PngRows(invented_out, *size, 1, info),
        ]
        finished = False
        try:
            for _, rows, invented in stage.editor.run(source, plan):
                pixels = to_uint8(rows.permute(1, 2, 0).numpy())
                if source.grey:
                    pixels = to_uint8((rows * torch.tensor(LUMA)[:, None, None]).sum(0).numpy())
                writers[0].write(pixels)
                writers[1].write(to_uint8(invented[0].numpy()))
            finished = True
        finally:
            for writer in writers:
                writer.close(finished)
    return LargeEdit(score, size, notes, time.perf_counter() - started)
