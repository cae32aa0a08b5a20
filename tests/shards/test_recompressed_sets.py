"""Sets of re-compressed videos beside the sets they vary: the same samples, only other pixels."""

import io
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dfdet.errors import InputError
from dfdet.schema import CropRecipe, Sample
from shards.__main__ import main
from shards.mapping import here, in_processes
from shards.options import VideoSets
from shards.plan import plan_sets, select
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from shards.source import Listing, Video
from shards.videos import find, make_video_sets, making
from tests.shards.clips import files, write_clip, write_ffpp
from tests.shards.marker_detector import write_marker_detector

LEVELS = ("h264-crf23", "h264-crf32", "h264-crf40")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_marker_detector(tmp_path_factory.mktemp("weights") / "marker.onnx")


@pytest.fixture(scope="module")
def ffpp(tmp_path_factory):
    return write_ffpp(tmp_path_factory.mktemp("ffpp"), frames=12)


def chosen(root, out, weights, dataset="ffpp", **more):
    more = {"frames": 4, "size_px": 64, "detector": "onnx", "weights": weights, "shard_samples": 8} | more
    return VideoSets(dataset=dataset, root=root, out=out, **more)


def make(options, workers=0, progress=None):
    found = find(options)
    make = making(options, found)
    mapper = in_processes(make, crashed, workers) if workers else here(make)
    return make_video_sets(make, found, lambda: mapper, progress=progress)


def crashed(job, reason):
    raise AssertionError(f"{job} {reason}")


def samples(path):
    """Sample and pixels by the key without its dataset."""
    found = {}
    for entry in read_manifest(path).shards:
        with tarfile.open(path.parent / entry.file) as tar:
            members = tar.getmembers()
            for image, text in zip(members[::2], members[1::2], strict=True):
                sample = Sample.model_validate_json(tar.extractfile(text).read())
                pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(image).read())).convert("RGB"))
                found[sample.key.partition("/")[2]] = sample, pixels
    return found


def own(root, names, split="test"):
    """A table of own real videos."""
    table = root / "labels.csv"
    table.write_text("file,label,split\n" + "".join(f"{name},real,{split}\n" for name in names))
    return table


@pytest.fixture(scope="module")
def sets(ffpp, weights, tmp_path_factory):
    """Manifest of the validation set as it is (``""``) and by level."""
    out = tmp_path_factory.mktemp("sets")
    options = {
        how: chosen(ffpp, out, weights, only=("val",), recompress=how or None) for how in ("", *LEVELS)
    }
    return {how: make(each).manifests[0] for how, each in options.items()}


def test_a_variant_stands_beside_its_base_under_its_own_name(sets):
    names = [path.name for path in sets.values()]
    assert names == ["ffpp-c23-val.json", *(f"ffpp-c23-{how}-val.json" for how in LEVELS)]
    assert [verify_set(path) for path in sets.values()] == [[]] * 4
    assert [read_manifest(path).dataset for path in sets.values()][1] == "ffpp-c23-h264-crf23"


@pytest.mark.parametrize("how", LEVELS)
def test_only_dataset_compression_and_pixels_differ(sets, how):
    base, variant = samples(sets[""]), samples(sets[how])
    assert list(base) == list(variant) and len(base) == 24
    for key, (sample, pixels) in base.items():
        other, worse = variant[key]
        assert other.compression == f"c23+{how}" and other.dataset == f"ffpp-c23-{how}"
        assert other.model_copy(update={"dataset": "ffpp-c23", "compression": "c23"}) == sample
        assert worse.shape == pixels.shape and not np.array_equal(worse, pixels)


def test_distortion_rises_with_the_rate_factor(sets):
    base = samples(sets[""])
    error = {
        how: np.mean([np.square(base[key][1].astype(float) - worse) for key, (_, worse) in of_level.items()])
        for how in LEVELS
        for of_level in [samples(sets[how])]
    }
    assert 0 < 1.5 * error[LEVELS[0]] < error[LEVELS[1]] < error[LEVELS[2]] / 1.5


def test_the_manifest_names_the_encoder_and_its_version(sets):
    told = read_manifest(sets["h264-crf40"]).written_by
    assert 'recompress="h264-crf40"' in told
    assert "; re-compressed by libx264, x264 - core 1" in told and "crf=40" in told
    assert "re-compressed" not in read_manifest(sets[""]).written_by


def test_processes_make_the_bytes_that_one_process_makes(ffpp, weights, tmp_path, sets):
    make(chosen(ffpp, tmp_path, weights, only=("val",), recompress="h264-crf40", workers=2), workers=2)
    there = files(sets[""].parent)
    assert files(tmp_path) == {name: there[name] for name in there if name.startswith("ffpp-c23-h264-crf40")}


class Stop(Exception):
    pass


def test_an_interrupted_run_goes_on_and_ends_alike(ffpp, weights, tmp_path, sets):
    options = chosen(ffpp, tmp_path, weights, only=("val",), recompress="h264-crf40")

    def stop(done, total):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        make(options, progress=stop)
    made = make(options)
    assert made.reused > 0 and made.videos + made.reused == 6
    there = files(sets[""].parent)
    assert files(tmp_path) == {name: there[name] for name in there if name.startswith("ffpp-c23-h264-crf40")}
    assert make(options).videos == 0


