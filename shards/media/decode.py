"""Any image file -> bytes that a set may hold: an upright 8-bit RGB image as JPEG, PNG or WebP."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.media.reach import check_reach

StoreFormat = Literal["keep", "webp", "png", "jpg"]

MAX_PIXELS = 64_000_000
"""A face crop is far smaller; above it lie scans and decompression bombs."""
MAX_FILE_BYTES = 256 << 20

_READERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ORIENTATION = 0x0112


class UnusableImageError(Exception):
    """An image file that cannot become a sample; the text is the reason."""


class Stored(NamedTuple):
    """An image as a set holds it: extension, bytes, width and height (pixels)."""

    ext: str
    data: bytes
    width: int
    height: int


def store_image(path: Path, store: StoreFormat = "keep", quality: int = 95) -> Stored:
    """Reads an image file, proves that it decodes, and makes it storable.

    ``keep`` takes plain 8-bit RGB JPEG, PNG and WebP byte for byte, and turns all else (grey,
    palette, CMYK, 16 bits, transparency over black, EXIF-rotated, the first frame of an animation)
    into lossless WebP. The other formats encode every image alike.

    Args:
        path: A file; symbolic links are the caller's business.
        store: ``webp`` and ``png`` are lossless; ``jpg`` has full chroma resolution.
        quality: Of ``jpg`` (1 to 100).

    Raises:
        UnusableImageError: The file is unreadable, damaged, of no known format, or too large.
    """
    return store_bytes(read_bytes(path), store, quality)


def store_bytes(data: bytes, store: StoreFormat = "keep", quality: int = 95) -> Stored:
    """As :func:`store_image`, of a file's content.

    Raises:
        UnusableImageError: It is damaged, of no known format, or too large.
    """
    with _opened(data) as image:
        if store == "keep" and (ext := _plain_extension(image, data)):
            return Stored(ext, data, *image.size)
        upright = _upright_rgb(image, data)
    ext = "webp" if store == "keep" else store
    return Stored(ext, encode(np.asarray(upright), ext, quality), *upright.size)


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Upright RGB pixels [H, W, 3] of an image file's content.

    Raises:
        UnusableImageError: It is damaged, of no known format, or too large.
    """
    with _opened(data) as image:
        return np.array(_upright_rgb(image, data))


def encode(image: NDArray[np.uint8], ext: str, quality: int = 95) -> bytes:
    """Bytes of an RGB image [H, W, 3]; equal pixels give equal bytes, without any metadata.

    Median over 320-px crops of 13 videos, one thread: WebP 4 ms and 77 KiB (method 1 10 ms and 70 KiB,
    libwebp's defaults 68 ms and 67 KiB, as OpenCV's; all decode alike in 1.2 ms), PNG 10 ms and 100 KiB
    (zlib's level 6 24 ms and 97 KiB), JPEG of quality 95 .5 ms and 28 KiB.

    Args:
        image: Pixels.
        ext: ``webp`` and ``png`` are lossless; ``jpg`` has full chroma resolution.
        quality: Of ``jpg`` (1 to 100).
    """
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    if ext == "webp":
        picture.save(buffer, "WEBP", lossless=True, method=0, quality=20, exact=True)  # Both are effort.
    elif ext == "png":
        picture.save(buffer, "PNG", compress_level=4)
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def probe_size(path: Path) -> tuple[int, int] | None:
    """Width and height (pixels) as the header tells, not yet rotated; None for damaged files."""
    try:
        with Image.open(path, formats=_READERS) as image:
            return image.size
    except Exception:  # noqa: BLE001 - the reason is found, and recorded, when the image is stored.
        return None


def read_bytes(path: Path) -> bytes:
    """Content of an image file.

    Raises:
        UnusableImageError: It is no regular file, cannot be read, or is too large.
        StorageAwayError: It cannot be reached for the moment.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusableImageError("is no regular file")
        size = status.st_size
        if size > MAX_FILE_BYTES:
            raise UnusableImageError(f"file of {size >> 20} MiB exceeds {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        check_reach(path, error)
        raise UnusableImageError(f"cannot be read: {error.strerror}") from error


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """A decoded image; what goes wrong inside becomes its reason."""
    try:
        with Image.open(io.BytesIO(data), formats=_READERS) as image:
            _refuse_large(image)
            image.load()
            yield image
    except UnusableImageError:
        raise
    except Exception as error:
        raise UnusableImageError(f"does not decode: {_one_line(error)}") from error


def _refuse_large(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width}x{height} px exceed {MAX_PIXELS // 10**6} megapixels")


def _plain_extension(image: Image.Image, data: bytes) -> str | None:
    """Extension of an image that every decoder shows alike as 8-bit RGB, else None."""
    plain = (
        image.mode == "RGB"
        and "transparency" not in image.info
        and image.getexif().get(_ORIENTATION, 1) not in range(2, 9)
        and (image.format == "MPO" or getattr(image, "n_frames", 1) == 1)
        and not _is_deep_png(image, data)
    )
    return _KEPT.get(str(image.format)) if plain else None


def _is_deep_png(image: Image.Image, data: bytes) -> bool:
    # Pillow shows 16-bit colour as mode RGB; the depth stands in the header chunk.
    return image.format == "PNG" and data[24] == 16


def _upright_rgb(image: Image.Image, data: bytes) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and _is_deep_png(image, data)):
        image = _from_16_bits(image)
    elif image.mode in {"I", "F"}:
        raise UnusableImageError(
            f"mode {image.mode} (32 bits) has no known range of values; save it with 8 bits"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in upright.info:
        black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        upright = Image.alpha_composite(black, upright.convert("RGBA"))
    return upright.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits, as Pillow reads 16-bit colour; its own conversion of grey clips."""
    grey = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    grey.info.update({key: value for key, value in image.info.items() if key == "exif"})
    if (turned := image.getexif().get(_ORIENTATION)) is not None:
        grey.getexif()[_ORIENTATION] = turned
    return grey


def _one_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known image format"  # Its own text holds an address, another in each run.
    return " ".join(str(error).split())[:200] or type(error).__name__
