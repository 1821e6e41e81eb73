"""Edit one large picture in the memory of a small one: decoded once into a scratch file, edited and written in bands.

The scratch file is read by rows and never mapped, so what the process holds is the network's patch and a band of rows.
Only decoding holds the whole picture, in Pillow's four bytes a pixel, and is over before the networks run.
"""

import ctypes
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from pipeline.chain import Chain
from pipeline.images import (
    BROKEN,
    GREY_TOLERANCE,
    PNG_LEVEL,
    TURNS,
    ImageError,
    Limits,
    is_deep,
    load,
    make_grey,
    open_header,
    opened,
    to_rgb,
    to_uint8,
)  # fmt: skip
from stages.coogan import Coogan
from stages.luma import luma

BAND_ROWS = 64  # rows converted and analysed at a time
FREED_BYTES = 4 << 20
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


class PixelFile:
    """Raw bytes of a picture in a scratch file, (height, width, channels) uint8, read by rows and written anywhere."""

    def __init__(self, file: IO[bytes], height: int, width: int, channels: int) -> None:
        self.file, self.height, self.width, self.channels = file, height, width, channels

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, width, channels) uint8."""
        self.file.seek(top * self.width * self.channels)
        pixels = np.fromfile(self.file, np.uint8, (bottom - top) * self.width * self.channels)
        return pixels.reshape(bottom - top, self.width, self.channels)

    def put(self, top: int, left: int, pixels: np.ndarray) -> None:
        """Write (h, w, channels) uint8 with its first pixel at (left, top)."""
        for row, line in enumerate(pixels, top):
            self.file.seek((row * self.width + left) * self.channels)
            self.file.write(line.tobytes())
        self.file.flush()


class FileRows(PixelFile):
    """An RGB picture in a scratch file, as `stages.coogan.RowSource`.

    Attributes: height, width, px; grey: whether it has no colour; notes: what was done to it on the way; lumas: (256,)
    how many pixels have each luma.
    """

    def __init__(self, file: IO[bytes], height: int, width: int) -> None:
        super().__init__(file, height, width, 3)
        self.grey, self.notes = False, dict[str, Any]()
        self.lumas = np.zeros(256, np.int64)

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        pixels = super().pixels(top, bottom)
        return make_grey(pixels) if self.grey else pixels

    def rows(self, top: int, bottom: int) -> Tensor:
        return torch.from_numpy(self.pixels(top, bottom)).permute(2, 0, 1)


class PngRows:
    """Writes a PNG from top to bottom: 8 bits, grey or RGB, each row as differences from its left neighbours."""

    def __init__(self, path: Path, height: int, width: int, channels: int, info: PngImagePlugin.PngInfo) -> None:
        self.file: IO[bytes] = path.open("wb")
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


def write_png(path: Path, source: PixelFile, channels: int, info: PngImagePlugin.PngInfo) -> None:
    """Write the first `channels` channels of a scratch file as a PNG; a failed write leaves it without its end."""
    writer, finished = PngRows(path, source.height, source.width, channels, info), False
    try:
        for top in range(0, source.height, BAND_ROWS):
            writer.write(source.pixels(top, min(source.height, top + BAND_ROWS))[..., :channels])
        finished = True
    finally:
        writer.close(finished)


@dataclass(frozen=True)
class LargeEdit:
    """What became of a picture edited in bands.

    Attributes:
        face_score: how sure it is that there is a face. size: (height, width), px. notes: for the journal.
        brightness: as `pipeline.restorer.brightness` of the input. uncertainty: mean over the pixels, 0 to 1.
        unedited, likeness: as of `stages.coogan.EditPlan`. seconds: spent until the edit was there.
    """

    face_score: float
    size: tuple[int, int]
    notes: dict[str, Any]
    brightness: float
    uncertainty: float
    unedited: bool
    likeness: float
    seconds: float


def editor_of(chain: Chain) -> Coogan | None:
    """The editor of a chain that is an editor and nothing else."""
    stages = [stage for _, _, stage in chain.stages]
    whole = chain.opening is None and chain.closing is None and len(stages) == 1
    return stages[0] if whole and isinstance(stages[0], Coogan) else None


def takes(image: Image.Image) -> bool:
    """Whether an opened picture can be edited in bands: all kinds but those of 16 bits, which 8 bits would spoil."""
    return not (image.mode.startswith("I") or is_deep(image))


@cache
def _give_back_freed_memory() -> None:
    """Make glibc, for the rest of the process, return freed blocks of `FREED_BYTES` or more at once.

    It would keep them once the first were freed, and what is left between them grows from patch to patch.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, FREED_BYTES)


def _scratch() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="revisage-edit-")


def _pixels(image: Tensor) -> np.ndarray:
    """(C, h, w) in [0, 1] as (h, w, C) uint8."""
    return to_uint8(image.permute(1, 2, 0).numpy())


