from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from dfdet.config import Config, Data
from dfdet.data import remote
from dfdet.data.cache import Cache
from dfdet.data.index import open_sets
from dfdet.data.remote import ObjectError, Remote, StorageError, check_url, fetch, redact
from dfdet.data.sets import open_run_data
from dfdet.errors import ShardSetError
from dfdet.schema import Manifest
from tests.dfdet.data.storage import serving

SECRET = "wJalr/K7MDENG"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


def stored(server, tmp_path, name="a.tar", data=b"shard" * 1000) -> Remote:
    (tmp_path / "served" / name).write_bytes(data)
    return Remote(f"{server.url}/{name}", len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "simplecache::s3://bucket/a.json",
        "s3://bucket/a.zip::b.json",
        "ftp://host/a.json",
        "memory://a.json",
        "github://a:b@/c",
    ],
)
def test_other_schemes_and_chains_are_refused(url):
    with pytest.raises(ShardSetError, match=r"not a URL that can be read|holds a user"):
        open_sets([url])


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/a.json",
        f"s3://AKIA:{SECRET}@bucket/a.json",
        f"https://{SECRET.replace('/', '')}@host/a.json",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(url):
    with pytest.raises(ShardSetError, match=r"holds a user or password.*give the URL without it") as error:
        check_url(url)
    assert "wJalr" not in str(error.value) and "K7MDENG" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["http://host:8080/a@b/c.json", "s3://bucket/x:y/c@d.json", "hf://datasets/me/set@main/a.json"],
)
def test_at_signs_and_ports_are_no_passwords(url):
    assert check_url(url) == url


def test_a_signed_manifest_is_refused_and_its_signature_not_shown():
    with pytest.raises(ShardSetError, match=r"host/a.json\?\.\.\.: has a query") as error:
        check_url(f"https://host/a.json?X-Amz-Signature={SECRET}")
    assert SECRET not in str(error.value)
    assert SECRET in check_url(f"https://host/a.tar?X-Amz-Signature={SECRET}", query=True)


@pytest.mark.parametrize("url", ["https://host/a/../b.json", "https://host/%2e%2e/b.json"])
def test_dots_in_a_url_are_refused(url):
    with pytest.raises(ShardSetError, match=r"'\.\.'"):
        check_url(url)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(remote.PACKAGES, "gs", "gcsfs_not_here")
    with pytest.raises(ShardSetError, match="pip install gcsfs_not_here"):
        open_sets(["gs://bucket/a.json"])


def test_an_object_comes_whole(server, tmp_path):
    fetch(stored(server, tmp_path), tmp_path / "out", 0)
    assert (tmp_path / "out").read_bytes() == b"shard" * 1000


def test_passing_faults_are_tried_again(server, tmp_path):
    wanted = stored(server, tmp_path)
    server.fail["a.tar"], server.cut["a.tar"] = 2, 1
    fetch(wanted, tmp_path / "out", 3)
    assert (tmp_path / "out").read_bytes() == b"shard" * 1000
    assert server.counts["a.tar"] == 4


@pytest.mark.parametrize("fault", ["fail", "cut"])
def test_tries_end_with_one_clear_error(server, tmp_path, fault):
    wanted = stored(server, tmp_path)
    getattr(server, fault)["a.tar"] = 99
    with pytest.raises(StorageError, match=r"cannot be fetched, 3 times tried \(.*data.retries") as error:
        fetch(wanted, tmp_path / "out", 2)
    assert server.counts["a.tar"] == 3 and "\n" not in str(error.value)


def test_a_server_that_is_away_is_said(server, tmp_path):
    wanted = stored(server, tmp_path)
    server.close()
    with pytest.raises(StorageError, match="cannot be fetched, 2 times tried"):
        fetch(wanted, tmp_path / "out", 1)


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_object_is_said_at_once(server, tmp_path, status):
    wanted = stored(server, tmp_path)
    server.status["a.tar"] = status
    with pytest.raises(ObjectError, match="no such object: it was removed") as error:
        fetch(wanted, tmp_path / "out", 9)
    assert error.value.reason == "gone" and server.counts["a.tar"] == 1


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_names_where_credentials_belong(server, tmp_path, status):
    wanted = stored(server, tmp_path)
    server.status["a.tar"] = status
    with pytest.raises(StorageError, match=rf"access denied \(HTTP {status}\).*netrc"):
        fetch(wanted, tmp_path / "out", 9)
    assert server.counts["a.tar"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"shard" * 999, "4995 bytes, but its set says 5000"), (b"Shard" + b"shard" * 999, "SHA-256")],
)
def test_a_truncated_or_flipped_object_is_changed(server, tmp_path, data, message):
    wanted = stored(server, tmp_path)
    (tmp_path / "served" / "a.tar").write_bytes(data)
    with pytest.raises(ObjectError, match=message) as error:
        fetch(wanted, tmp_path / "out", 9)
    assert error.value.reason == "changed" and server.counts["a.tar"] == 1


