"""Prediction on own files in one process: the same crops and scores as training, and what users do wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.data.index import open_sets
from dfdet.errors import InputError
from dfdet.evaluation.evaluate import score_index
from ray_jobs import predict
from ray_jobs.own_files import Target, find_targets
from ray_jobs.predicting import Tasks, plan_tasks
from tests.ray_jobs.predicting import FRAMES, write_checkpoint, write_detector, write_set
from tests.shards.clips import write_clip
from tests.shards.marker_detector import draw_face


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("predict")
    weights = write_detector(folder)
    manifest = write_set(folder, weights)
    return SimpleNamespace(
        folder=folder,
        clips=folder / "raw",
        manifest=manifest,
        weights=weights,
        checkpoint=write_checkpoint(folder / "runs", manifest),
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def words(made: SimpleNamespace, *more: Any) -> list[str]:
    given = ["--checkpoint", made.checkpoint, "--weights", made.weights, "--frames", FRAMES, "--threads", 1]
    return [str(word) for word in [*more, *given]]


def run(made: SimpleNamespace, out: Path, *more: Any) -> list[dict[str, Any]]:
    assert predict.main(words(made, *more, "--out", out)) == 0
    return records(out)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def refused(made: SimpleNamespace, capsys: pytest.CaptureFixture[str], *more: Any) -> str:
    """The one line that bad input is told by."""
    assert predict.main(words(made, *more)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ")
    return told[0]


def test_a_video_scores_as_the_shards_made_of_it(made: SimpleNamespace, tmp_path: Path) -> None:
    opened = open_checkpoint(str(made.checkpoint))
    index = open_sets([made.manifest])
    alone: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    expected = score_index(opened.detector, opened.detector, index, opened.config, alone)
    by_video: dict[str, list[float]] = {}
    for sample, score in zip(expected.ids, expected.scores, strict=True):
        by_video.setdefault(index.videos[index.video[sample]].split("/")[-1], []).append(float(score))
    for record in run(made, tmp_path / "out", made.clips):
        name = Path(record["path"]).name.replace(".", "%2E")
        assert np.allclose([each["score"] for each in record["frames"]], by_video[name], rtol=0, atol=1e-6)
        assert record["score"] == pytest.approx(np.mean(by_video[name]), abs=1e-6)


def test_a_record_tells_frames_times_boxes_and_where_the_verdict_comes_from(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    (record,) = run(made, tmp_path / "out", made.clips / "0.mp4")
    opened = open_checkpoint(str(made.checkpoint))
    assert record["status"] == "ok" and record["reason"] is None
    assert [each["frame"] for each in record["frames"]] == [0, 7, 15, 23]
    assert [each["time_s"] for each in record["frames"]] == [0.0, 0.28, 0.6, 0.92]  # at 25 frames/s
    assert np.allclose([each["box"][0] for each in record["frames"]], [68, 75, 83, 91], atol=1.5)
    assert record["fingerprint"] == opened.fingerprint
    assert record["crop"] == opened.crop.model_dump()
    assert (record["threshold"], record["crop_scale"]) == (opened.threshold.threshold, 1.3)
    assert "validation set 'v'" in record["threshold_origin"]
    assert record["verdict"] == ("fake" if record["score"] >= record["threshold"] else "real")


def test_an_image_is_a_video_of_one_frame(made: SimpleNamespace, tmp_path: Path) -> None:
    image = np.full((240, 320, 3), 120, np.uint8)
    draw_face(image, 160, 120)
    Image.fromarray(image).save(tmp_path / "a.png")
    (record,) = run(made, tmp_path / "out", tmp_path / "a.png")
    assert (record["kind"], record["status"], len(record["frames"])) == ("image", "ok", 1)
    assert record["frames"][0]["time_s"] is None


def test_every_person_is_scored_and_the_highest_score_counts(made: SimpleNamespace, tmp_path: Path) -> None:
    write_clip(tmp_path / "two.mp4", faces=2, size=48)
    (record,) = run(made, tmp_path / "out", tmp_path / "two.mp4", "--faces", "all")
    assert [(face["face"], face["frames"]) for face in record["faces"]] == [(0, FRAMES), (1, FRAMES)]
    assert record["score"] == max(face["score"] for face in record["faces"])
    assert record["aggregate"] == "max over faces of mean"
    first, second = ({each["box"][0] for each in record["frames"] if each["face"] == face} for face in (0, 1))
    assert abs(min(second) - min(first)) > 100  # the two do not mix


def test_no_face_and_damage_are_told_and_end_nothing(made: SimpleNamespace, tmp_path: Path) -> None:
    write_clip(tmp_path / "none.mp4", faces=0)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9))
    given = [tmp_path / name for name in ("text.mp4", "none.mp4", "empty.jpg", "cut.png")]
    found = run(made, tmp_path / "out", *given, made.clips / "1.mp4")
    assert [each["status"] for each in found] == ["damaged", "no face", "damaged", "damaged", "ok"]
    assert found[0]["reason"].startswith("is no video")
    assert found[1]["reason"] == "4 of 4 frames have no face"
    assert all(each["reason"] for each in found[:4])
    assert [each["score"] for each in found[:4]] == [None] * 4


def test_nothing_but_damage_ends_with_1(made: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert predict.main(words(made, tmp_path / "text.mp4")) == 1


def test_a_threshold_of_ones_own_is_said(made: SimpleNamespace, tmp_path: Path) -> None:
    (record,) = run(made, tmp_path / "out", made.clips / "0.mp4", "--threshold", 0)
    assert (record["verdict"], record["threshold_origin"]) == ("fake", "--threshold")


def test_pictures_have_names_of_their_own(made: SimpleNamespace, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(made.clips / "0.mp4", tmp_path / folder / "my clip, 'x'.mp4")
    found = run(made, tmp_path / "out", tmp_path / "a", tmp_path / "b", "--sheet", "--video", "--heatmap")
    names = [name for record in found for name in record["pictures"]]
    assert len(names) == len(set(names)) == 6
    assert all(name.startswith("my-clip-x-") for name in names)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *names, "options.json", "owner.lock", "predictions.jsonl", "predictions.csv"
    }  # fmt: skip


def test_the_same_command_goes_on(made: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    whole = run(made, tmp_path / "whole", made.clips)
    run(made, out, made.clips / "2.mp4")
    done: list[str] = []
    first = predict.here
    monkeypatch.setattr(
        predict,
        "here",
        lambda ask, opened, targets: first(ask, opened, [done.append(t.name) or t for t in targets]),
    )
    assert run(made, out, made.clips) == whole
    assert [Path(name).name for name in done] == ["0.mp4", "1.mp4", "3.mp4"]


def test_a_file_that_changed_is_done_again(made: SimpleNamespace, tmp_path: Path) -> None:
    clip = Path(shutil.copy(made.clips / "0.mp4", tmp_path / "a.mp4"))
    (before,) = run(made, tmp_path / "out", clip)
    shutil.copy(made.clips / "3.mp4", clip)
    (after,) = run(made, tmp_path / "out", clip)
    assert after["score"] != before["score"]


def test_another_detector_than_that_of_training_is_told(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(str(made.weights))
    model.doc_string = "another"
    onnx.save(model, str(tmp_path / "other.onnx"))
    assert predict.main([*words(made, made.clips / "0.mp4"), "--weights", str(tmp_path / "other.onnx")]) == 0
    assert "crop detector_weights_sha256: " in capsys.readouterr().out


def test_ready_crops_are_scored_as_they_are(made: SimpleNamespace, tmp_path: Path) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(crop).save(tmp_path / "crop.png")
    (record,) = run(made, tmp_path / "out", tmp_path / "crop.png", "--crops")
    from dfdet.prediction.score import Scorer

    expected = Scorer(open_checkpoint(str(made.checkpoint)), 1.6)([crop]).scores[0]
    assert record["score"] == pytest.approx(float(expected), abs=1e-6)
    assert record["frames"][0]["box"] is None


def test_other_options_in_a_folder_of_results_are_refused(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, tmp_path / "out", made.clips / "0.mp4")
    capsys.readouterr()
    told = predict.main(words(made, made.clips / "0.mp4", "--aggregate", "max", "--out", tmp_path / "out"))
    assert told == 2
    assert "holds results of aggregate=mean, now it is max" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["absent.mp4"], "absent.mp4: no such file or folder"),
        (["*.nothing"], "*.nothing: no such file or folder"),
        (["https://host/a.mp4"], "is a URL; download it"),
        (["a.mp4", "--sheet"], "--sheet: has nowhere to go"),
        (["a.mp4", "--aggregate", "mode"], "give mean, median, max, or topK"),
        (["a.mp4", "--threshold", "2"], "a score lies in 0 to 1"),
        (["a.mp4", "--crops", "--faces", "all"], "--crops: nothing is cut"),
    ],
)
def test_bad_input_is_told_in_one_line_before_any_work(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str], given: list[str], told: str, monkeypatch
) -> None:
    monkeypatch.setattr(predict, "open_checkpoint", None)
    assert told in refused(made, capsys, *given)


def test_a_checkpoint_of_ready_crops_asks_for_crops_or_a_recipe(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dfdet.errors import ConfigError
    from dfdet.schema import CropRecipe
    from ray_jobs.own_recipe import Chosen, cutting

    with pytest.raises(
        ConfigError, match="give ready crops with --crops, or name a cut with --template gend"
    ):
        cutting(CropRecipe(), 1.3, Chosen())
    assert cutting(CropRecipe(), 1.3, Chosen(crops=True)).recipe == CropRecipe()
    named = cutting(CropRecipe(), 1.3, Chosen(template="gend", detector="onnx", weights=made.weights))
    assert (named.recipe.template, named.recipe.scale, named.recipe.size_px) == ("gend", 1.3, 260)


def test_files_are_found_once_and_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/10.PNG", "b/c/x.webm", "b/.hidden.mp4", "b/notes.txt", "a[1].mp4", "odd.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_targets(["odd.bin", "b/**/*.webm", "b", "a[1].mp4", "./odd.bin"], tmp_path)
    assert [str(each.path.relative_to(tmp_path)) for each in found] == [
        "odd.bin", "b/c/x.webm", "b/10.PNG", "b/2.mp4", "a[1].mp4"
    ]  # fmt: skip
    assert [each.kind for each in found] == ["video", "video", "image", "video", "video"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no video or image"):
        find_targets([str(tmp_path)], tmp_path)


def test_names_of_pictures_are_plain_and_differ_by_path() -> None:
    names = [Target(Path(path), "video").stem for path in ("/a/../x.mp4", "/b/x.mp4", "/b/é\n/;rm -rf.mp4")]
    assert len(set(names)) == 3
    assert all(name.replace("-", "").isalnum() and name.isascii() for name in names)


def test_tasks_fill_the_cpus_and_share_the_gpus() -> None:
    assert plan_tasks(0, 2, {"CPU": 8}, cuda=False) == Tasks(4, 2, 0.0)
    assert plan_tasks(3, 2, {"CPU": 8}, cuda=False) == Tasks(3, 2, 0.0)
    assert plan_tasks(0, 1, {"CPU": 8, "GPU": 2}, cuda=True) == Tasks(4, 1, 0.5)
    assert plan_tasks(99, 1, {"CPU": 8, "GPU": 2}, cuda=True) == Tasks(8, 1, 0.25)


@pytest.mark.parametrize(
    ("threads", "cuda", "told"), [(9, False, "--threads 9: Ray has 8"), (1, True, "no GPU")]
)
def test_tasks_that_no_node_has_room_for_are_refused(threads: int, cuda: bool, told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan_tasks(0, threads, {"CPU": 8}, cuda=cuda)


def test_an_interrupted_run_leaves_whole_lines_and_goes_on(
    made: SimpleNamespace, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(made, tmp_path / "whole", made.clips)
    first = predict.here

    def interrupted(*args: Any) -> Iterator[Any]:
        yield from islice(first(*args), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "here", interrupted)
        assert predict.main(words(made, made.clips, "--out", tmp_path / "out")) == 130
    assert records(tmp_path / "out") == whole[:2]
    assert run(made, tmp_path / "out", made.clips) == whole


REAL = Path(os.environ.get("DFDET_REAL", Path(__file__).parents[3] / "shared" / "real"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real photographs here")
def test_a_real_detector_finds_each_person_of_a_photograph(made: SimpleNamespace, tmp_path: Path) -> None:
    weights = REAL / "weights" / "retinaface_mnet025.onnx"
    photo = REAL / "photos" / "bald_guys.jpg"
    given = [*words(made, photo, "--faces", "all", "--out", tmp_path / "out"), "--weights", str(weights)]
    assert predict.main(given) == 0
    (record,) = records(tmp_path / "out")
    assert record["status"] == "ok"
    assert len(record["faces"]) == len(record["frames"]) > 1
