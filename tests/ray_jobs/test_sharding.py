"""Detector actors planned and asked, without a cluster."""

import re

import numpy as np
import pytest

from dfdet.errors import ConfigError, InputError
from dfdet.schema import CropRecipe
from ray_jobs.sharding import Actors, Remote, Task, _preparer, _with_weights, plan_actors
from shards.detect import DetectorOptions, open_detector, resolve
from shards.options import VideoSets
from shards.videos import Making
from tests.shards.marker_detector import draw_face, write_marker_detector


def test_each_gpu_gets_a_detector():
    assert plan_actors("auto", "retinaface", 0, {"CPU": 8, "GPU": 3}) == Actors(3, 1.0)


def test_more_actors_than_gpus_share_them():
    assert plan_actors("cuda", "retinaface", 4, {"GPU": 2}) == Actors(4, 0.5)


@pytest.mark.parametrize(
    ("device", "detector", "gpus"), [("auto", "retinaface", 0), ("cpu", "retinaface", 2), ("auto", "onnx", 2)]
)
def test_without_gpus_to_use_there_are_no_actors_unless_asked_for(device, detector, gpus):
    assert plan_actors(device, detector, 0, {"GPU": gpus}) == Actors(0, 0.0)
    assert plan_actors(device, detector, 2, {"GPU": gpus}) == Actors(2, 0.0)


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match=re.escape("--device cuda: Ray has no GPU")):
        plan_actors("cuda", "retinaface", 0, {"CPU": 8})


@pytest.fixture
def make(tmp_path):
    weights = write_marker_detector(tmp_path / "marker.onnx")
    detector = resolve(DetectorOptions(kind="onnx", weights=weights))
    recipe = CropRecipe(detector="marker", detector_weights_sha256=detector.weights_sha256)
    return Making(VideoSets(dataset="own", root=tmp_path, out=tmp_path), "own", recipe, detector)


class Actor:
    """An actor's handle whose calls end at once, in this process."""

    def __init__(self, detector):
        self.detector, self.sent = detector, []
        self.detect = self

    def remote(self, frames):
        self.sent = frames
        return self.detector(frames)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1280, 720)])
def test_an_actor_finds_the_faces_that_the_detector_here_finds(width, height, make, monkeypatch):
    frame = np.full((height, width, 3), 120, np.uint8)
    draw_face(frame, 160, 120, 64)
    detector = open_detector(make.detector)
    actor = Actor(detector)
    monkeypatch.setattr("ray.get", lambda value: value)
    (here,), (there,) = detector([frame]), Remote(make, actor)([frame])
    assert len(here.scores) == 1
    for mine, its in zip(here, there, strict=True):
        assert np.array_equal(mine, its)
    assert max(actor.sent[0].shape) <= 640


def test_a_node_without_the_weights_gets_them_with_the_task(make, tmp_path, monkeypatch):
    monkeypatch.setattr("ray_jobs.sharding.DETECTORS", str(tmp_path / "kept"))
    data = make.detector.weights.read_bytes()
    make.detector.weights.unlink()
    moved = _with_weights(make, lambda: data)
    assert moved.detector.weights != make.detector.weights
    assert open_detector(moved.detector).weights_sha256 == make.detector.weights_sha256
    assert _with_weights(make, lambda: data) == moved
    assert len(list((tmp_path / "kept").rglob("*.onnx"))) == 1  # of all workers of a node


def test_a_root_that_a_node_does_not_see_is_told(make, tmp_path):
    elsewhere = make.options.model_copy(update={"root": tmp_path / "elsewhere"})
    task = Task(Making(elsewhere, "own", make.recipe, make.detector), None)
    with pytest.raises(InputError, match="does not see --root"):
        _preparer(task)
