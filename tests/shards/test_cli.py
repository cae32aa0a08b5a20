import io
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import shards.demo
from dfdet.schema import CropRecipe, Sample
from shards.__main__ import main
from shards.sets.write import ShardWriter


@pytest.fixture
def folders(tmp_path) -> list[str]:
    for name, red in (("real", 0), ("gan", 100)):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.new("RGB", (8, 8), (red + number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return ["--real", str(tmp_path / "real"), "--fake", str(tmp_path / "gan"), "--out", str(tmp_path / "out")]


def test_images_prints_counts_manifests_and_the_next_command(folders, tmp_path, capsys):
    assert main(["images", *folders, "--name", "my faces"]) == 0
    out = capsys.readouterr().out
    assert "my faces-train" in out
    command = shlex.split(out.splitlines()[-1])
    assert command[:4] == ["python", "ray_jobs/train.py", "gend", "--data.train"]
    assert f"my-faces={tmp_path}/out/my faces-val.json" in command


def test_images_writes_its_arguments_into_the_manifest(folders, tmp_path):
    main(["images", *folders])
    text = json.loads((tmp_path / "out" / "images-train.json").read_text())["written_by"]
    assert text.startswith("dfdet ") and shlex.split(text)[6:] == folders


def test_images_lists_failures(folders, tmp_path, capsys):
    (tmp_path / "real" / "0.png").write_bytes(b"x")
    assert main(["images", *folders]) == 0
    assert "1 images could not be used" in (out := capsys.readouterr().out)
    assert "images/real/0%2Epng: does not decode" in out


def test_images_shows_plain_lines_without_a_terminal(folders, capsys):
    main(["images", *folders])
    assert capsys.readouterr().err.splitlines()[-1].startswith("images: 80 of 80, ")


def test_verify_of_sound_sets_is_0(folders, tmp_path, capsys):
    main(["images", *folders])
    assert main(["verify", *map(str, (tmp_path / "out").glob("*.json"))]) == 0
    assert capsys.readouterr().out.count(": sound\n") == 3


def test_verify_of_a_damaged_set_is_1(folders, tmp_path, capsys):
    main(["images", *folders])
    (tmp_path / "out" / "images-val-000000.tar").unlink()
    assert main(["verify", *map(str, (tmp_path / "out").glob("*.json"))]) == 1
    assert "images-val-000000.tar: is missing" in capsys.readouterr().out


def test_verify_of_what_is_no_set_is_2_and_goes_on(folders, tmp_path, capsys):
    main(["images", *folders])
    assert main(["verify", "missing.json", str(tmp_path / "out" / "images-val.json")]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: missing.json cannot be read")
    assert "images-val.json: sound" in printed.out


def test_demo_builds_and_prints_the_manifests(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        shards.demo,
        "build",
        lambda out, seed=0, progress=None: {"train": out / f"train-{seed}.json"},
        raising=False,
    )
    assert main(["demo", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/train-3.json\n"


@pytest.mark.parametrize(
    "args",
    [
        ["images", "--out", "x"],
        ["images", "--real", "missing", "--out", "x"],
        ["images", "--real", "missing", "--out", "x", "--split", "1", "1", "1"],
        ["verify"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, capsys):
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("args", [[], ["nonsense"], ["images", "--out", "x", "--nonsense"], ["images"]])
def test_wrong_usage_is_exit_code_2(args):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2


def test_sigterm_is_exit_code_143_and_leaves_no_temporary_file(folders, tmp_path):
    for number in range(40, 400):
        (tmp_path / "real" / f"{number}.png").write_bytes((tmp_path / "real" / "0.png").read_bytes())
    slow = "import time, shards.images as i; s = i.store_image; "
    slow += "i.store_image = lambda *a: (time.sleep(.02), s(*a))[1]; "
    slow += "from shards.__main__ import main; raise SystemExit(main())"
    process = subprocess.Popen([sys.executable, "-c", slow, "images", *folders], stderr=subprocess.PIPE)
    while not (tmp_path / "out" / ".images-train.tmp").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert list(Path(tmp_path / "out").iterdir()) == []


def test_verify_tells_a_group_that_two_splits_share(tmp_path, capsys):
    for split in ("train", "test"):
        write_group(tmp_path / split, split)
    assert main(["verify", str(tmp_path / "train/a.json")]) == 0
    assert main(["verify", str(tmp_path / "train/a.json"), str(tmp_path / "test/a.json")]) == 2
    assert "group 'd/v0' is in" in capsys.readouterr().err


def write_group(folder, split):
    """A set of one group of one frame."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    sample = Sample(
        dataset="d",
        source="real",
        label=0,
        video="v0",
        frame=0,
        group="d/v0",
        group_level="exact",
        split=split,
    )
    with ShardWriter(folder, "a", dataset="d", split=split, crop=CropRecipe()) as writer:
        writer.add_group([(sample, "png", buffer.getvalue(), 8, 8)])
