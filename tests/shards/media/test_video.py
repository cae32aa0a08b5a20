import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from shards.media.stream import Stream
from shards.media.video import UnusableVideoError, VideoFile
from tests.shards.numbered import number_in, numbered, write


def write_numbered(path: Path, count: int = 60, **how) -> Path:
    return write(path, map(numbered, range(count)), **{"crf": 20, "preset": "veryfast", "g": 250} | how)


def read(path: Path, indices=None, **how) -> dict[int, np.ndarray]:
    with VideoFile(path, **how) as video:
        return dict(video.frames(range(video.length) if indices is None else indices))


def numbers(path: Path, indices=None) -> dict[int, int]:
    return {index: number_in(image) for index, image in read(path, indices).items()}


def reason(path: Path) -> str:
    with pytest.raises(UnusableVideoError) as caught, VideoFile(path):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Every frame where it belongs

X264 = {"codec": "libx264", "preset": "medium"}
PLAIN = {"crf": None, "preset": None}
VPX = PLAIN | {"deadline": "good", "cpu_used": 5, "auto_alt_ref": 1, "b": "2M", "g": 20}
CLIPS = {
    "one long group with B-frames": ("a.mp4", X264 | {"bf": 3}),
    "no B-frames": ("a.mp4", X264 | {"bf": 0}),
    "short groups": ("a.mp4", X264 | {"g": 12}),
    "open groups": ("a.mp4", X264 | {"g": 12, "x264_params": "open-gop=1:scenecut=0"}),
    "open groups in Matroska": ("a.mkv", X264 | {"g": 12, "x264_params": "open-gop=1:scenecut=0"}),
    "intra refresh": ("a.mkv", X264 | {"x264_params": "intra-refresh=1:keyint=10"}),
    "only key frames": ("a.mp4", X264 | {"g": 1}),
    "H.264 in a transport stream": ("a.ts", X264 | {"g": 12}),
    "bare H.264": ("a.h264", X264),
    "interlaced": ("a.mp4", X264 | {"flags": "+ildct+ilme", "g": 12}),
    "fragmented": ("a.mp4", X264 | {"g": 12, "format": "ismv"}),
    "HEVC": ("a.mp4", {"codec": "libx265", "preset": "ultrafast", "x265_params": "log-level=none:keyint=20"}),
    "HEVC with open groups": (
        "a.mkv",
        {"codec": "libx265", "preset": "fast", "x265_params": "log-level=none:keyint=15:open-gop=1"},
    ),
    "AV1": ("a.mp4", {"codec": "libsvtav1", "preset": 12, "crf": 20, "g": 20}),
    "VP9 with hidden frames": (
        "a.webm",
        VPX | {"codec": "libvpx-vp9"},
    ),
    "VP8 with hidden frames": (
        "a.webm",
        VPX | {"codec": "libvpx"},
    ),
    "MPEG-4 in MP4, as OpenCV writes it": ("a.mp4", PLAIN | {"codec": "mpeg4", "b": "4M", "g": 12}),
    "MPEG-4 with B-frames in AVI": ("a.avi", PLAIN | {"codec": "mpeg4", "b": "4M", "bf": 2, "g": 12}),
    "Motion JPEG in AVI": ("a.avi", PLAIN | {"codec": "mjpeg", "pix_fmt": "yuvj420p", "g": None}),
    "MPEG-2": ("a.mpg", PLAIN | {"codec": "mpeg2video", "b": "4M", "bf": 2, "g": 12}),
    "Windows Media": ("a.wmv", PLAIN | {"codec": "wmv2", "b": "4M", "g": 12}),
    "Flash": ("a.flv", PLAIN | {"codec": "flv", "b": "4M", "g": 12}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CLIPS)
def clip(request, tmp_path_factory) -> Path:
    name, how = CLIPS[request.param]
    how = {"crf": 20, "preset": "veryfast", "g": 250} | how
    how = {key: value for key, value in how.items() if value is not None}
    return write(tmp_path_factory.mktemp("clip") / name, map(numbered, range(60)), **how)


def test_every_frame_is_at_its_index(clip):
    assert numbers(clip) == {index: index for index in range(60)}


def test_frames_apart_are_those_of_a_full_read(clip):
    everything = read(clip)
    for wanted in ([0], [59], [7, 8, 31], [3, 29, 30, 58], range(1, 60, 9)):
        found = read(clip, wanted)
        assert list(found) == list(wanted)
        assert all(np.array_equal(image, everything[index]) for index, image in found.items())


def test_a_file_gives_frames_again_and_backwards(clip):
    with VideoFile(clip) as video:
        found = [number_in(dict(video.frames([index]))[index]) for index in (40, 2, 41, 39, 59, 0)]
    assert found == [40, 2, 41, 39, 59, 0]


def test_more_decoder_threads_give_the_same_frames(clip):
    for index, image in read(clip, [5, 33, 59]).items():
        assert np.array_equal(read(clip, [5, 33, 59], threads=2)[index], image)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_keeps_every_frame(tmp_path, suffix):
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 60)).tolist()
    path = write_numbered(tmp_path / f"a{suffix}", times=times, g=12)
    assert numbers(path) == {index: index for index in range(60)}
    assert numbers(path, [11, 37]) == {11: 11, 37: 37}


