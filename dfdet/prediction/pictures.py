"""Pictures of a prediction: the faces with their scores, where the evidence lies, boxes in a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dfdet.prediction.records import Box

Pixels = NDArray[np.uint8]
"""RGB [H, W, 3]."""

TILE_PX, COLUMNS = 144, 8
_GAP, _TEXT_PX = 8, 15
_BACK, _INK, _PALE = "#16181c", "#f2f2f2", "#9aa0a8"
_REAL, _MIDDLE, _FAKE = (76, 175, 120), (230, 190, 70), (226, 76, 66)
_STRONGEST = 0.75
"""Opacity of the strongest evidence."""


@dataclass(frozen=True)
class Tile:
    """A face on the sheet."""

    image: Pixels
    score: float
    """Gives the colour of the border (0 to 1)."""
    caption: str
    heat: NDArray[np.float32] | None = None
    """Evidence [h, w] over the image; shown below the face."""


@dataclass(frozen=True)
class Marked:
    """A box in a frame."""

    box: Box
    score: float
    label: str = ""
    sure: bool = True
    """Drawn bold; else the place is a guess between two frames."""


def contact_sheet(
    path: Path, heading: str, lines: Sequence[str], frame: Pixels | None, tiles: Sequence[Tile]
) -> None:
    """Writes a PNG: what was said of a file, a frame of it, and its faces with their scores.

    Args:
        path: Where to.
        heading: First line.
        lines: More lines.
        frame: A frame with its boxes, if there is any.
        tiles: Faces; evidence is drawn on one scale for all of them.
    """
    peak = max((float(np.abs(tile.heat).max()) for tile in tiles if tile.heat is not None), default=0.0)
    cells = [_cell(tile, peak) for tile in tiles]
    columns = min(COLUMNS, max(4, len(cells)))
    width = _GAP + columns * (TILE_PX + _GAP)
    shown = None if frame is None else _fitted(frame, width - 2 * _GAP, 360)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    top = _GAP + (_TEXT_PX + 6) * (1 + len(lines)) + _GAP
    height = top + (shown.height + _GAP if shown else 0) + sum(row[0].height + _GAP for row in rows)
    sheet = Image.new("RGB", (width, height), _BACK)
    _write(sheet, heading, lines, width)
    if shown:
        sheet.paste(shown, (_GAP, top))
        top += shown.height + _GAP
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (TILE_PX + _GAP), top))
        top += row[0].height + _GAP
    sheet.save(path, "PNG")


def overlay(image: Pixels, heat: NDArray[np.float32], peak: float | None = None) -> Pixels:
    """An image in grey under its evidence: red speaks for fake, blue for real.

    Args:
        image: A face, [H, W, 3].
        heat: Evidence [h, w], which lies over all of it.
        peak: Evidence that is drawn strongest; None: the map's own.
    """
    height, width = image.shape[:2]
    peak = float(np.abs(heat).max()) if peak is None else peak
    smooth = Image.fromarray(heat.astype(np.float32), mode="F").resize(
        (width, height), Image.Resampling.BICUBIC
    )
    strength = np.clip(np.asarray(smooth) / (peak or 1.0), -1, 1)[..., None]
    colour = np.where(strength > 0, np.array([255.0, 40, 20]), np.array([40.0, 110, 255]))
    grey = image @ np.array([0.299, 0.587, 0.114])
    opacity = np.abs(strength) * _STRONGEST
    return (grey[..., None] * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def annotated(frame: Pixels, marks: Sequence[Marked], line: str = "") -> Pixels:
    """A frame with boxes in the colour of their scores, and a line of text at its foot."""
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    thick = max(1, round(max(picture.size) / 320))
    size = max(_TEXT_PX, round(max(picture.size) / 45))
    for mark in marks:
        colour = _colour(mark.score)
        x0, y0, x1, y1 = mark.box
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(box, outline=colour, width=thick * 2 if mark.sure else thick)
        _label(draw, (box[0], box[1] - size - 4), mark.label, colour, size)
    _label(draw, (4, picture.height - size - 8), line, (0, 0, 0), size)
    return np.asarray(picture)


def _cell(tile: Tile, peak: float) -> Image.Image:
    """A face in its border, its caption, and its evidence if it has any."""
    height = TILE_PX + _TEXT_PX + 6
    heat = tile.heat
    cell = Image.new("RGB", (TILE_PX, height + (TILE_PX if heat is not None else 0)), _BACK)
    cell.paste(_square(tile.image), (0, 0))
    colour = _colour(tile.score)
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, TILE_PX - 1, TILE_PX - 1), outline=colour, width=3)
    draw.text((2, TILE_PX + 2), _plain(tile.caption), colour, _font(_TEXT_PX - 2))
    if heat is not None:
        cell.paste(_square(overlay(tile.image, heat, peak)), (0, height))
    return cell


def _square(image: Pixels) -> Image.Image:
    return _fitted(image, TILE_PX, TILE_PX, enlarge=True)


def _fitted(image: Pixels, width: int, height: int, *, enlarge: bool = False) -> Image.Image:
    ratio = min(width / image.shape[1], height / image.shape[0])
    ratio = ratio if enlarge else min(1.0, ratio)
    size = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _write(sheet: Image.Image, heading: str, lines: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate([heading, *lines]):
        font = _font(_TEXT_PX + 2 if number == 0 else _TEXT_PX - 2)
        text = _plain(line)
        while len(text) > 4 and font.getlength(text) > width - 2 * _GAP:
            text = text[: -5 if text.endswith("...") else -2] + "..."
        draw.text((_GAP, _GAP + number * (_TEXT_PX + 6)), text, _PALE if number else _INK, font)


def _label(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, back: tuple[int, int, int], size: int
) -> None:
    if text:
        place, font = (max(0.0, at[0]), max(0.0, at[1])), _font(size)
        draw.rectangle(draw.textbbox(place, _plain(text), font), fill=back)
        draw.text(place, _plain(text), "white" if sum(back) < 240 else "black", font)


def _colour(score: float) -> tuple[int, int, int]:
    """Green at 0, yellow at .5, red at 1."""
    low, high, share = (_REAL, _MIDDLE, 2 * score) if score < 0.5 else (_MIDDLE, _FAKE, 2 * score - 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """What the built-in font can show."""
    return "".join(char if " " <= char <= "~" else ascii(char)[1:-1] for char in text)
