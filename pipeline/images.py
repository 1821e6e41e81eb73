"""The only reader and the only writer of pictures.

What happens to the kinds of picture: EXIF orientation is applied; CMYK, YCbCr and palettes become RGB; 16-bit grey and
colour are scaled by 1/257 and kept in 16 bits until the network; alpha is laid over mid-grey, for what lies there was
not seen and should look neither dark nor bright; of several frames the first is taken; near-grey pictures (night
infra-red) become exactly grey. Each of these is noted. Profiles (ICC) are not applied.
"""

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from stages.luma import LUMA

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
READ_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"})
# Pictures we do not read: they get an honest line in the journal instead of being passed over in silence.
OTHER_ENDINGS = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd", ".apng"})
IMAGE_ENDINGS = READ_ENDINGS | OTHER_ENDINGS
VIDEO_ENDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf"}
    | {".3gp", ".264", ".h264", ".265", ".h265", ".hevc", ".mjpg", ".mjpeg", ".vob"}
)

MIN_SIDE_PX = 12  # below that no face is in it
MAX_PIXELS = 64_000_000
MAX_ASPECT = 1.5  # of face crops; beyond it, padding to a square would be mostly mirror image
# Mean of (largest - smallest channel), levels of 255. Of 1,800 colour faces (UTKFace, OMI, CelebAMask-HQ, averaged to
# 16 px) none lies between 3.2 (toned prints, infra-red with compression noise) and 7.7 (the palest colour pictures).
GREY_TOLERANCE = 5.0
MID_GREY = 128  # of 255: what lies under transparent pixels
ALPHA_NOTE = "laid over mid-grey"
PNG_LEVEL = 2  # zlib level: 1 ms for 128x128 and within 5 % of the size that the default level reaches
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip  # EXIF orientation -> what makes the picture upright
BITS_PER_SAMPLE, PLANAR_CONFIGURATION, EXTRA_SAMPLES = 258, 284, 338  # tags of TIFF
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
)

ImageStatus = Literal["corrupt", "unsupported", "failed"]


class ImageError(RuntimeError):
    """An input cannot be used.

    `status` is `corrupt` (cannot be decoded), `unsupported` (outside what we take) or `failed` (trouble with the file).
    """

    def __init__(self, status: ImageStatus, message: str) -> None:
        super().__init__(message)
        self.status: ImageStatus = status


# In XMP and in C2PA manifests: IPTC's source types `trainedAlgorithmicMedia` and `compositeWithTrained...`.
_GENERATED = b"rainedAlgorithmicMedia"


@dataclass(frozen=True)
class Limits:
    """What a run accepts.

    Attributes:
        max_pixels: of one picture.
        accepts_px: smallest and largest side of square face crops; None = any picture of `min_side_px` or more.
        measured: refuse pictures that say of themselves that a learned model made them, or a part of them.
    """

    max_pixels: int = MAX_PIXELS
    accepts_px: tuple[int, int] | None = None
    min_side_px: int = MIN_SIDE_PX
    measured: bool = False


@dataclass(frozen=True)
class Picture:
    """A decoded input.

    Attributes:
        pixels: (H, W, 3) RGB; uint8 or uint16 over their full range, or float32 in [0, 1].
        grey: the input is grey, or so near to it that it was made so.
        notes: what was done to it on the way, plain values.
    """

    pixels: np.ndarray
    grey: bool
    notes: dict[str, Any] = field(default_factory=dict)


