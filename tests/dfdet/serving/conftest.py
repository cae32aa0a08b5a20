"""What the tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.dfdet.serving.bundles import Made, make_once


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_once(tmp_path_factory)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores: more threads wait for each other, for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
