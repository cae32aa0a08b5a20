"""From video files to verified sets through the real chain: PyAV, an ONNX detector, alignment, tars."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfdet.errors import InputError, ShardSetError
from dfdet.schema import Sample
from shards.__main__ import main
from shards.detect.faces import DetectorError
from shards.mapping import here, in_processes
from shards.media.reach import StorageAwayError
from shards.options import VideoSets
from shards.plan import Job
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from shards.videos import TooManyFailuresError, find, make_video_sets, making
from tests.shards.clips import files, write_clip, write_ffpp
from tests.shards.marker_detector import write_marker_detector


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return write_marker_detector(tmp_path_factory.mktemp("weights") / "marker.onnx")


@pytest.fixture(scope="session")
def ffpp(tmp_path_factory):
    return write_ffpp(tmp_path_factory.mktemp("ffpp"))


def chosen(root, out, weights, dataset="ffpp", **more):
    more = {"frames": 4, "size_px": 64, "detector": "onnx", "weights": weights, "shard_samples": 16} | more
    return VideoSets(dataset=dataset, root=root, out=out, **more)


def make(options, workers=None, progress=None):
    found = find(options)
    make = making(options, found)
    mapper = (lambda: here(make)) if workers is None else (lambda: in_processes(make, crashed, workers))
    return make_video_sets(make, found, mapper, progress=progress)


def crashed(job, reason):
    raise AssertionError(f"{job} {reason}")


def samples(manifest):
    """Every sample of a set with its image."""
    import tarfile

    found = []
    for entry in read_manifest(manifest).shards:
        with tarfile.open(manifest.parent / entry.file) as tar:
            members = tar.getmembers()
            for image, text in zip(members[::2], members[1::2], strict=True):
                sample = Sample.model_validate_json(tar.extractfile(text).read())
                found.append((sample, Image.open(io.BytesIO(tar.extractfile(image).read()))))
    return found


def own(root, rows, header="file,label,video,group,split"):
    """A table of own files."""
    table = root / "labels.csv"
    table.write_text(header + "\n" + "".join(f"{row}\n" for row in rows))
    return table


def test_a_dataset_becomes_a_sound_set_for_each_split(ffpp, weights, tmp_path):
    made = make(chosen(ffpp, tmp_path, weights))
    assert [path.name for path in made.manifests] == [
        "ffpp-c23-train.json",
        "ffpp-c23-val.json",
        "ffpp-c23-test.json",
    ]
    assert [verify_set(path) for path in made.manifests] == [[], [], []]
    train = read_manifest(made.manifests[0])
    assert train.by_method == {"DF": 16, "F2F": 16, "real": 16}
    assert (train.failures, train.shortfalls, train.missing) == ((), (), ())
    assert made.videos == 24
    assert not list(tmp_path.glob(".*"))


def test_frames_of_a_fake_are_those_of_its_real(ffpp, weights, tmp_path):
    made = make(chosen(ffpp, tmp_path, weights, only=("val",)))
    by_video = {}
    for sample, _ in samples(made.manifests[0]):
        by_video.setdefault((sample.group, sample.source), []).append(sample.frame)
    assert len(by_video) == 6
    assert {tuple(frames) for frames in by_video.values()} == {
        (0, 6, 12, 19)
    }  # 24 and 20 frames: 20 in common


def test_the_sample_tells_how_it_was_cut(ffpp, weights, tmp_path):
    made = make(chosen(ffpp, tmp_path, weights, only=("val",)))
    for sample, image in samples(made.manifests[0]):
        assert image.size == (64, 64) and image.format == "WEBP"
        assert (sample.crop.template, sample.crop.scale, sample.crop.selection) == ("gend", 1.6, "mask")
        assert sample.group_level == "exact" and sample.compression == "c23" and sample.split == "val"
        assert sample.frame_size == (320, 240)
        assert sample.chosen == 0 and len(sample.candidates) == 1
        assert sample.score == sample.candidates[0].score > 0.5
        matrix = np.array(sample.to_crop)
        x0, y0, x1, y1 = sample.candidates[0].box
        centre = matrix[:, :2] @ [(x0 + x1) / 2, (y0 + y1) / 2] + matrix[:, 2]
        assert np.allclose(
            centre, [(sample.box[0] + sample.box[2]) / 2, (sample.box[1] + sample.box[3]) / 2], atol=0.01
        )
        nose = sample.landmarks[2]
        assert abs(nose[0] - 32) < 3 and abs(nose[1] - ((0.64 - 0.5) / 1.6 + 0.5) * 64) < 3


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_makes_equal_bytes(workers, ffpp, weights, tmp_path, one_process):
    make(chosen(ffpp, tmp_path, weights, workers=workers), workers)
    assert files(tmp_path) == one_process


@pytest.fixture(scope="session")
def one_process(ffpp, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    make(chosen(ffpp, out, weights))
    return files(out)


def test_a_finished_set_is_not_made_again(ffpp, weights, tmp_path):
    options = chosen(ffpp, tmp_path, weights)
    make(options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    made = make(options)
    assert (made.videos, len(made.manifests)) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_other_options_make_the_set_again(ffpp, weights, tmp_path):
    make(chosen(ffpp, tmp_path, weights, only=("val",)))
    made = make(chosen(ffpp, tmp_path, weights, only=("val",), frames=2))
    assert read_manifest(made.manifests[0]).samples == 12


class Stop(Exception):
    pass


def stop_after(count):
    def progress(done, total):
        if done == count:
            raise Stop

    return progress


@pytest.mark.parametrize("count", [1, 9, 16, 24])
def test_an_interrupted_run_goes_on_and_ends_alike(count, ffpp, weights, tmp_path, one_process):
    options = chosen(ffpp, tmp_path, weights)
    with pytest.raises(Stop):
        make(options, progress=stop_after(count))
    assert not list(tmp_path.glob("*.json"))
    made = make(options)
    assert made.videos + made.reused == 24
    assert made.reused >= (count - 1) // 6 * 6 - 6
    assert files(tmp_path) == one_process


def test_a_damaged_part_is_made_again(ffpp, weights, tmp_path, one_process):
    options = chosen(ffpp, tmp_path, weights)
    with pytest.raises(Stop):
        make(options, progress=stop_after(20))
    tar = next(iter(sorted(tmp_path.glob(".*.parts/*.tar"))))
    tar.write_bytes(tar.read_bytes()[:-512])
    make(options)
    assert files(tmp_path) == one_process


def test_a_video_that_changed_is_read_again(weights, tmp_path):
    root = write_ffpp(tmp_path / "raw", frames=12)
    options = chosen(root, tmp_path / "out", weights, only=("val",))
    make(options)
    write_clip(root / "original_sequences/youtube/c23/videos/004.mp4", 30, faces=0)
    made = make(options)
    manifest = read_manifest(made.manifests[0])
    (failure,) = manifest.failures
    assert (failure.video, failure.group, failure.group_level) == ("ffpp-c23/real/004", "ffpp/004", "exact")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.15, 0.45, 0.8])
def test_a_killed_program_goes_on_and_ends_alike(after, ffpp, weights, tmp_path, one_process):
    """Kill -9 of the whole process group, at three moments of the work."""
    words = f"videos --dataset ffpp --root {ffpp} --out {tmp_path} --detector onnx --weights {weights}"
    command = [sys.executable, "-m", "shards", *words.split(), *["--frames", "4", "--size-px", "64"]]
    command += ["--shard-samples", "16", "--workers", "2"]
    program = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    for line in program.stderr:
        if b"videos: " in line and int(line.split()[1]) >= after * 24:
            break
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    program.stderr.close()
    assert not list(tmp_path.glob("*.json"))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "were finished before" in ended.stderr or after < 0.3
    assert files(tmp_path) == one_process


def test_two_programs_cannot_make_one_set(ffpp, weights, tmp_path):
    options = chosen(ffpp, tmp_path, weights)

    def again(done, total):
        with pytest.raises(ShardSetError, match="being written by another process"):
            make(options)
        raise Stop

    with pytest.raises(Stop):
        make(options, progress=again)


def test_lost_videos_are_recorded_with_their_reasons(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "good.mp4")
    write_clip(root / "nobody.mp4", faces=0)
    write_clip(root / "short.mp4", frames=1)
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("no video")
    names = ["good", "nobody", "short", "empty", "text", "gone"]
    table = own(root, [f"{name}.mp4,real,,," for name in names], "file,label,video,group,split")
    table.write_text(table.read_text().replace(",,,", ",,,test"))
    made = make(chosen(root, tmp_path / "out", weights, "own", labels=table, max_failed=1))
    (manifest,) = map(read_manifest, made.manifests)
    reasons = {failure.video: failure.reason for failure in manifest.failures}
    assert manifest.by_label == {"real": 4, "fake": 0}
    assert len(reasons) == 4 and len(manifest.missing) == 1
    assert reasons["own/real/nobody%2Emp4"] == "gave no face in 4 frames: 4 without a face"
    assert "too short: 1 frames" in reasons["own/real/short%2Emp4"]
    assert "empty" in reasons["own/real/empty%2Emp4"]
    assert "no video" in reasons["own/real/text%2Emp4"]


def test_too_many_failures_stop_the_run_and_keep_what_is_finished(weights, tmp_path):
    root = tmp_path / "raw"
    for number in range(10):
        write_clip(root / f"{number}.mp4", frames=10, faces=number % 2)
    table = own(root, [f"{number}.mp4,real,,,test" for number in range(10)])
    options = chosen(root, tmp_path / "out", weights, "own", labels=table, shard_samples=4, max_failed=0.3)
    with pytest.raises(
        TooManyFailuresError, match=r"4 of 10 videos failed, more than --max_failed 0.3 \(4 gave"
    ):
        make(options)
    made = make(options.model_copy(update={"max_failed": 0.5}))
    assert made.reused > 0
    assert len(read_manifest(made.manifests[0]).failures) == 5


def test_a_split_in_which_no_video_gives_a_face_is_refused(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4", faces=0)
    table = own(root, ["a.mp4,real,,,test"])
    with pytest.raises(ShardSetError, match=r"no sample was added.*gave no face"):
        make(chosen(root, tmp_path / "out", weights, "own", labels=table, max_failed=1))


def test_frames_without_a_face_are_a_recorded_shortfall(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4", frames=40, width=160, step=6)  # The face drifts out of the picture.
    table = own(root, ["a.mp4,real,,,test"])
    made = make(chosen(root, tmp_path / "out", weights, "own", labels=table, frames=8))
    (short,) = read_manifest(made.manifests[0]).shortfalls
    assert (short.asked, short.read) == (8, 8)
    assert 0 < short.faces < 8
    assert short.reason == f"{8 - short.faces} without a face"


def test_at_least_looks_on_until_enough_faces_are_found(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4", frames=40, width=160, step=6)
    table = own(root, ["a.mp4,real,,,test"])
    made = make(chosen(root, tmp_path / "out", weights, "own", labels=table, frames=8, pick="at_least"))
    manifest = read_manifest(made.manifests[0])
    assert manifest.samples == 8
    assert manifest.shortfalls[0].asked > 8


def test_a_person_is_tracked_however_frames_are_picked(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4", frames=40, faces=2)
    table = own(root, ["a.mp4,real,,,test"])
    options = chosen(root, tmp_path / "out", weights, "own", labels=table, frames=6, selection="track")
    made = make(options.model_copy(update={"pick": "at_least"}))
    found = sorted((sample for sample, _ in samples(made.manifests[0])), key=lambda sample: sample.frame)
    assert len(found) == 6
    assert all(len(sample.candidates) == 2 for sample in found)
    tracks = {sample.candidates[sample.chosen].track for sample in found}
    assert len(tracks) == 1 and None not in tracks
    assert len({round(sample.candidates[sample.chosen].box[0] - sample.frame) for sample in found}) <= 2


def test_a_file_that_is_cut_off_is_a_recorded_shortfall(weights, tmp_path):
    root = tmp_path / "raw"
    clip = write_clip(root / "a.mp4", frames=60, movflags="faststart")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    table = own(root, ["a.mp4,real,,,test"])
    made = make(chosen(root, tmp_path / "out", weights, "own", labels=table))
    (short,) = read_manifest(made.manifests[0]).shortfalls
    assert short.reason.startswith("the file is cut off: ")
    assert short.reason.endswith(" of 60 frames are there")
    assert short.faces == 4


def test_a_failing_detector_ends_the_run_and_blames_no_video(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4")
    options = chosen(root, tmp_path / "out", weights, "own", labels=own(root, ["a.mp4,real,,,test"]))
    found = find(options)
    recipe = making(options, found)

    def broken(frames):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(DetectorError, match=r"failed at .*a.mp4 \(RuntimeError: CUDA out of memory\)"):
        make_video_sets(recipe, found, lambda: here(lambda: recipe.with_detector(broken)))
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_a_storage_that_is_away_ends_the_run_and_blames_no_file(name, weights, tmp_path, monkeypatch):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4")
    Image.new("RGB", (64, 64)).save(root / "a.png")
    options = chosen(root, tmp_path / "out", weights, "own", labels=own(root, [f"{name},real,,,test"]))

    def stale(path, *_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    found = find(options)
    prepare = making(options, found)()
    monkeypatch.setattr("shards.media.stream.os.open", stale)
    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(StorageAwayError, match=r"Stale file handle.*the same command goes on"):
        prepare(Job(found.selected.videos[0], "unit"))


def test_images_and_ready_crops_need_no_videos(weights, tmp_path):
    crops = tmp_path / "set"
    for source, video in (("real", "000"), ("fake", "000_001")):
        folder = crops / source / video
        folder.mkdir(parents=True)
        for frame in range(3):
            Image.fromarray(np.full((64, 64, 3), 50 + frame, np.uint8)).save(folder / f"{frame}.png")
    (made,) = make(chosen(crops, tmp_path / "out", None, "crops", scale=1.3)).manifests
    manifest = read_manifest(made)
    assert manifest.by_label == {"real": 3, "fake": 3}
    assert (manifest.crop.template, manifest.crop.scale) == ("none", 1.3)
    assert verify_set(made) == []
    originals = {path.read_bytes() for path in crops.rglob("*.png")}
    assert {text.fp.getvalue() for _, text in samples(made)} == originals


def test_a_set_of_another_split_beside_must_not_share_groups(weights, tmp_path):
    root = tmp_path / "raw"
    for name in ("a", "b"):
        write_clip(root / f"{name}.mp4")
    first = own(root, ["a.mp4,real,,g,train"])
    make(chosen(root, tmp_path / "out", weights, "own", labels=first))
    second = own(root, ["b.mp4,real,,g,test"])
    with pytest.raises(ShardSetError, match=r"1 groups, as 'own/g'.*own-train.json and in the test set"):
        make(chosen(root, tmp_path / "out", weights, "own", labels=second))


def test_a_dry_run_opens_no_video_and_tells_what_is_missing(ffpp, tmp_path, capsys, monkeypatch):
    import shutil

    root = shutil.copytree(ffpp, tmp_path / "raw")
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"not a video")
    (root / "manipulated_sequences/Deepfakes/c23/videos/004_005.mp4").unlink()
    code = main(
        ["videos", "--dataset", "ffpp", "--root", str(root), "--out", str(tmp_path / "out"), "--dry-run"]
    )
    told = capsys.readouterr().out
    assert code == 0
    assert "missing: DF/004_005" in told
    assert not (tmp_path / "out").exists()


def test_the_command_line_makes_sets_and_says_how_to_train(ffpp, weights, tmp_path, capsys):
    words = (
        f"videos --dataset ffpp --root {ffpp} --out {tmp_path} --detector onnx --weights {weights} --frames 2"
    )
    assert main([*words.split(), "--workers", "1"]) == 0
    told = capsys.readouterr()
    assert f"--data.train {tmp_path}/ffpp-c23-train.json" in told.out
    assert "videos: 24 of 24" in told.err
    assert main([*words.split(), "--workers", "1"]) == 0
    assert "nothing was done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset nothing", "nothing"),
        ("--dataset ffpp --root missing", "missing"),
        ("--detector onnx", "--weights"),
        ("--detector onnx --weights gone.onnx", "gone.onnx"),
        ("--name a/b", "--name"),
        ("--detector onnx --device cuda", "--device cuda"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, message, ffpp, tmp_path, capsys):
    base = f"videos --dataset ffpp --root {ffpp} --out {tmp_path / 'out'} "
    assert main([*base.split(), *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unreadable_list_is_an_input_error(weights, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("nothing\n")
    with pytest.raises(InputError, match="lacks column"):
        make(chosen(tmp_path, tmp_path / "out", weights, "own", labels=table))


def test_json_of_the_manifest_says_what_was_chosen(ffpp, weights, tmp_path):
    made = make(chosen(ffpp, tmp_path, weights, only=("val",)))
    text = json.loads(Path(made.manifests[0]).read_text())["written_by"]
    assert "frames=4" in text and "ffpp" in text and str(tmp_path) not in text and "workers" not in text
