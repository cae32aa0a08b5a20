"""A real S3 server in this process, moto's, that can go away and come back with what it holds."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dfdet.data import remote

BUCKET = "runs-bucket"


class Server:
    """The server and one bucket in it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        moto = pytest.importorskip("moto.server")
        boto3 = pytest.importorskip("boto3")
        pytest.importorskip("s3fs")
        self._server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        host, self._port = self._server.get_host_and_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{self._port}",
            "NO_PROXY": "*",
        }
        for name, value in self.environment.items():
            patch.setenv(name, value)
        remote._filesystem_of.cache_clear()
        self.client: Any = boto3.client("s3")
        if BUCKET not in {each["Name"] for each in self.client.list_buckets()["Buckets"]}:
            self.client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        """Goes away; what it holds stays."""
        self._server.stop()

    def start(self) -> None:
        """Comes back at its port."""
        self._server._port = self._port
        self._server.start()

    def reset(self) -> None:
        """Forgets all: servers of one process share what they hold."""
        host = self.environment["AWS_ENDPOINT_URL"]
        urllib.request.urlopen(urllib.request.Request(f"{host}/moto-api/reset", method="POST")).close()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def get(self, key: str) -> bytes | None:
        try:
            return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def names(self, folder: str) -> list[str]:
        """Keys below a folder, relative to it."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", [])
        return sorted(each["Key"].removeprefix(f"{folder}/") for each in found)


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server that this process's environment names as long as the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        server = Server(patch)
        try:
            yield server
        finally:
            server.reset()
            server.stop()
            remote._filesystem_of.cache_clear()
