"""Draws a contact sheet: titled rows of faces with landmarks, box and a caption each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE_PX = 176
"""Side of a face on the sheet (pixels)."""
_GAP, _LINE, _TEXT_PX = 8, 17, 13
_POINT_COLOURS = ("#ff4040", "#40ff40", "#40a0ff", "#ffd040", "#ff60ff")
"""Image-left eye, image-right eye, nose, image-left and image-right mouth corner."""
_BACK, _INK, _PALE, _GREY, _BOX = "#181818", "#f0f0f0", "#a0a0a0", "#808080", "#ffffff"


@dataclass(frozen=True)
class Tile:
    """One face of the sheet."""

    caption: tuple[str, ...]
    """Lines below it."""
    image: NDArray[np.uint8] | None
    """RGB [H, W, 3]; None shows a grey tile."""
    landmarks: tuple[tuple[float, float], ...] = ()
    """Points in pixels of the image."""
    box: tuple[float, float, float, float] | None = None
    problem: str = ""
    """Why there is no image, or what is wrong with it."""


@dataclass(frozen=True)
class Strip:
    """Faces in a row."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Block:
    """Rows under a heading, and lines of text."""

    heading: str
    strips: tuple[Strip, ...] = ()
    lines: tuple[str, ...] = ()


def draw_sheet(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes the sheet as a PNG, in place of a former one."""
    columns = max((len(strip.tiles) for block in blocks for strip in block.strips), default=1)
    width = max(4, columns) * (TILE_PX + _GAP) + _GAP
    canvas = Image.new("RGB", (width, _GAP + 2 * _LINE + sum(map(_block_height, blocks))), _BACK)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), _fitted(title, width), _INK, _font(_TEXT_PX + 2))
    top = _GAP + 2 * _LINE
    for block in blocks:
        _draw_block(canvas, draw, block, top)
        top += _block_height(block)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, "PNG")


def _block_height(block: Block) -> int:
    return 2 * _LINE + sum(map(_strip_height, block.strips)) + len(block.lines) * _LINE + _GAP


def _strip_height(strip: Strip) -> int:
    captions = max((len(tile.caption) for tile in strip.tiles), default=0)
    return _LINE + TILE_PX + captions * _LINE + _GAP


def _draw_block(canvas: Image.Image, draw: ImageDraw.ImageDraw, block: Block, top: int) -> None:
    draw.line((_GAP, top, canvas.width - _GAP, top), _GREY)
    draw.text((_GAP, top + 4), _fitted(block.heading, canvas.width), _INK, _font(_TEXT_PX + 1))
    top += 2 * _LINE
    for strip in block.strips:
        draw.text((_GAP, top), _fitted(strip.title, canvas.width), _PALE, _font(_TEXT_PX))
        for column, tile in enumerate(strip.tiles):
            _draw_tile(canvas, draw, tile, _GAP + column * (TILE_PX + _GAP), top + _LINE)
        top += _strip_height(strip)
    for line in block.lines:
        draw.text((_GAP, top), _fitted(line, canvas.width), _INK, _font(_TEXT_PX))
        top += _LINE


def _draw_tile(canvas: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    canvas.paste(_picture(tile), (left, top))
    for number, line in enumerate(tile.caption):
        at = (left, top + TILE_PX + 1 + number * _LINE)
        draw.text(at, _fitted(line, TILE_PX + _GAP), _INK, _font(_TEXT_PX))


def _picture(tile: Tile) -> Image.Image:
    """The tile [TILE_PX, TILE_PX] with its marks."""
    picture = Image.new("RGB", (TILE_PX, TILE_PX), _GREY)
    draw = ImageDraw.Draw(picture)
    if tile.image is not None:
        height, width = tile.image.shape[:2]
        zoom = TILE_PX / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        picture.paste(Image.fromarray(tile.image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
        _mark(draw, tile, zoom)
    for number, line in enumerate(_wrapped(tile.problem)):
        draw.text((6, 6 + number * _LINE), line, _INK, _font(_TEXT_PX))
    return picture


def _mark(draw: ImageDraw.ImageDraw, tile: Tile, zoom: float) -> None:
    """Box and points; pixel centres of the crop, which are integers, lie half a pixel in."""
    if tile.box is not None:
        x0, y0, x1, y1 = ((side + 0.5) * zoom for side in tile.box)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=_BOX)
    for (x, y), colour in zip(tile.landmarks, _POINT_COLOURS, strict=False):
        draw.circle(((x + 0.5) * zoom, (y + 0.5) * zoom), 2.5, fill=colour, outline="black")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: int) -> str:
    """Cut at its end to about the width (pixels); names in keys are ASCII."""
    font = _font(_TEXT_PX)
    text = text.encode("ascii", "backslashreplace").decode()
    while len(text) > 4 and font.getlength(text) > width - _GAP:
        text = text[: -5 if text.endswith("...") else -2] + "..."
    return text


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 24)[: TILE_PX // _LINE - 1]
