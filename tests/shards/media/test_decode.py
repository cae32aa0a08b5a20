import io
import os

import numpy as np
import pytest
from PIL import Image

from shards.media.decode import (
    Stored,
    UnusableImageError,
    decode_rgb,
    encode,
    read_bytes,
    store_bytes,
    store_image,
)


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def file_bytes(image: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("ext", ["webp", "png"])
def test_lossless_formats_keep_every_pixel(ext):
    assert np.array_equal(opened(encode(picture(), ext)), picture())


def test_jpeg_keeps_full_chroma():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2] = (255, 0, 0)
    stored = Image.open(io.BytesIO(encode(image, "jpg", 95)))
    assert [layer[1:3] for layer in stored.layer] == [(1, 1)] * 3
    assert np.abs(np.asarray(stored).astype(int) - image).max() < 16


def test_jpeg_quality_is_heeded():
    assert len(encode(picture(), "jpg", 50)) < len(encode(picture(), "jpg", 95))


@pytest.mark.parametrize("ext", ["webp", "png", "jpg"])
def test_equal_pixels_give_equal_bytes(ext):
    wide = np.repeat(picture(), 2, axis=1)
    assert encode(wide[:, ::2], ext) == encode(picture(), ext)


def test_stored_bytes_are_those_of_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(file_bytes(picture(), "PNG"))
    data = read_bytes(tmp_path / "a.png")
    assert store_bytes(data) == store_image(tmp_path / "a.png") == Stored("png", data, 16, 24)


def test_stored_bytes_are_encoded_where_a_format_is_asked_for():
    stored = store_bytes(file_bytes(picture(), "PNG"), "webp")
    assert stored.ext == "webp" and np.array_equal(opened(stored.data), picture())


def test_rotated_images_are_decoded_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn clockwise shows it upright.
    image = decode_rgb(file_bytes(picture(), "PNG", exif=exif))
    assert np.array_equal(image, np.rot90(picture(), -1))


def test_grey_16_bit_and_transparent_images_are_decoded_to_rgb():
    grey = picture()[..., 0]
    assert np.array_equal(decode_rgb(file_bytes(grey, "PNG")), np.repeat(grey[..., None], 3, axis=2))
    deep = (grey.astype(np.uint16) << 8) + 255
    assert np.array_equal(decode_rgb(file_bytes(deep, "PNG"))[..., 1], grey)
    clear = np.dstack([picture(), np.zeros_like(grey)])
    assert not decode_rgb(file_bytes(clear, "PNG")).any()


@pytest.mark.parametrize("data", [b"", b"no image", file_bytes(picture(), "PNG")[:-40]])
def test_damaged_content_has_a_reason(data):
    for read in (decode_rgb, store_bytes):
        with pytest.raises(UnusableImageError, match=r"does not decode: .+"):
            read(data)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnusableImageError, match="is no regular file"):
        read_bytes(tmp_path / "a.png")
