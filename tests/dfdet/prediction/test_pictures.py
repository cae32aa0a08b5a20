"""Pictures: what is drawn where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dfdet.prediction.film import marks_between, write_film
from dfdet.prediction.pictures import Marked, Tile, annotated, contact_sheet, overlay
from dfdet.prediction.records import Frame

GREY = np.full((64, 64, 3), 128, np.uint8)


def scored(face: int, frame: int, x: float, score: float = 0.5) -> Frame:
    return Frame(face=face, frame=frame, time_s=None, box=(x, 0, x + 10, 10), score=score, logit=0)


def test_evidence_for_fake_is_red_and_for_real_blue() -> None:
    heat = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)
    found = overlay(GREY, heat).astype(int)
    red, blue = found[8, 8], found[56, 56]
    assert red[0] - red[2] > 100
    assert blue[2] - blue[0] > 100


def test_no_evidence_leaves_the_grey_image() -> None:
    assert np.array_equal(overlay(GREY, np.zeros((4, 4), np.float32)), GREY)


def test_evidence_is_drawn_on_the_scale_that_is_given() -> None:
    heat = np.ones((2, 2), np.float32)
    weak = overlay(GREY, heat, peak=10.0).astype(int)
    assert 0 < weak[32, 32, 0] - 128 < 20


def test_a_box_has_the_colour_of_its_score() -> None:
    boxes = [Marked((10, 20, 30, 50), 1.0), Marked((40, 20, 60, 50), 0.0)]
    found = annotated(GREY, boxes).astype(int)
    assert found[35, 10, 0] > found[35, 10, 1] + 50
    assert found[35, 40, 1] > found[35, 40, 0] + 50
    assert np.array_equal(found[35, 20], [128] * 3)


def test_the_sheet_shows_every_face_and_the_frame(tmp_path: Path) -> None:
    white = np.full((50, 50, 3), 255, np.uint8)
    green = np.zeros((90, 160, 3), np.uint8) + np.array([0, 255, 0], np.uint8)
    tiles = [Tile(white, 0.5, f"face {number}") for number in range(11)]
    contact_sheet(tmp_path / "a.png", "ü\n" + "long " * 100, ["line"], green, tiles)
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    whites = (found.min(-1) == 255).sum()
    assert whites > 11 * 130**2
    assert ((found[..., 1] == 255) & (found[..., 0] == 0)).sum() == 90 * 160


def test_heat_adds_a_picture_below_each_face(tmp_path: Path) -> None:
    heat = np.ones((2, 2), np.float32)
    contact_sheet(tmp_path / "plain.png", "", [], None, [Tile(GREY, 0.5, "")])
    contact_sheet(tmp_path / "heat.png", "", [], None, [Tile(GREY, 0.5, "", heat)])
    plain, warm = Image.open(tmp_path / "plain.png"), Image.open(tmp_path / "heat.png")
    assert warm.height - plain.height == 144


def test_a_film_has_every_frame_at_its_rate(tmp_path: Path) -> None:
    import av

    frames = [np.full((49, 65, 3), 20 * number, np.uint8) for number in range(6)]
    write_film(tmp_path / "a.mp4", iter(frames), 12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        levels = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
        assert (stream.width, stream.height, float(stream.average_rate)) == (64, 48, 12.5)
    assert np.allclose(levels, [0, 20, 40, 60, 80, 100], atol=4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_box_moves_from_one_scored_frame_to_the_next_of_the_same_face() -> None:
    at = marks_between([scored(0, 0, 0, 0.1), scored(0, 10, 5, 0.9)], [0, 10])
    assert [(mark.box[0], mark.sure, mark.score) for mark in at(0)] == [(0, True, 0.1)]
    assert [(mark.box[0], mark.sure, mark.score) for mark in at(8)] == [(4, False, 0.9)]
    assert [(mark.box[0], mark.sure, mark.score) for mark in at(10)] == [(5, True, 0.9)]
    assert at(11) == []


def test_no_box_is_drawn_where_the_face_was_not_seen_or_jumped() -> None:
    at = marks_between([scored(0, 0, 0), scored(0, 20, 0), scored(0, 30, 50)], [0, 10, 20, 30])
    assert [len(at(frame)) for frame in (0, 5, 15, 20, 25, 30)] == [1, 0, 0, 1, 0, 1]


def test_faces_are_followed_apart() -> None:
    frames = [scored(0, 0, 0), scored(1, 0, 40), scored(0, 10, 2), scored(1, 10, 44)]
    assert [mark.box[0] for mark in marks_between(frames, [0, 10])(5)] == [1, 42]