def test_frames_before_the_edit_list_do_not_count(tmp_path):
    # Times below zero make the muxer write a list that starts at zero.
    path = write_numbered(tmp_path / "a.mp4", times=list(range(-5, 55)), bf=0)
    with VideoFile(path) as video:
        assert video.length == 55
    assert numbers(path, [0, 20, 54]) == {0: 5, 20: 25, 54: 59}


def test_one_frame_is_a_video(tmp_path):
    assert numbers(write_numbered(tmp_path / "a.mp4", 1)) == {0: 0}


def test_sparse_frames_need_no_second_opening_and_few_packets(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 200, g=20, bf=0, sc_threshold=0)
    sent = []
    decode = Stream.decode
    monkeypatch.setattr(Stream, "rewind", lambda self: pytest.fail("opened again"))
    monkeypatch.setattr(
        Stream, "decode", lambda self, packet, **how: sent.append(packet) or decode(self, packet, **how)
    )
    assert numbers(path, [1, 102, 163]) == {1: 1, 102: 102, 163: 163}
    assert sum(packet is not None for packet in sent) == 2 + 3 + 4


def test_frames_are_ascending_and_unique_whatever_the_order_asked(tmp_path):
    assert list(read(write_numbered(tmp_path / "a.mp4", 9), [5, 1, 5, 0])) == [0, 1, 5]


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_outside_is_refused(tmp_path, index):
    with pytest.raises(IndexError, match="asked of 9"):
        read(write_numbered(tmp_path / "a.mp4", 9), [index])


def test_size_and_rate_are_told(tmp_path):
    with VideoFile(write_numbered(tmp_path / "a.mp4", 9)) as video:
        assert (video.width, video.height, video.length, video.fps) == (144, 80, 9, 25.0)


