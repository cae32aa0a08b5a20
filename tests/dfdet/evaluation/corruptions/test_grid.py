import pytest

from dfdet.errors import ConfigError
from dfdet.evaluation.corruptions.grid import GRID, Corruption, curves, parse


def test_the_grid_is_that_of_the_protocol():
    names = [corruption.name for corruption in GRID]
    assert names[:12] == [
        *("jpeg-100", "jpeg-80", "jpeg-60", "jpeg-40", "jpeg-20", "jpeg-10"),
        *("blur-0-0", "blur-5-0.5", "blur-7-1", "blur-11-1.5", "blur-13-2", "blur-19-3"),
    ]
    filters = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
    assert names[12:30] == [f"resize-{side}-{name}" for name in filters for side in (224, 112, 64)]
    assert names[30:] == ["noise-0", "noise-0.01", "noise-0.03", "noise-0.05", "noise-0.1", "noise-0.2"]


def test_each_name_gives_its_corruption():
    assert [parse(corruption.name) for corruption in GRID] == list(GRID)


def test_blur_and_noise_without_sigma_alone_are_clean():
    assert [corruption.name for corruption in GRID if corruption.clean] == ["blur-0-0", "noise-0"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("jpeg-45", "jpeg-40"),
        ("blur-7-1.0", "blur-7-1"),
        ("resize-112-lanczos3", "resize-112-lanczos"),
        ("Noise-0.05", "noise-0.05"),
        ("jpg-40", "jpeg-40"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, near):
    with pytest.raises(ConfigError, match=f"^'{name}': no such corruption; the nearest are .*{near}"):
        parse(name)


@pytest.mark.parametrize("name", ["", "gamma", "../x"])
def test_a_name_unlike_any_other_is_refused_with_examples(name):
    with pytest.raises(ConfigError, match=r"no such corruption; names are as jpeg-100, blur-5-0.5, [^\n]*$"):
        parse(name)


def test_curves_go_from_mild_to_strong_with_one_a_filter_of_the_resize():
    drawn = {curve.name: curve for curve in curves()}
    filters = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    assert list(drawn) == ["jpeg", "blur", *(f"resize-{name}" for name in filters), "noise"]
    assert drawn["jpeg"].levels == (100, 80, 60, 40, 20, 10)
    assert drawn["blur"].levels == (0, 0.5, 1, 1.5, 2, 3)
    assert drawn["resize-box"].levels == (224, 112, 64)
    assert drawn["noise"].levels == (0, 0.01, 0.03, 0.05, 0.1, 0.2)
    assert (drawn["blur"].axis, drawn["resize-box"].axis) == ("sigma (pixels)", "side (pixels)")


def test_curves_of_a_part_of_the_grid_keep_its_order():
    some = [parse(name) for name in ("noise-0.2", "jpeg-10", "resize-64-box", "jpeg-80")]
    found = [(curve.name, [item.name for item in curve.corruptions]) for curve in curves(some)]
    assert found == [
        ("jpeg", ["jpeg-80", "jpeg-10"]),
        ("resize-box", ["resize-64-box"]),
        ("noise", ["noise-0.2"]),
    ]


def test_a_level_outside_of_the_grid_has_a_name_too():
    assert Corruption("jpeg", 55).name == "jpeg-55"
    assert Corruption("blur", 0.75, kernel_px=9).name == "blur-9-0.75"
