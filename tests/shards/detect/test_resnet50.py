import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from dfdet.errors import WeightsError
from shards.detect.faces import Faces
from shards.detect.resnet50 import ResNet50Detector, make_network

THRESHOLD = 0.65
"""With random weights: over a hundred faces at 256x256, some at 96x64."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Random weights, halved so that the file is small."""
    torch.manual_seed(0)
    return {k: v.half() if v.is_floating_point() else v for k, v in make_network().state_dict().items()}


@pytest.fixture(scope="module")
def weights(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(tensors, path)
    return path


def opened(path: Path, **changes) -> ResNet50Detector:
    options = {"size_px": 640, "threshold": THRESHOLD, "nms": 0.4, "device": torch.device("cpu")}
    return ResNet50Detector(path, **options | changes)


@pytest.fixture(scope="module")
def detector(weights: Path) -> ResNet50Detector:
    return opened(weights)


def picture(seed: int, width: int = 256, height: int = 256) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


def same(one: Faces, other: Faces) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_faces_are_those_of_predict_jsons_to_within_its_rounding(
    detector: ResNet50Detector, tensors: dict[str, torch.Tensor]
) -> None:
    from retinaface.predict_single import Model

    theirs = Model(max_size=256)
    theirs.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    theirs.eval()
    image = picture(1)
    expected = theirs.predict_jsons(image, confidence_threshold=THRESHOLD, nms_threshold=0.4)
    (faces,) = detector([image])
    assert len(faces.scores) == len(expected) > 3
    boxes, landmarks = (np.array([face[key] for face in expected]) for key in ("bbox", "landmarks"))
    match = abs(faces.boxes[:, None] - boxes[None]).max(2).argmin(1)  # Nearly equal scores may swap.
    assert sorted(match) == list(range(len(expected)))
    np.testing.assert_allclose(faces.scores, np.array([face["score"] for face in expected])[match], atol=1e-5)
    assert abs(faces.boxes - boxes[match]).max() < 1.001
    assert abs(faces.landmarks - landmarks[match]).max() < 1.001
    assert (faces.landmarks != faces.landmarks.round()).mean() > 0.9


def test_faces_do_not_depend_on_what_else_is_in_the_call(weights: Path) -> None:
    batched = opened(weights, batch=3)
    frames = [
        picture(1, 96, 64),
        picture(2, 64, 96),
        picture(3, 96, 64),
        picture(4, 96, 64),
        picture(5, 96, 64),
    ]
    together, alone = batched(frames), [batched([frame])[0] for frame in frames]
    assert all(map(same, together, alone))
    assert all(len(faces.scores) for faces in together)
    assert not same(together[0], together[2])


def test_batches_find_the_faces_of_single_passes(detector: ResNet50Detector, weights: Path) -> None:
    frames = [picture(seed, 96, 64) for seed in range(4)]
    for one, many in zip(detector(frames), opened(weights, batch=4)(frames), strict=True):
        np.testing.assert_allclose(one.boxes, many.boxes, atol=0.01)
        np.testing.assert_allclose(one.landmarks, many.landmarks, atol=0.01)


def test_the_padding_is_of_the_mean_colour(detector: ResNet50Detector) -> None:
    mean = np.round(np.array([0.485, 0.456, 0.406]) * 255).astype(np.uint8)
    frame = picture(1, 96, 80)
    padded = np.tile(mean, (96, 96, 1))
    padded[:80] = frame
    (small,), (large,) = detector([frame]), detector([padded])
    assert len(small.scores) <= len(large.scores)
    distance = abs(small.boxes[:, None] - large.boxes[None]).max(2)
    assert distance.min(1).max() < 0.5


def test_large_frames_are_shrunk_and_faces_scaled_back(weights: Path) -> None:
    small = opened(weights, size_px=128)
    frame = np.repeat(np.repeat(picture(1, 128, 96), 2, axis=0), 2, axis=1)
    (large,), (direct,) = small([frame]), small([frame[::2, ::2]])
    np.testing.assert_allclose(large.boxes, direct.boxes * 2, rtol=1e-6)
    assert len(large.scores)


def test_safetensors_packed_or_not_give_the_same_faces(
    detector: ResNet50Detector, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.write(tmp_path / "w.safetensors")
    frame = picture(1, 96, 64)
    for name in ("w.safetensors", "w.zip"):
        assert same(opened(tmp_path / name)([frame])[0], detector([frame])[0])


def test_a_file_of_another_network_is_refused_by_name(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = {f"module.{name}": x for name, x in tensors.items() if "ssh1" in name}
    changed |= {name: x for name, x in tensors.items() if "ssh1" not in name}
    changed["body.conv1.weight"] = torch.zeros(1)
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as caught:
        opened(tmp_path / "other.pth")
    assert "30 missing (ssh1." in str(caught.value)
    assert "30 unexpected (module.ssh1." in str(caught.value)
    assert "1 of other shape (body.conv1.weight)" in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        opened(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02no", b"<html>", bytes(range(256)) * 9, b"}" * 99, b"(K\x01." * 4]
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_albumentations_is_never_imported() -> None:
    code = "import sys, shards.detect.resnet50; print([m for m in sys.modules if m.startswith('albu')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
