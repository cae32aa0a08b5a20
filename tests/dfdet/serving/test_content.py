"""What a file is, and how large it becomes, is read from its first bytes as the decoders read it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dfdet.serving.content import check_image, image_size, kind_of
from dfdet.serving.refused import RefusedError


def image(form: str, size: tuple[int, int] = (31, 17), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


def animation(form: str) -> bytes:
    frames = [Image.effect_noise((31, 17), 50 + i).convert("RGB") for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        image("JPEG"),
        image("JPEG", progressive=True, exif=Image.Exif()),
        image("JPEG", icc_profile=bytes(70_000)),
        image("PNG"),
        image("WEBP"),
        image("WEBP", lossless=True),
        image("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
        animation("WEBP"),
        animation("PNG"),
    ],
)
def test_the_size_is_that_which_pillow_tells(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as opened:
        assert image_size(data) == opened.size == (31, 17)
    assert kind_of(data) == "image"


def png_of(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def webp_of(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + canvas


def jpeg_of(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda"


@pytest.mark.parametrize("data", [png_of(65535, 65535), webp_of(16384, 16384), jpeg_of(65500, 65500)])
def test_a_promise_of_too_many_pixels_is_refused_before_it_is_kept(data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        check_image(data, 40_000_000)
    assert (refused.value.status, refused.value.code) == (413, "too_many_pixels")


def test_of_several_frames_of_a_jpeg_the_largest_counts() -> None:
    both = jpeg_of(8, 8).removesuffix(b"\xff\xda") + jpeg_of(9000, 9000)[2:]
    assert image_size(both) == (9000, 9000)


@pytest.mark.parametrize("cut", range(3, 30, 3))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_cut_header_is_no_size(form: str, cut: int) -> None:
    data = image(form)[:12] + image(form)[12 : 12 + cut]
    try:
        image_size(data)
    except (ValueError, IndexError, struct.error):
        with pytest.raises(RefusedError, match="undecodable"):
            check_image(data, 1 << 40)
    else:
        assert image_size(data) == (31, 17)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(20),
        b"BM" + bytes(50),
        b"%PDF-1.7",
        b"<html>",
        b"RIFF\0\0\0\0WAVEfmt ",
        bytes(99),
    ],
)
def test_other_types_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        kind_of(data)
    assert (refused.value.status, refused.value.code) == (415, "unknown_type")


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x20ftypisom", b"\x1a\x45\xdf\xa3\x01\0\0\0", b"RIFF\0\0\0\0AVI LIST"]
)
def test_videos_are_known_by_their_content(head: bytes) -> None:
    assert kind_of(head) == "video"


def test_noise_is_neither_size_nor_crash() -> None:
    rng = np.random.default_rng(0)
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBPVP8X"):
        for _ in range(200):
            data = start + rng.bytes(int(rng.integers(0, 80)))
            try:
                check_image(data, 1 << 62)
            except RefusedError as refused:
                assert refused.status == 400
