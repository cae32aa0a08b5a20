"""Names of re-compressed datasets."""

import pytest

from dfdet.schema import Recompression, parse_recompression, split_recompression


@pytest.mark.parametrize("text", ["h264-crf1", "h264-crf51", "h265-crf40", "av1-crf63", "vp9-crf32"])
def test_a_recompression_is_read_as_it_is_written(text):
    assert str(parse_recompression(text)) == text


@pytest.mark.parametrize(
    "text", ["h264", "h264-crf0", "h264-crf52", "av1-crf64", "h264-crf040", "x264-crf40", "h264-crf40 ", ""]
)
def test_what_no_encoder_takes_is_none(text):
    assert parse_recompression(text) is None


@pytest.mark.parametrize(
    ("dataset", "found"),
    [
        ("ffpp-c23-h264-crf40", ("ffpp-c23", Recompression("h264", 40))),
        ("own-h264-crf40-vp9-crf32", ("own-h264-crf40", Recompression("vp9", 32))),
        ("ffpp-c23", None),
        ("h264-crf40", None),
        ("ffpp-crf40", None),
    ],
)
def test_the_base_of_a_variant_is_its_name_before(dataset, found):
    assert split_recompression(dataset) == found
