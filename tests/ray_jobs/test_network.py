"""The network interface of an address, as gloo must be told on hosts whose name is loopback."""

from __future__ import annotations

import sys

import pytest

from ray_jobs.network import interface_of


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_host_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None
