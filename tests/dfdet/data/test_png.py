from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from isal import isal_zlib
from PIL import Image

from dfdet.data.decode import decode
from dfdet.data.png import with_stored_pixels
from dfdet.data.reader import DamageError
from tests.dfdet.data.pictures import encode, picture

RGB = picture(1, 150, 200)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(raw: bytes, width: int, height: int, colour: int = 2, interlace: int = 0, parts: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
    packed = zlib.compress(raw)
    cuts = [len(packed) * part // parts for part in range(parts + 1)]
    body = b"".join(chunk(b"IDAT", packed[a:b]) for a, b in itertools.pairwise(cuts))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def rows(image: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in image)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("side", [1, 2, 147, 148, 300])
def test_stored_pixels_are_the_same_png_to_pillow_and_to_us(side):
    data = encode(picture(0, side, side))
    stored = with_stored_pixels(data)
    assert stored != data and len(stored) > side * (3 * side + 1)
    assert (pillow(stored) == pillow(data)).all() and (decode(data) == pillow(data)).all()


def test_image_data_in_several_chunks_is_put_together():
    data = png(rows(RGB), 150, 200, parts=5)
    assert with_stored_pixels(data) != data
    assert (decode(data) == RGB).all()


def test_other_chunks_stay():
    data = encode(RGB)
    data = data[:-12] + chunk(b"tEXt", b"Title\0face") + data[-12:]
    assert Image.open(io.BytesIO(with_stored_pixels(data))).text == {"Title": "face"}


@pytest.mark.parametrize(
    "data",
    [
        encode(RGB[..., 0]),
        encode(np.dstack([RGB, RGB[..., 0]])),
        png(rows(RGB), 150, 200, interlace=1),
        png(rows(RGB) + b"more", 150, 200),
        png(rows(RGB)[:-1], 150, 200),
        encode(RGB)[:300],
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["grey", "alpha", "interlaced", "too much", "too little", "cut", "empty"],
)
def test_the_unusual_is_left_alone(data):
    assert with_stored_pixels(data) is data


def test_a_bomb_is_not_inflated_past_the_size_in_its_header(monkeypatch):
    data = png(bytes(50_000_000), 4, 4)
    asked = []
    inflate = isal_zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self.inner = inflate()

        def decompress(self, packed: bytes, most: int) -> bytes:
            out = self.inner.decompress(packed, most)
            asked.append(len(out))
            return out

    monkeypatch.setattr(isal_zlib, "decompressobj", Watched)
    assert with_stored_pixels(data) is data
    assert asked == [4 * 13 + 1]


def test_a_wrong_checksum_of_the_pixels_is_damage():
    data = bytearray(png(rows(RGB), 150, 200))
    end = data.index(b"IEND") - 8
    data[end - 1] ^= 1  # last byte of Adler-32
    start = data.index(b"IDAT")
    data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start:end]))
    with pytest.raises(DamageError):
        decode(bytes(data))
