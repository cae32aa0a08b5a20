import numpy as np

from shards.blend.draws import Draws


def test_numbers_are_the_same_on_every_build():
    draws = Draws(0, "d/real/v/000000", 1)
    assert draws.uniform("a", 0, 1) == 0.2680945862231023
    assert draws.field("b", 2).tolist() == [-0.2744722068309784, 0.07435077428817749]


def test_numbers_depend_on_what_they_belong_to_and_on_their_name():
    drawn = [
        Draws(0, "k").uniform("a", 0, 1),
        Draws(0, "k").uniform("b", 0, 1),
        Draws(1, "k").uniform("a", 0, 1),
    ]
    assert len(set(drawn)) == 3
    assert Draws(0, "k").uniform("a", 0, 1) == drawn[0]


def test_numbers_fill_their_range_evenly():
    values = np.array([Draws(number).uniform("x", -2, 6) for number in range(2000)])
    assert values.min() >= -2
    assert values.max() < 6
    assert abs(values.mean() - 2) < 0.2
    field = Draws(5).field("x", 100, 100)
    assert field.min() >= -1
    assert field.max() <= 1
    assert abs(field.mean()) < 0.02
    assert abs(field.std() - 3**-0.5) < 0.01


def test_choice_takes_each_item_about_as_often():
    taken = [Draws(number).choice("x", "abc") for number in range(900)]
    assert all(240 < taken.count(item) < 360 for item in "abc")