# Upright


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [{}, {"hflip": True}, {"vflip": True}])
def test_frames_are_upright(tmp_path, degrees, mirror):
    lying = numbered(37)
    path = write(tmp_path / "a.mp4", [lying] * 3, turn={"degrees": degrees} | mirror, crf=5)
    upright = np.rot90(lying, degrees // 90)
    upright = upright[:, ::-1] if "hflip" in mirror else upright[::-1] if "vflip" in mirror else upright
    with VideoFile(path) as video:
        ((_, image),) = video.frames([1])
        assert (video.height, video.width) == upright.shape[:2]
    assert image.flags["C_CONTIGUOUS"]
    assert np.abs(image.astype(int) - upright).mean() < 12


# Colours

MATRICES = {"bt709": (1, 0.2126, 0.0722), "bt601": (6, 0.299, 0.114), "bt2020": (9, 0.2627, 0.0593)}
COLOURS = [(200, 50, 30), (30, 180, 60), (40, 60, 220), (250, 250, 250), (5, 5, 5), (224, 172, 140)]


def flat(colour, matrix: str, full: bool, pix_fmt: str, size=(64, 48)) -> av.VideoFrame:
    """A frame of one colour, converted by the definition of the matrix."""
    code, red, blue = MATRICES[matrix]
    r, g, b = (value / 255 for value in colour)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    depth = 10 if "10" in pix_fmt else 8
    if full:
        top = 2**depth - 1
        values = [luma * top, *(each * top + 2 ** (depth - 1) for each in chroma)]
    else:
        values = [
            each * 2 ** (depth - 8) for each in (16 + 219 * luma, *(128 + 224 * each for each in chroma))
        ]
    frame = av.VideoFrame(*size, pix_fmt)
    for plane, value in zip(frame.planes, values, strict=False):
        kind = np.uint16 if depth == 10 else np.uint8
        plane.update(np.full(plane.buffer_size // kind().itemsize, round(value), kind).tobytes())
    frame.colorspace, frame.color_range = code, 2 if full else 1
    return frame


def encoded_colour(path: Path, colour, matrix, full, pix_fmt, *, tagged=True, codec="libx264", size=(64, 48)):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if tagged:
            stream.codec_context.colorspace = MATRICES[matrix][0]
            stream.codec_context.color_range = 2 if full else 1
        container.mux(stream.encode(flat(colour, matrix, full, pix_fmt, size)))
        container.mux(stream.encode(None))
    return read(path)[0]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p", "yuv420p10le"])
def test_the_stream_s_matrix_and_range_give_the_colours(tmp_path, matrix, full, pix_fmt):
    for colour in COLOURS:
        image = encoded_colour(tmp_path / "a.mp4", colour, matrix, full, pix_fmt)
        assert np.abs(image.astype(int) - colour).max() <= 3


def test_a_stream_that_names_no_matrix_is_taken_as_bt601(tmp_path):
    image = encoded_colour(tmp_path / "a.mp4", COLOURS[0], "bt601", False, "yuv420p", tagged=False)
    assert np.abs(image.astype(int) - COLOURS[0]).max() <= 3


def test_odd_sizes_keep_their_last_row_and_column(tmp_path):
    how = {"codec": "libx264", "size": (63, 47)}
    image = encoded_colour(tmp_path / "a.mp4", COLOURS[0], "bt709", False, "yuv444p", **how)
    assert image.shape == (47, 63, 3)
    assert np.abs(image.astype(int) - COLOURS[0]).max() <= 3


def test_odd_sizes_with_halved_chroma_too(tmp_path):
    path = tmp_path / "a.avi"
    image = encoded_colour(path, COLOURS[0], "bt601", False, "yuv420p", codec="ffv1", size=(63, 47))
    assert image.shape == (47, 63, 3)
    assert np.abs(image.astype(int) - COLOURS[0]).max() <= 3


def test_grey_videos_become_rgb(tmp_path):
    grey = np.repeat(numbered(5)[..., :1], 3, axis=2)
    assert np.array_equal(read(write(tmp_path / "a.mkv", [grey], codec="ffv1", pix_fmt="gray"))[0], grey)


def test_palettes_become_rgb(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32], image[:, 32:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(image).quantize(4).save(tmp_path / "a.gif")
    assert np.array_equal(read(tmp_path / "a.gif")[0], image)


def test_pixels_are_those_of_opencv(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 3)
    theirs = cv2.VideoCapture(str(path)).read()[1][..., ::-1]
    assert np.array_equal(read(path, [0])[0], theirs)


# Damaged files


def packets_of(path: Path) -> list[tuple[int, int, int]]:
    """Index, offset and size of each packet in decoding order."""
    with av.open(str(path)) as container:
        found = [(packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    order = sorted(pts for pts, *_ in found)
    return [(order.index(pts), offset, size) for pts, offset, size in found]


def test_a_truncated_file_gives_what_is_there(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", g=12)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    found = numbers(path)
    assert 10 < len(found) < 60
    assert found == {index: index for index in range(len(found))}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_damaged_packet_spoils_its_group_and_no_more(tmp_path, suffix):
    path = write_numbered(tmp_path / f"a{suffix}", g=20, bf=2, sc_threshold=0)
    sound = read(path)
    packets = packets_of(path)
    _, offset, size = packets[22]
    data = bytearray(path.read_bytes())
    data[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(data)
    found = read(path)
    spoilt = {index for index, *_ in packets[22:40]}
    assert set(found) == set(range(60)) - spoilt
    assert all(np.array_equal(image, sound[index]) for index, image in found.items())


def test_the_damage_is_told(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", g=20)
    _, offset, size = packets_of(path)[3]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    with VideoFile(path) as video:
        list(video.frames(range(20)))
        assert video.problem is not None and video.problem.startswith("does not decode")


def test_damage_in_a_counted_file_moves_no_index(tmp_path):
    path = write_numbered(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p", crf=None, preset=None)
    _, offset, size = packets_of(path)[9]
    data = bytearray(path.read_bytes())
    data[offset + 2 : offset + size] = bytes(size - 2)
    path.write_bytes(data)
    found = numbers(path)
    assert len(found) >= 58
    assert all(number in (index, index + 1) for index, number in found.items())


def test_a_file_without_its_index_is_no_video(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 9)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert reason(path).startswith("is no video: ")


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert reason(tmp_path / "a.mp4") == "is empty"


def test_a_text_file_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text("<html>404</html>" * 100)
    assert reason(tmp_path / "a.mp4") == "is no video: Invalid data found when processing input"


def test_sound_alone_has_no_video_stream(tmp_path):
    assert reason(write_sound(tmp_path / "a.mp4")) == "has no video stream"


def write_sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 144, 80, "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(0), "rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def test_the_cover_of_an_album_is_no_video(tmp_path):
    path = write_sound(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert reason(path) == "has no video stream"


def test_a_video_without_packets_has_no_frames(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 9)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    assert reason(path).startswith(("has no frames", "is no video"))


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_frames_beyond_the_limit_are_refused(tmp_path, monkeypatch, codec):
    path = write(tmp_path / "a.mp4", [np.zeros((1000, 1008, 3), np.uint8)], codec=codec, pix_fmt="yuvj420p")
    assert list(read(path)) == [0]
    monkeypatch.setattr("shards.media.stream.MAX_PIXELS", 1_000_000)
    assert reason(path) == "frames of 1008x1000 px exceed 1 megapixels"


def test_a_frame_that_grows_beyond_the_limit_on_the_way_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.stream.MAX_PIXELS", 1_000_000)
    small = write(tmp_path / "s.h264", [np.zeros((96, 96, 3), np.uint8)] * 3)
    large = write(tmp_path / "l.h264", [np.zeros((1000, 1008, 3), np.uint8)] * 3)
    (tmp_path / "a.h264").write_bytes(small.read_bytes() + large.read_bytes())
    assert {image.shape for image in read(tmp_path / "a.h264").values()} == {(96, 96, 3)}


def test_bad_text_in_the_metadata_does_no_harm(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 144, 80
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(0), "rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfeTLE"))
    assert list(read(path)) == [0]


# Paths


def test_a_missing_file_says_so(tmp_path):
    assert reason(tmp_path / "a.mp4") == "cannot be read: No such file or directory"


def test_a_folder_is_no_file(tmp_path):
    assert reason(tmp_path) == "is no regular file"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    assert reason(tmp_path / "a.mp4") == "is no regular file"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "a.mp4").symlink_to("a.mp4")
    assert reason(tmp_path / "a.mp4") == "cannot be read: Too many levels of symbolic links"


def test_a_link_to_a_video_is_read(tmp_path):
    write_numbered(tmp_path / "b.mp4", 5)
    (tmp_path / "a.mp4").symlink_to("b.mp4")
    assert len(read(tmp_path / "a.mp4")) == 5


@pytest.mark.parametrize(
    "name", ["concat:a.mp4", "-x.mp4", "http:a.mp4", "%03d.mp4", "a\nb'\".mp4", "видео.mp4"]
)
def test_a_name_is_never_more_than_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "made.mp4", 5).rename(tmp_path / name)
    assert len(read(Path(name))) == 5


@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8", "x.ffconcat"])
def test_a_list_of_other_files_opens_none(tmp_path, name):
    write_numbered(tmp_path / "secret.mp4", 5)
    concat = f"ffconcat version 1.0\nfile 'secret.mp4'\nfile '{tmp_path}/secret.mp4'\n"
    (tmp_path / name).write_text(concat)
    assert reason(tmp_path / name).startswith("is no video: ")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(hls)
    assert reason(tmp_path / name).startswith("is no video: ")


def test_that_list_would_open_them_without_the_guard(tmp_path):
    write_numbered(tmp_path / "secret.mp4", 5)
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    with (tmp_path / "x.mp4").open("rb") as file, av.open(file) as container:
        assert len(list(container.decode(video=0))) == 5


def test_real_videos_read_as_opencv_reads_them():
    folder = Path(os.environ.get("DFDET_REAL", Path(__file__).parents[3] / "shared" / "real")) / "videos"
    paths = sorted(folder.glob("*.mp4"))[:3]
    if not paths:
        pytest.skip("no real videos here")
    for path in paths:
        capture = cv2.VideoCapture(str(path))
        theirs = [capture.read()[1][..., ::-1] for _ in range(41)]
        for index, image in read(path, [0, 17, 40]).items():
            assert np.array_equal(image, theirs[index])
