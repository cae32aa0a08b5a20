import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dfdet.errors import InputError
from dfdet.schema import Candidate, CropRecipe, Failure, Sample, Shortfall
from shards.inspection.gallery import blocks
from shards.inspection.inspect import Inspect, inspect_set
from shards.inspection.sheet import TILE_PX, Block, Strip, Tile, draw_sheet
from shards.sets.read import SetReader
from shards.sets.write import ShardWriter

SIDE = 32
FIVE = ((10.0, 12.0), (22.0, 12.0), (16.0, 17.0), (11.0, 22.0), (21.0, 22.0))
FACE = Candidate(box=(0, 0, 9, 9), score=0.5)


def sample(source, video, frame, *, group, score=0.9, faces=1, split="train"):
    return Sample(
        dataset="d", source=source, label=int(source != "real"), video=video, frame=frame, group=group,
        group_level="exact" if group else "none", landmarks=FIVE, box=(6, 5, 26, 28), score=score,
        candidates=(FACE,) * faces, split=split,
    )  # fmt: skip


def item(each, colour):
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(buffer, "png")
    return (each, "png", buffer.getvalue(), SIDE, SIDE)


def write(folder, groups, **kept):
    with ShardWriter(folder, "set", dataset="d", split="all", crop=CropRecipe(), **kept) as writer:
        for items in groups:
            writer.add_group(items)
        writer.add_shortfall(
            Shortfall(video="d/real/v0", label=0, asked=4, read=4, faces=3, reason="1 without a face")
        )
    return writer.manifest_path


@pytest.fixture
def paired(tmp_path):
    """Two reals with fakes of two methods, and a real alone."""
    groups = []
    for number in range(2):
        group = f"d/v{number}"
        groups.append(
            [
                item(sample("real", f"v{number}", frame, group=group, faces=3), (0, 200, 0))
                for frame in (0, 1, 2)
            ]
            + [
                item(sample("DF", f"v{number}_x", frame, group=group, score=0.5), (200, 0, 0))
                for frame in (1, 2)
            ]
            + [item(sample("FS", f"v{number}_y", 1, group=group, split="val"), (0, 0, 200))]
        )
    groups.append([item(sample("real", "alone", 0, group=None), (90, 90, 90))])
    failures = [Failure(video="d/DF/lost", label=1, reason="has no face")] * 2
    return write(tmp_path, groups, failures=failures, missing=["real/gone"])


def test_counts_are_those_of_the_set(paired):
    found = inspect_set(Inspect(set=paired))
    assert found.frames == {("train", "real"): 7, ("train", "DF"): 4, ("val", "FS"): 2}
    assert {name: len(videos) for name, videos in found.videos.items()} == {
        ("train", "real"): 3, ("train", "DF"): 2, ("val", "FS"): 2,
    }  # fmt: skip
    assert found.images == {("png", SIDE, SIDE): 13}
    assert found.score_quantiles("DF") == (0.5,) * 5
    assert found.candidates == {3: 6, 1: 7}
    assert found.groups == {"real and fake": 2, "samples in no exact group": 1}
    assert found.failures == {("DF", "has no face"): 2}
    assert found.shortfalls == {("real", "1 without a face"): 1}
    assert found.bytes == sum(
        p.stat().st_size for p in paired.parent.iterdir() if p.suffix in {".tar", ".parquet"}
    )
    assert found.damaged == []


def test_report_names_methods_failures_and_missing(paired):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(inspect_set(Inspect(set=paired)))
    text = console.export_text()
    for words in (
        "FS",
        "has no face",
        "1 without a face",
        "13 samples in 1 shards",
        "as real/gone",
        "set-inspect.png",
    ):
        assert words in text


def test_row_is_a_real_and_its_fakes_of_the_frame_that_most_have(paired):
    with SetReader(paired) as reader:
        pairs, videos, *texts = blocks(reader, 12, 0)
    assert {strip.title for strip in pairs.strips} == {"d/v0", "d/v1"}
    for strip in pairs.strips:
        number = strip.title[-1]
        assert [tile.caption for tile in strip.tiles] == [
            ("real  0.900", f"1: v{number}"),
            ("DF  0.500", f"1: v{number}_x"),
            ("FS  0.900", f"1: v{number}_y"),
        ]
    assert {strip.title: len(strip.tiles) for strip in videos.strips} == {
        "d/real/v0": 3, "d/real/v1": 3, "d/DF/v0_x": 2, "d/DF/v1_x": 2,
    }  # fmt: skip
    assert [block.lines for block in texts] == [
        ("d/DF/lost has no face",) * 2,
        ("d/real/v0: 3 faces in 4 frames, 1 without a face",),
        ("real/gone",),
    ]


