"""What a server plans, and how it finds faces in what clients send: limits of time, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dfdet.errors import ConfigError
from dfdet.serving.answer import Asked
from dfdet.serving.refused import RefusedError
from ray_jobs import serve_faces
from ray_jobs.serve_options import Serve, Share, check, plan, read_token
from shards.detect.faces import Faces
from tests.dfdet.serving.bundles import Made, crop, make_once, picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_once(tmp_path_factory)


def options(**values: object) -> Serve:
    return Serve.model_validate({"bundle": "b"} | values)


def finder(made: Made, **values: object) -> serve_faces.FaceFinder:
    given = options(bundle=made.bundle, weights=made.weights, detector="onnx", **values)
    return serve_faces.FaceFinder(check(given).setting)


@pytest.mark.parametrize(
    ("asked", "resources", "expected"),
    [
        ({}, {"CPU": 8}, (Share(1), Share(7), 7)),
        ({}, {"CPU": 64}, (Share(1), Share(8), 8)),
        ({"replicas": (1, 4)}, {"CPU": 8}, (Share(1), Share(1), 1)),
        ({"replicas": 2}, {"CPU": 2}, (Share(0.5), Share(0.5), 1)),
        ({"replicas": 2, "threads": 3}, {"CPU": 16}, (Share(1), Share(3), 3)),
        ({}, {"CPU": 1}, (Share(0.5), Share(0.5), 1)),
    ],
)
def test_replicas_take_what_there_is(asked: dict, resources: dict, expected: tuple) -> None:
    found = plan(options(**asked), resources, "cpu")
    assert found == expected
    most = options(**asked).low_high[1]
    assert most * (found[0].cpus + found[1].cpus) <= resources["CPU"]


def test_replicas_share_gpus() -> None:
    assert plan(options(replicas=4), {"CPU": 16, "GPU": 2.0}, "cuda")[1].gpus == 0.5
    assert plan(options(replicas=1), {"CPU": 16, "GPU": 2.0}, "cuda")[1].gpus == 1.0


def test_more_threads_than_the_cluster_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="--threads 9: Ray has 8 CPUs"):
        plan(options(threads=9), {"CPU": 8}, "cpu")


def test_the_token_of_a_file_goes_before_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("of-the-file-16-chars\n")
    monkeypatch.setenv("DFDET_TOKEN", "of-the-environment")
    assert read_token(options(token_file=tmp_path / "token")) == "of-the-file-16-chars"
    assert read_token(options()) == "of-the-environment"
    monkeypatch.delenv("DFDET_TOKEN")
    assert read_token(options()) is None


def test_faces_that_are_not_found_in_time_are_given_up(made: Made) -> None:
    with pytest.raises(RefusedError) as refused:
        finder(made)((made.clips / "0.mp4").read_bytes(), Asked(frames=8), -1.0)
    assert (refused.value.status, refused.value.code) == (504, "timeout")


def test_a_decoder_that_hangs_ends_its_process() -> None:
    code = "from ray_jobs.serve_faces import _ended_after\nimport time\nwith _ended_after(.2): time.sleep(60)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 1
    assert time.monotonic() - start < 55


def test_a_crowd_is_cut_to_the_surest_faces() -> None:
    class Crowd:
        name, weights_sha256 = "crowd", ""

        def __call__(self, frames: list) -> list[Faces]:
            count = 500
            boxes = np.zeros((count, 4), np.float32)
            return [
                Faces(boxes, np.linspace(1, 0, count, dtype=np.float32), np.zeros((count, 5, 2), np.float32))
            ]

    bounded = serve_faces._Bounded(Crowd(), time.monotonic() + 60)
    (faces,) = bounded([np.zeros((8, 8, 3), np.uint8)])
    assert len(faces.boxes) == len(faces.landmarks) == serve_faces.MAX_FACES
    assert faces.scores.min() > 0.9


def test_a_server_without_a_detector_takes_ready_crops_only(made: Made) -> None:
    find = finder(made, crops=True)
    with pytest.raises(RefusedError, match="send face crops, crops=true"):
        find(picture(1), Asked(), 10)
    assert len(find(crop(1), Asked(ready=True), 10).faces) == 1


def test_files_have_no_name_that_could_stay() -> None:
    with serve_faces._file(b"content") as path:
        assert path.read_bytes() == b"content"
        name = path
    assert not name.exists()
