import os

import pytest

from dfdet.errors import InputError
from shards.foreign import locations
from shards.foreign.locations import UnreadableError, locate, opened
from tests.shards.foreign.site import Site


def read(url: str) -> bytes:
    parts = []
    with opened(locate(url)) as file:
        while part := file.read(100_000):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_tar_is_read_over_http_with_and_without_ranges(ranges):
    body = os.urandom(300_000)
    with Site(body, ranges) as site:
        assert read(site.url) == body


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_ends_early_is_no_end_of_file(ranges, monkeypatch):
    monkeypatch.setattr(locations, "FIRST_PAUSE_S", 0.01)
    with Site(bytes(300_000), ranges, sent=1000) as site, pytest.raises(UnreadableError, match="cannot be"):
        read(site.url)


def test_a_read_that_fails_is_tried_again_where_the_server_has_ranges(monkeypatch):
    monkeypatch.setattr(locations, "FIRST_PAUSE_S", 0.01)
    body = os.urandom(300_000)
    with Site(body, ranges=True, failing=3) as site:
        assert read(site.url) == body
    with Site(body, ranges=True, failing=4) as site, pytest.raises(UnreadableError, match="cannot be read"):
        read(site.url)


def test_a_missing_object_and_a_dead_server_are_told():
    with Site(b"", True) as site, pytest.raises(UnreadableError, match="cannot be opened"):
        read(site.url.replace("a.tar", "b.tar"))
    with pytest.raises(UnreadableError, match="cannot be opened"):
        read(site.url)


def test_a_local_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("x/../sub/a.tar").url == str(tmp_path / "sub/a.tar")
    assert locate("./a:b.tar").name == "a:b.tar"
    assert not locate("a.tar").is_remote


@pytest.mark.parametrize(
    "url", ["https://h/a.tar?download=1", "s3://b/k/a.tar", "gs://b/a.tar", "hf://d/a.tar"]
)
def test_urls_of_stores_are_kept(url):
    assert (locate(url).url, locate(url).name, locate(url).is_remote) == (url, "a.tar", True)


@pytest.mark.parametrize(
    "text",
    [
        "pipe:touch /tmp/x",
        "pipe://touch",
        "PIPE:cat a.tar",
        "file:///etc/passwd",
        "ftp://h/a.tar",
        "local://a.tar",
        "ssh://h/a.tar",
        "simplecache::s3://b/a.tar",
        "tar://a.tar::/etc/x.tar",
        "github://o:r@/a.tar",
        "s3:/b/a.tar",
        "http:///a.tar",
        "s3://bucket",
        "https://h/..",
        "https://h/%2e%2e/a.tar",
        "gcs://b/a.tar",
        "https://h/folder/",
        "https://h/a.tar\nGET /",
        "a\0.tar",
        "",
    ],
)
def test_anything_but_a_path_or_plain_url_of_a_store_is_refused(text):
    with pytest.raises(InputError) as caught:
        locate(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@h/a.tar",
        "https://hunter2@h/a.tar",
        "https://user:x@hunter2@h/a.tar",
        "https://h/a.tar?X-Amz-Signature=hunter2",
        "https://h/a.tar?AWSAccessKeyId=hunter2",
        "https://h/a.tar?sig=hunter2",
        "https://h/a.tar?access_token=hunter2",
    ],
)
def test_credentials_are_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="holds credentials") as caught:
        locate(url)
    assert "hunter2" not in str(caught.value)


def test_a_folder_and_a_pipe_are_no_tars(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(UnreadableError, match="no regular file"):
            read(str(path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UnreadableError, match="No such file"):
        read(str(tmp_path / "none.tar"))
