"""Published results by the names of test sets."""

from __future__ import annotations

import pytest

from dfdet.evaluation.report.published_rows import PUBLISHED, TEST_SETS, match, matched


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cdfv2", "cdfv2"),
        ("CDFv2-test", "cdfv2"),
        ("dfd-c23", "dfd"),
        ("dfd.test", "dfd"),
        ("dfdc", "dfdc"),
        ("dfdcp", None),
        ("ffiw_test", "ffiw"),
        ("deepspeak-v1", "dsv1"),
        ("deepspeak-v1.1", "dsv1"),
        ("deepspeak-v2", None),
        ("cdfpp", None),
    ],
)
def test_a_set_is_matched_by_its_beginning(name: str, key: str | None) -> None:
    assert match(name) == key


def test_sets_without_a_match_are_left_out() -> None:
    assert matched(["own", "dfdc-1", "dfdc-2"]) == {"dfdc-1": "dfdc", "dfdc-2": "dfdc"}


def test_every_row_is_of_known_sets_in_per_cent() -> None:
    for row in PUBLISHED:
        assert row.auroc.keys() <= TEST_SETS.keys()
        assert all(50 < value < 100 for value in row.auroc.values())