def _upright(image: Image.Image, orientation: int, top: int, bottom: int) -> Image.Image:
    """Rows `top` to `bottom` of the upright picture: of one that lies on its side, columns of what was decoded."""
    on_side = orientation > 4
    if orientation in (3, 4, 7, 8):  # counted from the other end
        length = image.width if on_side else image.height
        top, bottom = length - bottom, length - top
    band = image.crop((top, 0, bottom, image.height) if on_side else (0, top, image.width, bottom))
    return band.transpose(TURNS[orientation]) if orientation in TURNS else band


def _percentile(counts: np.ndarray, percent: float) -> float:
    """Of values 0 to 255 that occur `counts` times, as `numpy.percentile` gives it."""
    ends = counts.cumsum()
    place = percent / 100 * (ends[-1] - 1)
    below, above = np.searchsorted(ends, [np.floor(place), np.ceil(place)], side="right")
    return float(below + (above - below) * (place % 1))


def spill(image: Image.Image, file: IO[bytes]) -> FileRows:
    """Decode an opened picture into `file`, as `pipeline.images.decode` would: upright, RGB, alpha over mid-grey.

    Raises:
        ImageError: damaged data, or a pixel type we do not take.
    """
    notes: dict[str, Any] = {}
    orientation, spread = load(image, notes), 0.0
    size = image.size if orientation > 4 else image.size[::-1]
    source = FileRows(file, *size)
    for top in range(0, source.height, BAND_ROWS):
        part = _upright(image, orientation, top, min(source.height, top + BAND_ROWS))
        try:
            band = to_rgb(part, notes)
        except BROKEN as error:
            raise ImageError("corrupt", f"damaged: {error}") from error
        spread += float((band.max(-1) - band.min(-1)).sum(dtype=np.float64))
        source.lumas += np.bincount(make_grey(band)[..., 0].ravel(), minlength=256)
        file.write(band.tobytes())
    file.flush()
    source.grey = spread / (source.height * source.width) < GREY_TOLERANCE
    source.notes = notes
    return source


def reduced(path: Path, limits: Limits, longest: int) -> np.ndarray | None:
    """A picture file averaged, where it is larger, to `longest` px a side or less, (h, w, 3) uint8; in bands as well.

    None where it is not of a kind that can be read in bands. Raises `ImageError`.
    """
    with opened(path) as file, _scratch() as scratch:
        image = open_header(file, str(path), limits)
        if not takes(image):
            return None
        source = spill(image, scratch)
        share = -(-max(source.height, source.width) // longest)
        step = share * BAND_ROWS
        parts = []
        for top in range(0, source.height, step):
            band = Image.fromarray(source.pixels(top, min(source.height, top + step)))
            parts.append(np.asarray(band.reduce(share)))
        return np.concatenate(parts)


def edit_picture(
    path: Path,
    image_out: Path,
    invented_out: Path,
    stage: Coogan,
    limits: Limits,
    text_of: Callable[[LargeEdit], PngImagePlugin.PngInfo],
    least_score: float = 0.5,
) -> LargeEdit | None:
    """Edit a picture file; None where it is not of a kind that can be edited in bands.

    Args:
        path: the picture.
        image_out, invented_out: PNG files to write: the edited picture, and how invented each pixel is.
        stage: the editor. text_of: text chunks of both. least_score: of the face; below it nothing is written.

    Raises:
        ImageError: not readable, or outside the limits. OSError: the outputs cannot be written.
    """  # fmt: skip
    started = time.perf_counter()
    _give_back_freed_memory()
    with opened(path) as file, _scratch() as scratch, _scratch() as map_scratch:
        image = open_header(file, str(path), limits)
        if not takes(image):
            return None
        source = spill(image, scratch)
        image.close()
        del image
        plan = stage.editor.plan(source)
        notes = source.notes | {"edit": stage.note(plan), "in_bands": True}
        size, light = (source.height, source.width), _percentile(source.lumas, 90) / 255
        share, invented = PixelFile(map_scratch, *size, 1), 0.0
        found = plan.frame.score >= least_score
        for block in stage.editor.run(source, plan) if found else ():
            edited = luma(block.image[None])[0] if source.grey else block.image
            source.put(block.top, block.left, _pixels(edited))  # over what is not read again
            share.put(block.top, block.left, _pixels(block.invented))
            invented += float(block.invented.sum(dtype=torch.float64))
        edit = LargeEdit(
            plan.frame.score, size, notes, light, invented / (size[0] * size[1]), plan.unedited,
            plan.likeness, time.perf_counter() - started,
        )  # fmt: skip
        if found:
            text = text_of(edit)
            write_png(image_out, source, 1 if source.grey else 3, text)
            write_png(invented_out, share, 1, text)
    return edit