def test_no_message_holds_a_signature(server, tmp_path, caplog):
    plain = stored(server, tmp_path)
    signed = Remote(f"{plain.url}?X-Amz-Signature={SECRET}", plain.bytes, plain.sha256)
    caplog.set_level(logging.INFO, "dfdet")
    fetch(signed, tmp_path / "out", 0)
    texts = [str(signed), repr(signed), signed.name]
    for fault in ("503", "404", "403"):
        server.status["a.tar"] = int(fault)
        with pytest.raises((ObjectError, StorageError)) as error:
            fetch(signed, tmp_path / "out", 2)
        assert (error.value.__cause__ is None and error.value.__suppress_context__) or fault == "503"
        texts.append(str(error.value))
    server.close()
    with pytest.raises(StorageError) as error:
        fetch(signed, tmp_path / "out", 1)
    texts += [str(error.value), caplog.text]
    assert caplog.text.count("a.tar?...") == 3
    assert not any(SECRET in text or "Signature" in text for text in texts)


def test_a_text_with_urls_loses_its_secrets():
    text = f"403, url='https://h/a?Signature={SECRET}' and s3://k:{SECRET}@b/x"
    assert redact(text) == "403, url='https://h/a?...' and s3://...@b/x"


def test_a_set_is_opened_from_a_url_as_from_its_folder(tmp_path, make_set, server):
    make_set(tmp_path / "served")
    local = open_sets([tmp_path / "served" / "demo.json"])
    found = open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "cache", 2**30))
    assert found.digest == local.digest and (found.offset == local.offset).all()
    assert [str(shard) for shard in found.shards] == [f"{server.url}/{path.name}" for path in local.shards]
    assert open_sets([f"file://{tmp_path}/served/demo.json"]).shards == local.shards
    assert set(server.counts) == {"demo.json", "demo.parquet"}


def test_a_missing_remote_manifest_says_so(tmp_path, server):
    with pytest.raises(ShardSetError, match=r"none.json: no such manifest"):
        open_sets([f"{server.url}/none.json"], cache=Cache(tmp_path / "cache", 2**30))


class TestPlacesOfTars:
    """A manifest may say where a tar lies."""

    @pytest.fixture
    def placed(self, tmp_path, make_set, server):
        make_set(tmp_path / "served", groups=1)

        def place(url: str) -> Path:
            path = tmp_path / "served" / "demo.json"
            manifest = Manifest.model_validate_json(path.read_bytes())
            shards = (manifest.shards[0].model_copy(update={"url": url}),)
            path.write_text(manifest.model_copy(update={"shards": shards}).model_dump_json())
            return path

        return place

    def test_a_url_stands_for_itself(self, placed, tmp_path):
        (shard,) = open_sets([placed("https://other/x/y%20z.tar?sig=1")]).shards
        assert shard.url == "https://other/x/y%20z.tar?sig=1" and shard.name == "y z.tar"

    def test_a_path_stands_for_itself(self, placed, tmp_path):
        (tmp_path / "else").mkdir()
        (tmp_path / "served" / "demo-000000.tar").rename(tmp_path / "else" / "x.tar")
        (shard,) = open_sets([placed(str(tmp_path / "else" / "x.tar"))]).shards
        assert shard == tmp_path / "else" / "x.tar"

    def test_a_relative_one_lies_under_the_manifests_folder(self, placed, tmp_path, server):
        placed("sub/x.tar")
        (shard,) = open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "c", 2**30)).shards
        assert shard.url == f"{server.url}/sub/x.tar"

    @pytest.mark.parametrize("url", ["../x.tar", "sub/../../x.tar", "pipe:cat x", "ftp://h/x.tar"])
    def test_a_way_out_is_refused(self, placed, url):
        with pytest.raises(ShardSetError, match=r"'\.\.'|not a URL that can be read"):
            open_sets([placed(url)])

    def test_a_remote_manifest_names_no_local_path(self, placed, server, tmp_path):
        placed("/etc/passwd")
        with pytest.raises(ShardSetError, match="local path behind a URL"):
            open_sets([f"{server.url}/demo.json"], cache=Cache(tmp_path / "c", 2**30))


def test_odd_names_beside_a_manifest_are_found(tmp_path, make_set, server):
    make_set(tmp_path / "served", "a %20b#c", groups=1)
    found = open_sets([f"{server.url}/a%20%2520b%23c.json"], cache=Cache(tmp_path / "cache", 2**30))
    assert found.shards[0].name == "a %20b#c-000000.tar"
    os.close(found.cache.acquire(found.shards[0]))


@pytest.mark.parametrize(
    ("block_shards", "cache_gib", "warned"), [(0, 1e-5, True), (0, 1, False), (1, 9e-5, False)]
)
def test_an_order_over_more_shards_than_the_cache_keeps_is_warned_of(
    tmp_path, make_set, server, caplog, block_shards, cache_gib, warned
):
    make_set(tmp_path / "served", max_shard_bytes=40_000)
    data = Data(
        train=(f"{server.url}/demo.json",),
        val=(f"val={tmp_path}/served/demo.json",),
        global_batch=4,
        block_shards=block_shards,
        cache_dir=str(tmp_path / "cache"),
        cache_gib=cache_gib,
    )
    opened = open_run_data(Config(data=data))
    assert opened.train.cache is opened.val["val"].cache and opened.train.cache.folder == tmp_path / "cache"
    texts = [record.getMessage() for record in caplog.records if record.name == "dfdet.data.sets"]
    assert len(texts) == warned
    assert not warned or "fetched again and again; set --data.block_shards 1 or --data.cache_gib" in texts[0]
