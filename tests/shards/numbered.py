"""Clips whose frames bear their number in their pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from shards.media.priority import without_real_time

BITS, BLOCK = 8, 16
"""The frame's number stands in the first row of blocks, black or white."""


def numbered(number: int, width: int = 144, height: int = 80) -> np.ndarray:
    """A picture that moves, with its number in it."""
    y, x = np.mgrid[:height, :width]
    image = (np.stack([x + 3 * number, y + number, x * y // 16], -1) % 200 + 20).astype(np.uint8)
    for bit in range(BITS):
        image[:BLOCK, BLOCK * bit : BLOCK * (bit + 1)] = 255 * (number >> bit & 1)
    return image


def number_in(image: np.ndarray) -> int:
    blocks = [image[4:12, BLOCK * bit + 4 : BLOCK * bit + 12].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, mean in enumerate(blocks) if mean > 128)


def write(
    path: Path, images, codec="libx264", pix_fmt="yuv420p", times=None, turn=None, format=None, **options
):
    """A clip; options go to the encoder; times are presentation times of the frames at 25 a second."""
    images = list(images)
    movflags = {"movflags": "+faststart"} if path.suffix in {".mp4", ".mov"} else {}
    with av.open(str(path), "w", format=format, options=movflags) as container, without_real_time():
        options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if turn is not None:
            stream.set_display_rotation(**turn)
        for place, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = times[place] if times else place, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
