"""Bad input to the server: exit code 2, one line, before Ray starts."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_jobs import serve
from tests.dfdet.serving.bundles import Made, make_once

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_once(tmp_path_factory)


@pytest.fixture
def refused(made: Made, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    monkeypatch.delenv("DFDET_TOKEN", raising=False)

    def line(*more: object, bundle: Path | None = None) -> str:
        given = ["--bundle", bundle or made.bundle, "--weights", made.weights, "--detector", "onnx", *more]
        assert serve.main([str(word) for word in given]) == 2
        return said()

    return line


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--port", "70000"], "port=70000: input should be less than or equal to 65535"),
        (["--replicas", "0"], "--replicas 0 0: give a count from 1"),
        (["--replicas", "3", "2"], "LOW <= HIGH"),
        (["--max_batch", "0"], "max_batch=0"),
        (["--timeout_s", "-1"], "timeout_s=-1"),
        (["--max_pixels", "1000000000"], "max_pixels=1000000000"),
        (["--precision", "int8"], "no model-int8.onnx for cpu, but float32; choose one of them"),
        (["--precision", "int4"], "--precision"),
        (["--threads", "99"], "--threads 99: Ray has 2 CPUs; give at most as many"),
        (["--device", "cuda"], "--device cuda: there is no GPU"),
        (["--scale", "1.1"], "the model sees crops of scale 1.3"),
        (["--token_file", "nowhere"], "/here/nowhere: cannot be read"),
        (["--host", "256.0.0.1"], "cannot be listened at"),
        (["--bogus", "1"], "--bogus"),
    ],
)
def test_a_flag_that_cannot_be_followed_is_refused(more: list[str], expected: str, refused: Refused) -> None:
    assert expected in refused(*more)


def test_a_bundle_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([]) == 2
    assert "--bundle" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "no bundle.json in it; give a folder that export.py wrote" in refused(bundle=tmp_path)


def test_a_bundle_whose_graph_was_changed_is_refused(refused: Refused, made: Made, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    (bundle / "model.onnx").write_bytes(b"other")
    assert "is not the file that bundle.json names" in refused(bundle=bundle)


def test_weights_that_are_none_are_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"none")
    assert "cannot be read as ONNX" in refused("--weights", tmp_path / "w.onnx")


def test_a_port_in_use_is_refused(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        told = refused("--port", other.getsockname()[1])
    assert "Address already in use" in told and "give another --port" in told


@pytest.mark.parametrize(
    ("token", "told"), [("", "is empty"), ("q-7", "shorter than 16"), ("ü" * 20, "not plain ASCII")]
)
def test_a_token_that_is_none_is_refused_and_not_shown(
    token: str, told: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token)
    line = refused("--token_file", tmp_path / "token")
    assert told in line
    assert not token or token not in line
