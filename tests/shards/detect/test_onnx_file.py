import os
from pathlib import Path

import av
import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dfdet.errors import WeightsError
from shards.detect.onnx_file import OnnxDetector
from tests.shards.marker_detector import SCORE, draw_face, write_marker_detector

REAL = Path(os.environ.get("DFDET_REAL", Path(__file__).parents[4] / "shared" / "real"))
OPTIONS = {"size_px": 640, "threshold": 0.5, "nms": 0.4}


@pytest.fixture(scope="module")
def marker_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marker_detector(tmp_path_factory.mktemp("weights") / "marker.onnx")


@pytest.fixture(scope="module")
def marker(marker_file: Path) -> OnnxDetector:
    return OnnxDetector(marker_file, **OPTIONS)


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def changed(source: Path, target: Path, change) -> Path:
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, target)
    return target


def set_input(graph: onnx.GraphProto, *shape: int | str) -> None:
    graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))


def to_logits(graph: onnx.GraphProto) -> None:
    """The scores' logarithms plus 3: a softmax gives the same again."""
    next(node for node in graph.node if node.output[0] == "conf").output[0] = "probabilities"
    three = numpy_helper.from_array(np.float32(3), "three")
    graph.initializer.append(three)
    graph.node.append(helper.make_node("Log", ["probabilities"], ["logs"]))
    graph.node.append(helper.make_node("Add", ["logs", "three"], ["conf"]))


