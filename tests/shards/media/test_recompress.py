"""Each codec on drawn clips: order, distortion, size, reproducible bytes, and what goes wrong."""

import os
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from dfdet.errors import InputError
from dfdet.schema import Recompression
from shards.media import recompress
from shards.media.footage import open_footage
from shards.media.priority import THREADS
from shards.media.recompress import Recompressor, encoder_text, recompressed
from shards.media.stream import UnusableVideoError
from shards.media.video import VideoFile
from shards.source import Video
from tests.shards.clips import background
from tests.shards.marker_detector import draw_face
from tests.shards.numbered import number_in, numbered, write

LEVELS = {"h264": (23, 32, 40), "h265": (23, 32, 40), "av1": (30, 45, 60), "vp9": (30, 45, 60)}
REAL = Path(os.environ.get("DFDET_REAL", Path(__file__).parents[4] / "shared" / "real")) / "videos"


def noisy(frames=12, width=160, height=120):
    """A face that moves, with grain, which costs bits, [H, W, 3]."""
    rng = np.random.default_rng(0)
    images = []
    for index in range(frames):
        image = background(index, 0, width, height)
        draw_face(image, 30 + index, 60, 40)
        images.append((image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8))
    return images


def through(images, how):
    """Images after re-compression, their numbers, and the size (bytes)."""
    coder = Recompressor(how, images[0].shape[1], images[0].shape[0])
    out = list(chain(*map(coder.push, images), coder.end()))
    return [each.image() for each in out], [each.number for each in out], coder.bytes


def psnr(images, others):
    error = np.mean([np.square(a.astype(float) - b) for a, b in zip(images, others, strict=True)])
    return 10 * np.log10(255**2 / error)


def footage(images, bad=()):
    """Frames in memory; ``bad`` ones do not decode."""

    class Frames:
        length = len(images)

        def frames(self, positions):
            return ((each, images[each]) for each in positions if each not in bad)

    return Frames()


@pytest.mark.parametrize("codec", LEVELS)
def test_every_frame_comes_out_once_and_in_its_place(codec):
    out, places, _ = through([numbered(number) for number in range(70)], Recompression(codec, 32))
    assert places == list(range(70))
    assert [number_in(image) for image in out] == places


@pytest.mark.parametrize("codec", LEVELS)
def test_distortion_rises_and_size_falls_with_the_rate_factor(codec):
    images = noisy()
    made = [through(images, Recompression(codec, crf)) for crf in LEVELS[codec]]
    quality = [psnr(images, out) for out, _, _ in made]
    sizes = [size for _, _, size in made]
    assert 42 > quality[0] > quality[1] > quality[2] > 15
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("codec", LEVELS)
def test_the_pixels_are_the_same_in_each_run(codec):
    how = Recompression(codec, LEVELS[codec][1])
    first, again = (through(noisy(), how) for _ in range(2))
    assert first[2] == again[2]
    assert all(np.array_equal(a, b) for a, b in zip(first[0], again[0], strict=True))


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs Linux")
@pytest.mark.parametrize("codec", LEVELS)
def test_no_thread_takes_real_time_priority(codec):
    coder = Recompressor(Recompression(codec, LEVELS[codec][0]), 160, 120)
    for image in noisy():
        for _ in coder.push(image):
            pass
        for thread in THREADS.iterdir():
            with suppress(ProcessLookupError):  # it has ended
                assert os.sched_getscheduler(int(thread.name)) == os.SCHED_OTHER


def test_sides_that_are_odd_stay_as_they_are():
    images = noisy(4, 161, 121)
    out, _, _ = through(images, Recompression("h264", 1))
    assert {image.shape for image in out} == {(121, 161, 3)}
    assert psnr([image[-1:] for image in images], [image[-1:] for image in out]) > 30


def test_only_the_frames_asked_for_come_and_at_their_positions():
    images = noisy()
    how = Recompression("h264", 32)
    whole = through(images, how)[0]
    found = list(recompressed(footage(images), how, [9, 2]))
    assert [position for position, _ in found] == [2, 9]
    assert all(np.array_equal(image, whole[position]) for position, image in found)


def test_a_frame_that_does_not_decode_is_left_out_and_the_others_keep_their_places():
    images = [numbered(number) for number in range(12)]
    found = recompressed(footage(images, bad={4}), Recompression("h264", 23), [3, 4, 5, 11])
    assert [(position, number_in(image)) for position, image in found] == [(3, 3), (5, 5), (11, 11)]


def test_no_more_frames_are_read_than_the_encoder_looks_ahead():
    seen = []

    class Endless:
        length = 1 << 20

        def frames(self, positions):
            for each in positions:
                seen.append(each)
                yield each, image

    image = noisy(1)[0]
    found = list(recompressed(Endless(), Recompression("h264", 40), [0, 7]))
    assert [position for position, _ in found] == [0, 7]
    assert len(seen) < 100


def test_a_size_that_changes_on_the_way_is_a_reason():
    images = [*noisy(2), *noisy(2, 80, 60)]
    with pytest.raises(UnusableVideoError, match=r"re-compressed to h264-crf40: .* from 160x120 px to 80x60"):
        through(images, Recompression("h264", 40))


def test_a_size_that_the_codec_does_not_take_is_a_reason():
    with pytest.raises(UnusableVideoError, match=r"re-compressed to h265-crf40 at 8x8 px: Invalid"):
        Recompressor(Recompression("h265", 40), 8, 8)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("h264", "libx264, x264 - core 1"),
        ("h265", "libx265, x265 (build "),
        ("vp9", "libvpx-vp9, libavcodec "),
    ],
)
def test_the_encoder_is_named_with_its_version_and_options(codec, text):
    told = encoder_text(Recompression(codec, 40))
    assert told.startswith(text) and told.endswith("crf=40") and "\n" not in told


def test_an_encoder_that_is_not_there_is_an_input_error(monkeypatch):
    monkeypatch.setitem(recompress._CODECS, "h264", recompress._CODECS["h264"]._replace(encoder="nothing"))
    with pytest.raises(InputError, match=r"--recompress h264-crf40: nothing does not work here"):
        encoder_text(Recompression("h264", 40))


def test_a_turned_video_is_compressed_upright(tmp_path):
    path = write(tmp_path / "a.mp4", map(numbered, range(6)), turn={"degrees": 90}, crf=5)
    with open_footage(Video(path, "real", "a", "all")) as opened:
        original = dict(opened.frames([0, 5]))
        found = dict(recompressed(opened, Recompression("h264", 1), [0, 5]))
    assert found[5].shape == (144, 80, 3)
    assert [np.abs(found[each].astype(int) - original[each]).mean() < 12 for each in (0, 5)] == [True, True]


@pytest.mark.skipif(not REAL.is_dir(), reason="no real videos here")
def test_a_real_video_loses_quality_level_by_level():
    with VideoFile(REAL / "lp_d18.mp4") as video:
        images = [image for _, image in video.frames(range(30))]
    made = [through(images, Recompression("h264", crf)) for crf in (23, 32, 40)]
    quality, sizes = [psnr(images, out) for out, _, _ in made], [size for _, _, size in made]
    assert quality[0] > quality[1] + 2 > quality[2] + 4
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
