from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from dfdet.data.crops import crop_side
from dfdet.data.decode import cut_middle, decode
from dfdet.data.reader import DamageError
from tests.dfdet.data.pictures import encode, picture

RGB = picture(1, 60, 44)
ALPHA = picture(2, 60, 44)[..., 0]


def reference(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def stored(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def kinds() -> dict[str, bytes]:
    rgb, grey = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    return {
        "jpeg": stored(rgb, "JPEG", quality=95),
        "jpeg 444": stored(rgb, "JPEG", quality=90, subsampling=0),
        "jpeg progressive": stored(rgb, "JPEG", progressive=True),
        "jpeg grey": stored(grey, "JPEG"),
        "jpeg rgb": stored(rgb, "JPEG", keep_rgb=True),
        "png": stored(rgb, "PNG"),
        "png alpha": stored(rgba, "PNG"),
        "png grey": stored(grey, "PNG"),
        "png grey alpha": stored(rgba.convert("LA"), "PNG"),
        "png palette": stored(rgb.quantize(32), "PNG", transparency=3),
        "png 1 bit": stored(grey.convert("1"), "PNG"),
        "png 16 bit": cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257 // 2 * 2)[1].tobytes(),
        "webp": stored(rgb, "WEBP", lossless=True),
        "webp lossy": stored(rgb, "WEBP", quality=80),
        "webp alpha": stored(rgba, "WEBP", lossless=True, exact=True),
    }


@pytest.mark.parametrize("kind", kinds())
def test_decoding_is_pillows_to_the_bit(kind):
    image = decode(kinds()[kind])
    assert image.dtype == np.uint8 and image.shape == (44, 60, 3)
    assert (image == reference(kinds()[kind])).all()


def test_cmyk_is_converted_within_a_level():
    data = stored(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    assert abs(decode(data).astype(int) - reference(data)).max() <= 1


def test_16_bit_grey_keeps_the_upper_byte_which_pillow_clips():
    deep = RGB[..., 0].astype(np.uint16) << 8 | 77
    image = decode(cv2.imencode(".png", deep)[1].tobytes())
    assert (image == RGB[..., :1]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = stored(Image.fromarray(RGB), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert (decode(data) == reference(data)).all()
    assert (decode(data, np.empty_like(RGB)) == reference(data)).all()


def test_a_jpeg_is_decoded_into_the_room_it_is_given():
    data, room = stored(Image.fromarray(RGB), "JPEG"), np.empty_like(RGB)
    assert np.shares_memory(decode(data, room), room)
    assert (room == reference(data)).all()


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_other_formats_and_garbage_are_damage(data):
    with pytest.raises(DamageError) as error:
        decode(data)
    assert error.value.reason == "decode"


@pytest.mark.parametrize("ext", ["jpg", "png", "webp"])
def test_a_cut_image_is_damage(ext):
    data = encode(RGB, ext)
    with pytest.raises(DamageError):
        decode(data[: len(data) // 2])


def test_crop_side_is_the_share_of_the_stored_scale_and_never_larger():
    assert crop_side(320, 320, 1.3, 1.6) == 260
    assert crop_side(320, 300, 1.6, 1.6) == 300
    assert crop_side(200, 300, 1.3, np.nan) == 200
    assert crop_side(1, 1, 1.0, 4.0) == 1


def test_cut_middle_takes_the_middle_of_both_sides():
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3)
    assert (cut_middle(image, 10) == image[5:15, 10:20]).all()


def test_a_cut_at_1_3_is_the_direct_crop_at_1_3():
    """A scene of analytic waves, cropped at 1.6 and 320 px, and at 1.3 and 260 px: equal pixels."""

    def crop(scale: float, pixels: int) -> np.ndarray:
        centres = ((np.arange(pixels) + 0.5) / pixels - 0.5) * scale
        x, y = np.meshgrid(centres, centres)
        return np.stack([np.sin(7 * x) * np.cos(5 * y), np.sin(11 * y), np.cos(9 * x)], axis=2)

    cut = cut_middle(crop(1.6, 320), crop_side(320, 320, 1.3, 1.6))
    assert abs(cut - crop(1.3, 260)).max() < 1e-9


def test_orientation_is_found_behind_other_segments_of_a_jpeg():
    exif = Image.Exif()
    exif[0x112] = 6
    data = stored(Image.fromarray(RGB), "JPEG", exif=exif)
    comment = b"\xff\xff\xfe\x00\x06a\xff\xda!"  # padded, and with a scan's mark in it
    data = data[:2] + comment + data[2:]
    assert decode(data).shape == (60, 44, 3)
    assert (decode(data) == reference(data)).all()


def test_orientation_is_found_behind_the_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x112] = 3
    data = stored(Image.fromarray(RGB), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    data = data[:start] + data[stop:-12] + data[start:stop] + data[-12:]
    assert (decode(data) == RGB[::-1, ::-1]).all()
