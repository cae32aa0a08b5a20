"""Results on the disk: whole lines, going on, refusing what does not belong together."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from dfdet.errors import InputError
from dfdet.prediction.records import LINES, TABLE, Face, Folder, Frame, Prediction, claimed
from dfdet.schema import CropRecipe

OPTIONS = {"model": "m", "frames": 4}


def record(path: str, score: float | None = 0.25, **more) -> Prediction:
    frame = Frame(face=0, frame=3, time_s=0.12, box=(1, 2, 3, 4), score=0.25, logit=-1.1)
    face = Face(face=0, frames=1, score=0.25, probability=None, verdict="real")
    values = {
        "kind": "video",
        "bytes": 10,
        "modified_ns": 5,
        "status": "ok" if score is not None else "damaged",
        "score": score,
        "aggregate": "mean",
        "threshold": None,
        "threshold_origin": "none",
        "temperature": None,
        "checkpoint": "c",
        "fingerprint": "f",
        "crop": CropRecipe(template="gend", scale=1.6),
        "crop_scale": 1.3,
        "faces": (face,) if score is not None else (),
        "frames": (frame,) if score is not None else (),
    }
    return Prediction(path=path, **(values | more))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LINES).read_text().splitlines()]


def test_results_are_there_line_by_line_before_the_end(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out", OPTIONS)
    folder.add(record("/b"))
    assert [each["path"] for each in lines(tmp_path / "out")] == ["/b"]


def test_a_line_gives_the_record_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path, OPTIONS)
    given = record("/ü\n", reason='a "reason", with\nbreaks')
    folder.add(given)
    assert Folder(tmp_path, OPTIONS).done == {"/ü\n": given}


def test_the_end_puts_lines_and_table_into_the_order_of_the_input(tmp_path: Path) -> None:
    folder = Folder(tmp_path, OPTIONS)
    for path in ("/c", "/a", "/b"):
        folder.add(record(path))
    assert [each.path for each in folder.close(["/a", "/b"])] == ["/a", "/b"]
    assert [each["path"] for each in lines(tmp_path)] == ["/a", "/b", "/c"]
    with (tmp_path / TABLE).open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["/a", "/b", "/c"]


def test_the_table_keeps_every_digit_and_leaves_what_is_unknown_empty(tmp_path: Path) -> None:
    folder = Folder(tmp_path, OPTIONS)
    folder.add(record("/a", 0.1234567890123456))
    folder.add(record("/b", None, reason="is empty"))
    folder.close(["/a", "/b"])
    with (tmp_path / TABLE).open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (float(first["score"]), first["frames"], first["verdict"]) == (0.1234567890123456, "1", "")
    assert (second["status"], second["score"], second["reason"]) == ("damaged", "", "is empty")


def test_a_line_cut_short_by_a_kill_is_made_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path, OPTIONS)
    folder.add(record("/a"))
    with (tmp_path / LINES).open("a") as file:
        file.write('{"path": "/b", "ki')
    again = Folder(tmp_path, OPTIONS)
    assert list(again.done) == ["/a"]
    again.add(record("/b"))
    assert [each["path"] for each in lines(tmp_path)] == ["/a", "/b"]


@pytest.mark.parametrize(("size", "modified", "holds"), [(10, 5, True), (11, 5, False), (10, 6, False)])
def test_a_result_holds_while_the_file_is_the_same(
    tmp_path: Path, size: int, modified: int, holds: bool
) -> None:
    folder = Folder(tmp_path, OPTIONS)
    folder.add(record("/a"))
    assert folder.has("/a", size, modified) is holds
    assert not folder.has("/other", size, modified)


@pytest.mark.parametrize("other", [{"model": "n", "frames": 4}, {"model": "m"}, OPTIONS | {"new": 1}])
def test_results_of_other_options_are_refused(tmp_path: Path, other: dict) -> None:
    Folder(tmp_path, OPTIONS)
    with pytest.raises(InputError, match=r"holds results of .* give another folder"):
        Folder(tmp_path, other)


def test_lines_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / LINES).write_text("{}\n")
    with pytest.raises(InputError, match=r"without options\.json"):
        Folder(tmp_path, OPTIONS)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Folder(tmp_path / "out", OPTIONS)
    with pytest.raises(InputError, match="cannot be written"), claimed(tmp_path / "out"):
        pass


def test_a_folder_in_use_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        told = rf"^--out \S+/out: in use by process {os.getpid()} on .* or give another --out$"
        with pytest.raises(InputError, match=told), claimed(tmp_path / "out"):
            pass
    with claimed(tmp_path / "out"):
        assert (tmp_path / "out" / "owner.json").exists()