def test_a_row_has_the_pair_at_as_many_frames_as_have_room(tmp_path):
    group = [
        item(sample(source, video, frame, group="d/v0"), (0, 200, 0))
        for frame in range(9)
        for source, video in (("real", "v0"), ("DF", "v0_x"))
    ]
    with SetReader(write(tmp_path, [group])) as reader:
        pairs, *_ = blocks(reader, 12, 0)
    assert [tile.caption[1] for tile in pairs.strips[0].tiles] == [
        f"{frame}: {name}" for frame in (0, 3, 5, 8) for name in ("v0", "v0_x")
    ]


def test_number_of_pairs_bounds_the_sheet_and_the_seed_chooses(tmp_path):
    groups = [
        [item(sample(s, f"v{n}", 0, group=f"d/{n}"), (n, 0, 0)) for s in ("real", "DF")] for n in range(20)
    ]
    path = write(tmp_path, groups)
    with SetReader(path) as reader:
        titles = [[strip.title for strip in next(blocks(reader, 3, seed)).strips] for seed in (0, 0, 1)]
    assert len(titles[0]) == 3
    assert titles[0] == titles[1] != titles[2]


def test_set_without_pairs_shows_single_faces(tmp_path):
    groups = [[item(sample("real", f"v{n}", 0, group=None), (n, 0, 0))] for n in range(10)]
    with SetReader(write(tmp_path, groups)) as reader:
        (block, *_) = blocks(reader, 12, 0)
    assert [strip.title for strip in block.strips] == ["real", "real"]
    assert sum(len(strip.tiles) for strip in block.strips) == 10


def test_damaged_samples_are_shown_with_the_reason_and_the_rest_as_it_is(paired):
    tar = paired.with_name("set-000000.tar")
    with SetReader(paired) as reader:
        image, text = (
            next(row for row in reader.rows if row.key == f"d/{key}/000001") for key in ("real/v0", "DF/v0_x")
        )
    data = bytearray(tar.read_bytes())
    data[image.offset : image.offset + image.size] = bytes(image.size)
    data[text.offset + text.size + -text.size % 512] ^= 1
    tar.write_bytes(data)
    found = inspect_set(Inspect(set=paired))
    assert len(found.damaged) == 1
    assert "d/DF/v0_x/000001" in found.damaged[0]
    with SetReader(paired) as reader:
        strip = next(strip for strip in next(blocks(reader, 12, 0)).strips if strip.title == "d/v0")
    real, fake, whole = strip.tiles
    assert real.image is None
    assert real.problem
    assert fake.image is not None
    assert "JSON" in fake.problem
    assert (whole.problem, whole.image.shape) == ("", (SIDE, SIDE, 3))


def test_sheet_shows_faces_with_marks_in_their_places(tmp_path):
    image = np.full((SIDE, SIDE, 3), (0, 200, 0), np.uint8)
    tile = Tile(("a", "b"), image, ((15.5, 7.5),), (4.0, 4.0, 28.0, 28.0))
    path = tmp_path / "sheet.png"
    draw_sheet(path, "title", [Block("h", (Strip("s", (tile, Tile((), None, problem="broken"))),))])
    sheet = np.asarray(Image.open(path))
    green = (sheet == (0, 200, 0)).all(-1)
    top, left = (int(np.nonzero(green.any(axis))[0][0]) for axis in (1, 0))
    face = sheet[top : top + TILE_PX, left : left + TILE_PX]
    zoom = TILE_PX / SIDE
    assert face[round(8 * zoom), round(16 * zoom)].tolist() == [255, 64, 64]  # The first point, in red.
    rows = np.nonzero((face[:, round(22 * zoom)] == 255).all(-1))[0]  # The box's upper and lower side.
    np.testing.assert_allclose(rows, [4.5 * zoom, 28.5 * zoom], atol=1)
    assert face[round(20 * zoom), round(16 * zoom)].tolist() == [0, 200, 0]
    assert (sheet == 128).all(-1).sum() > 0.5 * TILE_PX**2  # The grey tile.


def test_sheet_lies_beside_the_set_or_where_it_is_wanted(paired, tmp_path):
    assert inspect_set(Inspect(set=paired)).sheet == paired.with_name("set-inspect.png")
    out = tmp_path / "deep" / "look.png"
    assert inspect_set(Inspect(set=paired, out=out)).sheet == out
    assert Image.open(out).format == "PNG"


def test_sheet_never_takes_the_place_of_another_kind_of_file(paired):
    before = paired.read_bytes()
    with pytest.raises(InputError, match=r"ends in \.png"):
        inspect_set(Inspect(set=paired, out=paired))
    assert paired.read_bytes() == before