def as_unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / 65535
    return pixels.astype(np.float32, copy=False)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether an (H, W, 3) picture is grey within the tolerance of compression and camera noise."""
    scale = {"uint8": 1.0, "uint16": 1 / 257}.get(pixels.dtype.name, 255.0)
    red, green, blue = (pixels[..., i].astype(np.float32) for i in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return float(spread.mean()) * scale < GREY_TOLERANCE


def make_grey(pixels: np.ndarray) -> np.ndarray:
    """Three equal channels of ITU-R BT.601 luma, in the type that came in."""
    if np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2]):
        return pixels
    luma = pixels.astype(np.float32) @ np.array(LUMA, np.float32)
    luma = np.rint(luma).astype(pixels.dtype) if pixels.dtype.kind == "u" else luma
    return np.repeat(luma[..., None], 3, axis=2)


def _read_object(url: str, limits: Limits) -> bytes:
    """The whole content of an object in a store. Raises `ImageError`."""
    from pipeline.storage import StorageError, read_url

    try:
        data = read_url(url, limits.max_pixels * 8 + 65536)
    except FileNotFoundError as error:
        raise ImageError("failed", "the object is not there (or vanished during the run)") from error
    except ValueError as error:
        raise ImageError("unsupported", f"no picture of {limits.max_pixels} pixels: {error}") from error
    except StorageError as error:
        raise ImageError("failed", f"cannot be read: {error}") from error
    if not data:
        raise ImageError("corrupt", "the object is empty (0 bytes)")
    return data


def read_bytes(path: str | Path, limits: Limits) -> bytes:
    """The whole content of a regular file, or of an object in a store where `path` is a URL.

    Raises:
        ImageError: gone, a broken link, no regular file, unreadable, empty, or far too large to be a picture we take.
    """
    if "://" in str(path):
        return _read_object(str(path), limits)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > (limit := limits.max_pixels * 8 + 65536):
            raise ImageError(
                "unsupported", f"{size} bytes; no picture of {limits.max_pixels} pixels needs over {limit}"
            )
        return file.read()


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file that is not empty, open for reading.

    Raises:
        ImageError: as `read_bytes`; errors while it is read as well.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImageError("unsupported", "not a regular file")
            if info.st_size == 0:
                raise ImageError("corrupt", "the file is empty (0 bytes)")
            yield file
    except FileNotFoundError as error:
        broken = os.path.islink(path)
        reason = (
            "a symbolic link that leads nowhere" if broken else "the file is not there (or vanished during the run)"
        )
        raise ImageError("unsupported" if broken else "failed", reason) from error
    except IsADirectoryError as error:
        raise ImageError("unsupported", "a folder with the name of a picture") from error
    except OSError as error:
        loop = os.path.islink(path) and not os.path.exists(path)
        reason = "a symbolic link that leads to itself" if loop else f"cannot be read: {error.strerror or error}"
        raise ImageError("unsupported" if loop else "failed", reason) from error


def open_header(data: bytes | BinaryIO, name: str, limits: Limits) -> Image.Image:
    """Parse the header only, of bytes or of an open file, and check the size before anything is decoded.

    Raises:
        ImageError: no picture, a format we do not take, or a size outside the limits.
    """
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("unsupported", f"over the limit of {limits.max_pixels} pixels") from error
    except BROKEN as error:
        if Path(name).suffix.lower() in OTHER_ENDINGS:
            raise ImageError("unsupported", f"format not taken; taken are {', '.join(FORMATS)}") from error
        if Path(name).suffix.lower() in VIDEO_ENDINGS:
            raise ImageError(
                "unsupported", "a video; take a chain that begins with detect, such as configs/video_restore.yaml"
            ) from error
        raise ImageError("corrupt", f"not a readable picture ({', '.join(FORMATS)})") from error
    check_size(image.width, image.height, limits)
    if limits.measured and _GENERATED in (data if isinstance(data, bytes) else _all_of(data)):
        raise ImageError("unsupported", "its marks say that a learned model made it: no input of the forensic profile")
    return image


def _all_of(file: BinaryIO) -> bytes:
    """The content of an open file, which stays where it is."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse sizes outside the limits. Raises `ImageError`."""
    size = f"{width}x{height} px"
    if width * height > limits.max_pixels:
        raise ImageError(
            "unsupported", f"{size} is over the limit of {limits.max_pixels} pixels; raise it with --max-pixels"
        )
    smallest = limits.accepts_px[0] if limits.accepts_px else limits.min_side_px
    if min(width, height) < smallest:
        cure = "; let stages that enlarge it come first, as in configs/restore_edit.yaml"
        needed = f"a face crop needs {smallest} px or more a side{cure if smallest > MIN_SIDE_PX else ''}"
        raise ImageError("unsupported", f"{size}: {needed}")
    if limits.accepts_px is None:
        return
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError("unsupported", f"{size}: longer than 1:{MAX_ASPECT}, no face crop; cut the face out")
    if max(width, height) > limits.accepts_px[1]:
        raise ImageError(
            "unsupported",
            f"{size}: this chain takes face crops of {smallest} to {limits.accepts_px[1]} px a side; cut the face out, "
            'and if it is still larger put a stage "resample" with a smaller size first',
        )