def to_channels_last(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.input[:] = ["first" if name == "input" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Transpose", ["input"], ["first"], perm=[0, 3, 1, 2]))
    set_input(graph, "n", "height", "width", 3)


def reorder(graph: onnx.GraphProto) -> None:
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.extend(outputs[::-1])


def fix_size(graph: onnx.GraphProto) -> None:
    set_input(graph, 1, 3, 320, 320)


def one_face(detector: OnnxDetector, frame: np.ndarray, truth: np.ndarray, tolerance: float = 0.01) -> None:
    (faces,) = detector([frame])
    assert len(faces.scores) == 1
    np.testing.assert_allclose(faces.landmarks[0], truth, atol=tolerance)


def test_a_face_is_found_where_it_was_drawn(marker: OnnxDetector) -> None:
    frame = grey(320, 240)
    truth = draw_face(frame, 101, 88)
    (faces,) = marker([frame])
    np.testing.assert_allclose(faces.boxes, [[69, 56, 133, 120]], atol=0.01)
    np.testing.assert_allclose(faces.landmarks, truth[None], atol=0.01)
    np.testing.assert_allclose(faces.scores, [SCORE], atol=1e-6)


def test_every_place_and_size_gives_one_face(marker: OnnxDetector) -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        frame, size = grey(320, 240), 2 * int(random.integers(5, 45))
        x, y = (int(random.integers(size // 2, side - size // 2 + 1)) for side in (320, 240))
        one_face(marker, frame, draw_face(frame, x, y, size))


def test_several_faces_are_told_apart(marker: OnnxDetector) -> None:
    frame = grey(640, 480)
    truths = [draw_face(frame, *place) for place in ((60, 60, 40), (240, 100, 80), (500, 400, 64))]
    (faces,) = marker([frame])
    assert len(faces.scores) == 3
    ordered = faces.landmarks[np.argsort(faces.boxes[:, 0])]
    np.testing.assert_allclose(ordered, truths, atol=0.01)


def test_a_frame_without_a_face_gives_none(marker: OnnxDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    assert [len(faces.scores) for faces in marker([grey(320, 240), noise])] == [0, 0]


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1000, 1500), (1920, 1080)])
def test_faces_of_shrunk_frames_are_in_pixels_of_the_frame(
    marker: OnnxDetector, width: int, height: int
) -> None:
    frame = grey(width, height)
    one_face(marker, frame, draw_face(frame, 700, 400), tolerance=0.5)


def test_faces_survive_video_compression(marker: OnnxDetector, tmp_path: Path) -> None:
    frame = grey(320, 240)
    truth = draw_face(frame, 101, 88, 48)
    with av.open(str(tmp_path / "clip.mp4"), "w") as video:
        stream = video.add_stream("libx264", rate=25, options={"crf": "32"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        video.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        video.mux(stream.encode())
    with av.open(str(tmp_path / "clip.mp4")) as video:
        decoded = next(video.decode(video=0)).to_ndarray(format="rgb24")
    assert (decoded != frame).any()
    one_face(marker, decoded, truth, tolerance=0.5)


def test_frames_of_any_size_are_taken_in_one_call(marker: OnnxDetector) -> None:
    frames = [grey(width, height) for width, height in ((320, 240), (200, 333), (320, 240))]
    truths = [draw_face(frame, 60 + 20 * number, 100) for number, frame in enumerate(frames)]
    for found, truth in zip(marker(frames), truths, strict=True):
        np.testing.assert_allclose(found.landmarks, truth[None], atol=0.01)


def test_faces_do_not_depend_on_what_else_is_in_the_call(marker: OnnxDetector) -> None:
    random = np.random.default_rng(0)
    frames = [cv2.blur(random.integers(0, 256, (240, 320, 3), np.uint8), (3, 3)) for _ in range(3)]
    for number, frame in enumerate(frames):
        draw_face(frame, 80 + 50 * number, 120)
    alone, together = [marker([frame])[0] for frame in frames], marker(frames)
    for one, other in zip(alone, together, strict=True):
        assert [part.tobytes() for part in one] == [part.tobytes() for part in other]
        assert len(one.scores) == 1


def test_no_frames_give_no_faces(marker: OnnxDetector) -> None:
    assert marker([]) == []


@pytest.mark.parametrize("change", [to_logits, to_channels_last, reorder, fix_size])
def test_other_layouts_of_a_file_are_found_out(marker_file: Path, tmp_path: Path, change) -> None:
    detector = OnnxDetector(changed(marker_file, tmp_path / "other.onnx", change), **OPTIONS)
    frame = grey(320, 240)
    truth = draw_face(frame, 200, 100)
    one_face(detector, frame, truth)
    np.testing.assert_allclose(detector([frame])[0].scores, [SCORE], atol=1e-6)


def test_a_file_of_one_size_shrinks_larger_frames_to_it(marker_file: Path, tmp_path: Path) -> None:
    detector = OnnxDetector(changed(marker_file, tmp_path / "fixed.onnx", fix_size), **OPTIONS)
    frame = grey(640, 480)
    one_face(detector, frame, draw_face(frame, 300, 200), tolerance=0.3)


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.output.pop(),
        lambda graph: set_input(graph, "n", 4, "height", "width"),
        lambda graph: set_input(graph, 8, 3, "height", "width"),
        lambda graph: graph.output[2].CopyFrom(graph.output[0]),
    ],
    ids=["two outputs", "four channels", "batch of eight", "an output twice"],
)
def test_a_file_of_another_kind_is_refused_and_described(marker_file: Path, tmp_path: Path, change) -> None:
    path = changed(marker_file, tmp_path / "bad.onnx", change)
    with pytest.raises(WeightsError) as caught:
        OnnxDetector(path, **OPTIONS)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_a_classifier_is_refused_with_its_inputs_and_outputs(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["logits"])], "g", [value], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "c.onnx",
    )
    with pytest.raises(WeightsError, match=r"no RetinaFace-style file.*inputs pixels .*outputs logits "):
        OnnxDetector(tmp_path / "c.onnx", **OPTIONS)


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x06" * 500])
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(WeightsError, match="cannot be read as ONNX"):
        OnnxDetector(tmp_path / "bad.onnx", **OPTIONS)


@pytest.mark.skipif(not (REAL / "weights").is_dir(), reason="no real material")
def test_real_faces_are_found_with_eyes_above_nose_above_mouth() -> None:
    detector = OnnxDetector(REAL / "weights" / "retinaface_mnet025.onnx", **OPTIONS)
    frames = [cv2.imread(str(path))[..., ::-1] for path in sorted((REAL / "faces" / "real").iterdir())[:24]]
    found = detector(frames)
    assert [len(faces.scores) for faces in found].count(1) >= 23
    left_eye, right_eye, nose, left_mouth, right_mouth = np.stack(
        [faces.landmarks[0] for faces in found if len(faces.scores)]
    ).transpose(1, 2, 0)
    assert (left_eye[0] < right_eye[0]).all() and (left_mouth[0] < right_mouth[0]).all()
    assert (np.maximum(left_eye[1], right_eye[1]) < nose[1]).all()
    assert (nose[1] < np.minimum(left_mouth[1], right_mouth[1])).all()


@pytest.mark.skipif(not (REAL / "weights").is_dir(), reason="no real material")
def test_real_faces_of_a_group_are_all_found() -> None:
    detector = OnnxDetector(REAL / "weights" / "retinaface_mnet025.onnx", **OPTIONS)
    frame = cv2.imread(str(REAL / "photos" / "2007_007763.jpg"))[..., ::-1]
    assert len(detector([frame])[0].scores) == 7
