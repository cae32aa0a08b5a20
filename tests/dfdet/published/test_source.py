"""What counts as published, and downloads from a hub: here a server of this test."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from dfdet.errors import ConfigError, WeightsError
from dfdet.published import is_published, load
from tests.dfdet.published.authors import Reference, gend_folder


class Hub:
    """The part of a hub's interface that the download of a file needs."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                hub.asked.append(self.path)
                content = hub.files.get(self.path)
                self.send_response(404 if content is None else 200)
                if content is None:
                    self.send_header("X-Error-Code", "RepoNotFound")
                else:
                    self.send_header("X-Repo-Commit", "c" * 40)
                    self.send_header("ETag", hashlib.sha256(content).hexdigest())
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if body and content:
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = gend_folder(tmp_path / "gend", reference.state_dict(), backbone="clip", head="LinearNorm")
    files = {
        f"/them/GenD/resolve/{revision}/{name}": (folder / name).read_bytes()
        for revision in ("main", "v2")
        for name in ("config.json", "model.safetensors")
    }
    files["/them/tower/resolve/main/config.json"] = json.dumps({"model_type": "clip"}).encode()
    hub = Hub(files)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patched = {"HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "cache")}
    for name, value in patched.items():  # as the client's environment variables set them
        monkeypatch.setattr(constants, name, value)
    yield hub
    hub.close()


def test_an_id_is_downloaded_and_gives_the_logits(hub: Hub, reference: Reference, images: Tensor) -> None:
    detector = load("hf:them/GenD").detector
    with torch.no_grad():
        ours = detector.head(detector(images), None)
    torch.testing.assert_close(ours, reference(images), rtol=0, atol=1e-5)


def test_only_config_and_weights_are_asked_of_the_hub(hub: Hub) -> None:
    load("hf:them/GenD")
    assert {path.rpartition("/")[2] for path in hub.asked} == {"config.json", "model.safetensors"}


def test_a_revision_is_asked_for_by_its_name(hub: Hub) -> None:
    load("hf:them/GenD@v2")
    assert hub.asked and all("/resolve/v2/" in path for path in hub.asked)


def test_a_tower_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    with pytest.raises(WeightsError, match=r"names no backbone and head.*--model\.pretrained"):
        load("hf:them/tower")
    assert not any("safetensors" in path for path in hub.asked)


def test_an_unknown_id_names_file_cache_and_what_to_do_by_hand(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        load("hf:them/gone")
    message = str(refused.value)
    assert message.startswith("hf:them/gone: config.json is neither in the cache")
    assert str(tmp_path / "cache") in message and "by hand" in message and "\n" not in message


def test_a_copy_in_the_cache_is_used_without_a_request(hub: Hub) -> None:
    load("hf:them/GenD")
    hub.asked.clear()
    assert load("hf:them/GenD").kind == "GenD's Hugging Face weights"
    assert hub.asked == []


def test_without_network_and_cache_one_line_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"hf:them/GenD: config\.json is neither in the cache") as refused:
        load("hf:them/GenD")
    assert "\n" not in str(refused.value)
    assert hub.asked == []


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a/b c"])
def test_an_id_of_another_form_is_refused_without_a_request(source: str, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="not of the form hf:OWNER/NAME"):
        load(source)
    assert hub.asked == []


def test_ids_files_and_their_folders_are_published(tmp_path: Path, reference: Reference) -> None:
    folder = gend_folder(tmp_path / "gend", reference.state_dict(), backbone="clip", head="LinearNorm")
    assert all(map(is_published, ["hf:a/b", str(folder), str(folder / "model.safetensors")]))


def test_our_folders_and_what_is_not_there_are_not_published(tmp_path: Path, reference: Reference) -> None:
    ours = gend_folder(tmp_path / "ours", reference.state_dict(), run={"name": "x"})
    assert not any(map(is_published, [str(ours), str(tmp_path), str(tmp_path / "gone.ckpt")]))