def to_rgb(image: Image.Image, notes: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 of a loaded picture of any mode."""
    mode = image.mode
    if mode not in ("RGB", "L"):
        notes["mode"] = mode
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("unsupported", "32-bit integer pixels beyond 16 bits; save it with 8 or 16 bits")
        return np.repeat(values.astype(np.uint16)[..., None], 3, axis=2)
    if mode in ("F", "LAB", "HSV"):
        raise ImageError("unsupported", f"pixels of mode {mode}; save it as RGB or grey with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            notes["alpha"] = ALPHA_NOTE
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*[MID_GREY] * 3, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def is_deep(image: Image.Image) -> bool:
    """Whether an opened picture, not yet loaded, is in colour with 16 bits a channel: Pillow would keep 8 of them."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16 in image.tag_v2.get(BITS_PER_SAMPLE, ())
    return isinstance(image, PngImagePlugin.PngImageFile) and any(";16" in str(tile.args) for tile in image.tile)


def _deep_rgb(data: bytes, image: Image.Image, orientation: int, notes: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint16, upright, of the file of a 16-bit colour picture, which `load` has found sound."""
    notes["mode"] = f"{image.mode};16"
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    shapes = [(*image.size[::-1], channels) for channels in (3, 4)][image.has_transparency_data :]
    try:  # turned as Pillow does: TIFF, not PNG
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # over a limit of OpenCV's
        values = None
    if values is None or values.dtype != np.uint16 or values.shape not in shapes or tags.get(PLANAR_CONFIGURATION) == 2:
        raise ImageError("unsupported", "16-bit colour in a rare layout; save it as plain RGB with 8 or 16 bits")
    if orientation in TURNS:
        channels = (Image.fromarray(values[..., i]).transpose(TURNS[orientation]) for i in range(values.shape[2]))
        values = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    rgb = values[..., 2::-1]  # of blue, green, red and, perhaps, alpha
    if image.has_transparency_data and values[..., 3].min() < 65535:
        notes["alpha"] = ALPHA_NOTE
        alpha = values[..., 3:] / np.float32(65535)
        seen = rgb if tags.get(EXTRA_SAMPLES) == (1,) else rgb * alpha  # 1: the file holds the product
        rgb = np.rint(seen + 257 * MID_GREY * (1 - alpha)).clip(0, 65535).astype(np.uint16)
    return np.ascontiguousarray(rgb)


def decode(image: Image.Image) -> Picture:
    """Decode what `open_header` opened; a nearly grey picture is made grey.

    Raises:
        ImageError: truncated or damaged data, or a pixel type we do not take.
    """
    return settle_grey(*pixels_of(image))


def pixels_of(image: Image.Image) -> tuple[np.ndarray, dict[str, Any]]:
    """The pixels of what `open_header` opened, (H, W, 3) uint8 or uint16, upright, and what there is to note.

    Raises:
        ImageError: as `decode`.
    """
    notes: dict[str, Any] = {}
    deep = _all_of(image.fp) if is_deep(image) else None  # type: ignore[attr-defined]
    orientation = load(image, notes)
    if deep is not None:
        return _deep_rgb(deep, image, orientation, notes), notes
    try:
        return to_rgb(image.transpose(TURNS[orientation]) if orientation in TURNS else image, notes), notes
    except BROKEN as error:
        raise ImageError("corrupt", f"damaged: {error}") from error


def load(image: Image.Image, notes: dict[str, Any]) -> int:
    """Decode an opened picture as it lies in the file; its EXIF orientation, 1 where it is upright or unreadable.

    Raises:
        ImageError: damaged data.
    """
    try:
        if getattr(image, "n_frames", 1) > 1:
            notes["frames"] = f"first of {image.n_frames}"  # type: ignore[attr-defined]
        image.load()
    except BROKEN as error:
        raise ImageError("corrupt", f"damaged or cut short: {error}") from error
    try:
        orientation = image.getexif().get(0x0112, 1)
        if orientation in TURNS:
            notes["exif_orientation"] = orientation
            return int(orientation)
    except BROKEN:
        notes["exif_orientation"] = "unreadable, not applied"
    return 1


def settle_grey(pixels: np.ndarray, notes: dict[str, Any]) -> Picture:
    """A picture from its pixels, made exactly grey where it is nearly so."""
    grey = is_grey(pixels)
    return Picture(make_grey(pixels) if grey else pixels, grey, notes)


def pad_square(picture: Picture) -> Picture:
    """A picture padded to a square by reflection, the content in the middle.

    Noted: the size before, (height, width), and where it lies now, (x, y)."""
    height, width = picture.pixels.shape[:2]
    side = max(height, width)
    if height == width:
        return picture
    top, left = (side - height) // 2, (side - width) // 2
    margins = ((top, side - height - top), (left, side - width - left), (0, 0))
    notes = picture.notes | {"padded_from_px": [height, width], "padded_offset_px": [left, top]}
    return Picture(np.pad(picture.pixels, margins, mode="symmetric"), picture.grey, notes)


def read_picture(data: bytes, name: str, limits: Limits) -> Picture:
    """Decode a file's bytes; a face crop comes out square.

    Raises:
        ImageError: as its status says.
    """
    picture = decode(open_header(data, name, limits))
    return pad_square(picture) if limits.accepts_px else picture


def read_mask(data: bytes) -> np.ndarray:
    """An occluder mask file (white = covered) as (H, W) float32 in [0, 1]. Raises `ImageError`."""
    return as_unit(make_grey(decode(open_header(data, "mask", Limits(min_side_px=1))).pixels))[..., 0]


def fit_mask(mask: np.ndarray, size: tuple[int, int], square: bool) -> np.ndarray:
    """Bring an (H, W) mask in [0, 1] to the `size` (height, width) of its picture, padded like it where `square`.

    A mask has the shape of its picture, to a pixel; or it is square, and one of the padded picture, as runs save it.

    Raises:
        ImageError: a mask of another shape.
    """
    (rows, columns), (height, width), side = mask.shape, size, max(size)
    padded = rows == columns
    if not padded and abs(rows * width - columns * height) > side:
        raise ImageError(
            "failed",
            f"mask of {columns}x{rows} px: expected the shape of the picture, {width}x{height} px, or of the square "
            "that it is padded to",
        )
    target = (side, side) if padded else (width, height)
    mask = as_unit(np.asarray(Image.fromarray(to_uint8(mask)).resize(target, Image.Resampling.BOX)))
    if square and not padded:
        return pad_square(Picture(np.repeat(mask[..., None], 3, axis=2), True)).pixels[..., 0]
    if padded and not square:
        top, left = (side - height) // 2, (side - width) // 2
        return mask[top : top + height, left : left + width]
    return mask


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Clamp [0, 1] and round to uint8: the only place where that happens."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def encode_png(pixels: np.ndarray, info: PngImagePlugin.PngInfo | None = None) -> bytes:
    """PNG bytes of (H, W) grey or (H, W, 3) RGB uint8 pixels. Equal pixels and text give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=PNG_LEVEL, pnginfo=info)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pixels_sha256(pixels: np.ndarray) -> str:
    """SHA-256 of an array's shape and values, in hexadecimal."""
    return sha256(repr(pixels.shape).encode() + pixels.tobytes())


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file of any size. Raises `ImageError` as `read_bytes`."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
