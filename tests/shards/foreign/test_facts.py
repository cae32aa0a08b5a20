import json

import pytest

from dfdet.schema import CropRecipe, Sample
from shards.foreign.facts import (
    ContradictionError,
    Told,
    UnusableSampleError,
    label_of_name,
    method_of,
    read_cls,
    read_json,
)


def told(key: str = "k", **facts: object) -> Told:
    return read_json(json.dumps(facts).encode(), key)


@pytest.mark.parametrize("name", ["label", "is_fake", "fake", "class"])
@pytest.mark.parametrize(
    ("value", "label"),
    [(0, 0), (1, 1), (False, 0), (True, 1), ("0", 0), ("1", 1), ("real", 0), ("FAKE", 1), (" Real ", 0)],
)
def test_labels_are_numbers_truth_values_or_words(name, value, label):
    assert told(**{name: value}).label == label


@pytest.mark.parametrize("value", [2, -1, 0.0, 1.5, "yes", "", [1], {"a": 1}, 10**30])
def test_other_labels_are_refused(value):
    with pytest.raises(UnusableSampleError, match="is no label"):
        told(label=value)


def test_an_absent_label_is_no_label():
    assert told().label is None and told(label=None).label is None


def test_fields_that_disagree_on_the_label_are_a_contradiction():
    assert told(label=1, is_fake=True).label == 1
    with pytest.raises(ContradictionError, match="both real and fake"):
        told(label=1, is_fake=False)


@pytest.mark.parametrize(("data", "label"), [(b"0", 0), (b"1\n", 1), (b"fake", 1)])
def test_a_cls_member_tells_the_label(data, label):
    assert read_cls(data) == label


@pytest.mark.parametrize("data", [b"", b"2", b"0 1", b"\xff", b"1" * 100])
def test_other_cls_members_are_refused(data):
    with pytest.raises(UnusableSampleError, match=r"\.cls is no label"):
        read_cls(data)


@pytest.mark.parametrize(
    "key, label", [("a/real/x", 0), ("FAKE/x", 1), ("a/x/real", None), ("unreal/x", None)]
)
def test_a_folder_tells_the_label(key, label):
    assert label_of_name(key) == label


def test_two_folders_that_disagree_are_a_contradiction():
    with pytest.raises(ContradictionError):
        label_of_name("real/fake/x")


@pytest.mark.parametrize(
    ("label", "name", "method"),
    [(0, None, "real"), (1, None, "fake"), (0, "original", "real"), (1, "DF", "DF"), (0, "Real", "real")],
)
def test_the_method_fits_the_label(label, name, method):
    assert method_of(label, name) == method


@pytest.mark.parametrize(("label", "name"), [(0, "DF"), (1, "real"), (1, "Pristine")])
def test_a_method_against_the_label_is_a_contradiction(label, name):
    with pytest.raises(ContradictionError):
        method_of(label, name)


def test_common_names_are_read():
    found = told(label=1, method="DF", source="web", video_id=7, frame_idx="12", group="g", split="dev")
    assert found == Told(
        label=1, method="DF", video="7", frame=12, group="g", group_level="exact", split="val"
    )


def test_our_own_json_is_read_in_full():
    own = Sample(
        dataset="d", source="real", label=0, video="v", frame=3, group="d/v", group_level="identity",
        identity="p", split="test", crop=CropRecipe(template="demo", scale=1.5),
    )  # fmt: skip
    found = read_json(own.model_dump_json().encode(), own.key)
    assert found == Told(
        label=0, dataset="d", method="real", video="v", frame=3, group="d/v", group_level="identity",
        identity="p", split="test", crop=CropRecipe(template="demo", scale=1.5),
    )  # fmt: skip


def test_our_own_json_beside_another_samples_image_is_a_contradiction():
    own = Sample(dataset="d", source="real", label=0, video="v", frame=3)
    with pytest.raises(ContradictionError, match="is that of 'd/real/v/000003'"):
        read_json(own.model_dump_json().encode(), "d/real/v/000004")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"1", b"null", b"\xff{}", b"[" * 100_000, b'{"label":' + b"9" * 9999 + b"}"],
)
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(UnusableSampleError, match=r"JSON|label"):
        read_json(data, "k")


@pytest.mark.parametrize(
    "facts",
    [
        {"video": ""},
        {"video": "v" * 501},
        {"video": ["v"]},
        {"video": True},
        {"video": "a\0b"},
        {"video": "\ud800"},
        {"group": "\udfff"},
        {"frame": -1},
        {"frame": 2**31},
        {"frame": 1.5},
        {"frame": True},
        {"frame": "1e3"},
        {"frame": "²"},
        {"split": "holdout"},
        {"group": "g", "group_level": "maybe"},
        {"dataset": {}},
    ],
)
def test_fields_of_another_kind_are_refused(facts):
    with pytest.raises(UnusableSampleError):
        told(label=0, **facts)
