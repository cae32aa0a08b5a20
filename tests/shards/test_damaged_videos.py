"""Two hundred damaged inputs: each is recorded with a reason, none kills the run, none escapes."""

import json
import os
import random
import zlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dfdet.schema import decode_part
from shards.__main__ import main
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from tests.shards.clips import files, write_clip
from tests.shards.marker_detector import write_marker_detector

pytestmark = pytest.mark.slow

ODD_NAMES = [
    "with space",
    "two  spaces and a 'quote'",
    'double "quotes"',
    "new\nline",
    "tab\tand\rreturn",
    "лицо",
    "顔",
    "وجه",
    "émoji 🙂",
    "..",
    "...hidden",
    "a..b",
    "%2e%2e%2f",
    "-dash",
    "semi;colon & $(touch pwned) `touch pwned`",
    "back\\slash",
    "percent%00",
    "x" * 200,
    "concat:a|b",
    "http:example.org",
]


def audio(path):
    """An MP4 of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def vast_png(path):
    """A grey PNG of 16384 x 16384 px: half a megabyte that unpacks to a quarter of a gigabyte."""
    side = 16384
    rows = zlib.compress(bytes((side + 1) * side), 9)
    header = side.to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    text = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        text += len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)
    path.write_bytes(text)


def damaged_files(folder: Path) -> list[Path]:
    """Two hundred inputs of every kind."""
    rng = random.Random(7)
    folder.mkdir()
    good = write_clip(folder.parent / "good.mp4").read_bytes()
    jpeg = folder.parent / "good.jpg"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(jpeg)
    found: list[Path] = []

    def add(name, data):
        found.append(folder / name)
        if data is not None:
            found[-1].write_bytes(data)
        return found[-1]

    streamed = write_clip(folder.parent / "streamed.mp4", movflags="faststart").read_bytes()
    for number in range(40):
        add(f"cut-{number}.mp4", good[: len(good) * (number + 1) // 42])
        add(f"cut-stream-{number}.mp4", streamed[: len(streamed) * (number + 1) // 42])
    for number, name in enumerate(ODD_NAMES):
        add(f"{name}.mp4", good[: 200 + 100 * number])
    for number in range(10):
        add(f"empty-{number}.mp4", b"")
    for number in range(20):
        add(f"noise-{number}.mp4", rng.randbytes(1 + 700 * number))
    for number in range(10):
        add(f"zeros-{number}.mp4", bytes(100 * number + 1))
    for suffix in ("avi", "mkv", "webm", "mov", "mpg"):
        add(f"jpeg.{suffix}", jpeg.read_bytes())
        add(f"text.{suffix}", b"no video at all\n" * 20)
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif"):
        add(f"video.{suffix}", good)
    for number in range(5):
        audio(add(f"audio-{number}.mp4", None))
        write_clip(add(f"nobody-{number}.mp4", None), faces=0, frames=10, seed=number)
        write_clip(add(f"frame-{number}.mp4", None), frames=1, seed=number)
    for width, height in ((1, 1), (2, 3), (3000, 1), (1, 3000)):
        Image.new("RGB", (width, height)).save(add(f"{width}x{height}.png", None))
    vast_png(add("vast.png", None))
    for number in range(10):
        header = bytearray(good)
        for _ in range(40):  # In front: where the boxes are described.
            header[rng.randrange(4, 2000)] = rng.randrange(256)
        add(f"header-{number}.mp4", bytes(header[: 4000 + number]))
    for name in ("loop.mp4", "loop2.mp4"):
        add(name, None).symlink_to(folder / name)
    add("ring-a.mp4", None).symlink_to(folder / "ring-b.mp4")
    add("ring-b.mp4", None).symlink_to(folder / "ring-a.mp4")
    add("dangling.mp4", None).symlink_to(folder / "nowhere")
    os.mkfifo(add("pipe.mp4", None))
    add("playlist.mp4", b"ffconcat version 1.0\nfile '../good.mp4'\n")
    add("playlist.mov", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../good.mp4\n#EXT-X-ENDLIST\n")
    for name in ("broken.tar", "broken.tar.gz", "bomb.tgz"):
        add(name, rng.randbytes(3000))
    add("folder", None).mkdir()
    add("folder of junk", None).mkdir()
    (folder / "folder of junk" / "1.png").write_bytes(b"junk")
    add("folder loop", None).mkdir()
    (folder / "folder loop" / "again").symlink_to(folder)
    return found


def write_table(path: Path, rows):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "method", "split"])
        writer.writerows(rows)


def test_each_of_200_damaged_inputs_is_recorded(tmp_path, capsys):
    weights = write_marker_detector(tmp_path / "marker.onnx")
    root, out = tmp_path / "raw", tmp_path / "out"
    damaged = damaged_files(root)
    gone = [f"gone-{number}.mp4" for number in range(10)]
    goods = [write_clip(root / f"good {number}.mp4", seed=number).name for number in range(6)]
    names = [path.name for path in damaged] + gone
    assert len(damaged) >= 200 and len(set(names)) == len(names)
    rows = [[name, "fake" if number % 2 else "real", "", "test"] for number, name in enumerate(names)]
    write_table(tmp_path / "raw" / "labels.csv", rows + [[name, "real", "", "test"] for name in goods])
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)}

    words = f"videos --dataset own --root {root} --out {out} --detector onnx --weights {weights}"
    code = main(
        [*words.split(), *["--frames", "4", "--size-px", "64", "--max-failed", "1", "--workers", "2"]]
    )

    assert code == 0, capsys.readouterr().err
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)} == before
    assert sorted(path.name for path in out.iterdir()) == [
        "own-test-000000.tar",
        "own-test.json",
        "own-test.parquet",
    ]
    manifest = read_manifest(out / "own-test.json")
    reasons = {failure.video: failure.reason for failure in manifest.failures}
    reasons |= {short.video: short.reason for short in manifest.shortfalls}
    recorded = Counter([decode_part(video.split("/")[-1]) for video in reasons])
    recorded += Counter(name.split("/", 1)[1] for name in manifest.missing)
    assert {name for name in names if recorded[name] != 1} == set()
    assert all(reasons.values())
    assert not any("unexpected" in reason for reason in reasons.values()), reasons
    assert not any(reason.startswith("crashed") for reason in reasons.values())
    assert verify_set(out / "own-test.json") == []


def test_corrupt_metadata_and_names_that_climb_are_told_and_left_out(tmp_path, capsys):
    weights = write_marker_detector(tmp_path / "marker.onnx")
    root, out = tmp_path / "dfdc", tmp_path / "out"
    write_clip(tmp_path / "outside.mp4")
    for part in range(3):
        write_clip(root / f"dfdc_train_part_{part}" / f"real{part}.mp4", seed=part)
        write_clip(root / f"dfdc_train_part_{part}" / f"fake{part}.mp4", seed=part)
        metadata = {
            f"real{part}.mp4": {"label": "REAL", "split": "train"},
            f"fake{part}.mp4": {"label": "FAKE", "original": f"real{part}.mp4", "split": "train"},
            "../../outside.mp4": {"label": "REAL", "split": "train"},
            "/etc/passwd": {"label": "REAL", "split": "train"},
            "absent.mp4": {"label": "FAKE", "original": "../x", "split": "train"},
            "odd.mp4": 7,
        }
        (root / f"dfdc_train_part_{part}" / "metadata.json").write_text(json.dumps(metadata))
    (root / "dfdc_train_part_1" / "metadata.json").write_text('{"real1.mp4": {"label": "RE')
    words = f"videos --dataset dfdc --root {root} --out {out} --detector onnx --weights {weights}"
    assert main([*words.split(), *["--frames", "2", "--size-px", "64", "--workers", "1"]]) == 0
    told = capsys.readouterr().out
    manifest = read_manifest(out / "dfdc-train.json")
    assert manifest.by_label == {"real": 4, "fake": 4}
    assert "part_1" in told and "is no JSON" in told
    assert "outside.mp4" in told and "file name" in told
    assert set(files(out)) == {"dfdc-train-000000.tar", "dfdc-train.json", "dfdc-train.parquet"}
