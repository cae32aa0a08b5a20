from dfdet.schema import encode_part
from shards.names import printable, readable


def test_a_key_is_shown_as_the_name_on_the_disk():
    assert readable("own/real/" + encode_part("лицо 1.mp4")) == "own/real/лицо 1.mp4"


def test_control_characters_cannot_reach_the_terminal():
    assert printable("a\nb\x1b[31m\x7f") == r"a\nb\x1b[31m\x7f"
    assert readable("own/real/a%0Ab") == r"own/real/a\nb"