@pytest.mark.parametrize("more", [{"pick": "at_least"}, {"selection": "track"}])
def test_every_way_to_choose_faces_gives_the_same_samples(more, weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4", frames=40, width=320, faces=2, step=2)
    options = chosen(root, tmp_path / "out", weights, "own", labels=own(root, ["a.mp4"]), frames=6, **more)
    base, variant = (
        samples(make(each).manifests[0])
        for each in (options, options.model_copy(update={"recompress": "vp9-crf50"}))
    )
    assert list(base) == list(variant)
    for key, (sample, pixels) in base.items():
        other, worse = variant[key]
        assert (other.to_crop, other.candidates, other.chosen) == (
            *(sample.to_crop, sample.candidates, sample.chosen),
        )
        assert 0 < np.abs(pixels.astype(int) - worse).mean() < 20


def test_damaged_videos_are_told_as_without(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "good.mp4")
    write_clip(root / "nobody.mp4", faces=0)
    (root / "text.mp4").write_text("no video")
    cut = write_clip(root / "cut.mp4", frames=60, movflags="faststart")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    names = ("good.mp4", "nobody.mp4", "text.mp4", "cut.mp4")
    options = chosen(root, tmp_path / "out", weights, "own", labels=own(root, names), max_failed=1)
    base, variant = (
        read_manifest(make(each).manifests[0])
        for each in (options, options.model_copy(update={"recompress": "h264-crf40"}))
    )

    def told(records):
        return [(each.video.partition("/")[2], each.reason) for each in records]

    assert len(base.failures) == 2 and told(variant.failures) == told(base.failures)
    assert len(base.shortfalls) == 1 and told(variant.shortfalls) == told(base.shortfalls)
    assert variant.samples == base.samples == 8


def test_a_video_that_cannot_be_encoded_is_a_failure_with_its_reason(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "good.mp4")
    parts = [write_clip(tmp_path / f"{width}.mp4", frames=20, width=width) for width in (320, 240)]
    (root / "grows.h264").write_bytes(b"".join(map(bare, parts)))
    table = own(root, ["good.mp4", "grows.h264"])
    options = chosen(root, tmp_path / "out", weights, "own", labels=table, max_failed=1)
    assert read_manifest(make(options).manifests[0]).failures == ()
    made = make(options.model_copy(update={"recompress": "h264-crf40"}))
    (failure,) = read_manifest(made.manifests[0]).failures
    assert failure.video == "own-h264-crf40/real/grows%2Eh264"
    assert failure.reason == (
        "cannot be re-compressed to h264-crf40: its frames change from 320x240 px to 240x240"
    )


def bare(path: Path) -> bytes:
    """The H.264 stream of a clip, which another may follow."""
    data = io.BytesIO()
    with av.open(str(path)) as source, av.open(data, "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return data.getvalue()


def test_a_name_gets_the_suffix_too(weights, tmp_path):
    root = tmp_path / "raw"
    write_clip(root / "a.mp4")
    options = chosen(root, tmp_path, weights, "own", labels=own(root, ["a.mp4"]), name="mine")
    (path,) = make(options.model_copy(update={"recompress": "av1-crf50"})).manifests
    assert (path.name, read_manifest(path).dataset) == ("mine-av1-crf50-test.json", "mine-av1-crf50")


def test_images_are_refused(weights, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    write_clip(tmp_path / "b.mp4")
    table = own(tmp_path, ["a.png", "b.mp4"])
    options = chosen(tmp_path, tmp_path / "out", weights, "own", labels=table, recompress="h264-crf40")
    with pytest.raises(InputError, match=r"--recompress h264-crf40: 1 of 2 sources are images.*a\.png"):
        find(options)


def test_ready_crops_are_refused(tmp_path, weights):
    folder = tmp_path / "set" / "real" / "000"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    options = chosen(tmp_path, tmp_path / "out", weights, "crops", recompress="h264-crf40")
    with pytest.raises(InputError, match="take a dataset of video files"):
        find(options)


@pytest.mark.parametrize("how", ["h264", "h264-crf60", "divx-crf20"])
def test_an_unknown_codec_or_factor_is_refused_in_one_line(how, ffpp, tmp_path, capsys):
    words = f"videos --dataset ffpp --root {ffpp} --out {tmp_path / 'out'} --recompress {how}"
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --recompress '{how}': give CODEC-crfN") and error.count("\n") == 1


def test_another_encoder_makes_another_plan():
    videos = (Video(Path("a.mp4"), "real", "a", "test"),)
    selected = select(Listing("own", videos), (), "refuse")
    options = VideoSets(dataset="own", root=Path(), out=Path("out"), recompress="h264-crf40")
    plans = [
        plan_sets(options, "own-h264-crf40", selected, CropRecipe(), encoder)[0].sha256
        for encoder in ("x264 - core 164", "x264 - core 165", "x264 - core 165")
    ]
    assert plans[0] != plans[1] == plans[2]
