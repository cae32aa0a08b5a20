from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import pytest

from dfdet.data.reader import DamageError, Reader


@pytest.fixture
def files(tmp_path):
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.tar")
        paths[-1].write_bytes(bytes([number]) * 1000)
    return paths


def test_bytes_with_the_right_checksum_are_returned(files):
    with Reader(files) as reader:
        assert reader.read(3, 100, 50, crc32(b"\x03" * 50)) == b"\x03" * 50


def test_a_flipped_bit_a_short_file_and_a_missing_file_are_told_apart(files):
    reader = Reader(files)
    cases = {
        "crc": (0, 0, 10, crc32(b"\x00" * 9 + b"\x01")),
        "short": (1, 995, 10, 0),
        "read": (2, 0, 10, 0),
    }
    files[2].unlink()
    for reason, arguments in cases.items():
        with pytest.raises(DamageError) as error:
            reader.read(*arguments)
        assert error.value.reason == reason
    reader.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_bounded_reopened_and_closed(files):
    before = descriptors()
    with Reader(files, max_open=2) as reader:
        for number in (0, 1, 2, 3, 4, 5, 0, 5):
            assert reader.read(number, 0, 4, crc32(bytes([number]) * 4)) == bytes([number]) * 4
            assert descriptors() <= before + 2
    assert descriptors() == before


def test_threads_share_few_descriptors(files):
    start = threading.Barrier(4)

    def work(thread: int) -> None:
        start.wait()
        for step in range(300):
            number = (step + thread) % 6
            assert reader.read(number, 0, 900, crc32(bytes([number]) * 900))[0] == number

    with Reader(files, max_open=2) as reader, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [None] * 4
