import numpy as np

from shards.faces.appearance import appearance, likeness

BOX = np.array([[10, 10, 50, 60]], np.float32)


def frame(colour, seed=0):
    noise = np.random.default_rng(seed).normal(0, 6, (80, 80, 3))
    return (np.array(colour) + noise).clip(0, 255).astype(np.uint8)


def test_colours_of_a_box_sum_to_1():
    found = appearance(frame((200, 150, 120)), np.repeat(BOX, 2, axis=0))
    assert found.shape == (2, 1728)
    assert np.allclose(found.sum(1), 1)


def test_the_same_skin_at_two_looks_is_alike_and_another_is_not():
    first, again, other = (
        appearance(frame(colour, seed), BOX)
        for seed, colour in enumerate([(200, 150, 120), (200, 150, 120), (40, 25, 20)])
    )
    assert likeness(first, again)[0] > 0.7
    assert likeness(first, other)[0] < 0.1


def test_only_what_lies_in_the_box_counts():
    image = frame((200, 150, 120))
    changed = image.copy()
    changed[:, 60:] = 0
    assert np.array_equal(appearance(image, BOX), appearance(changed, BOX))


def test_a_box_outside_of_the_frame_is_like_nothing():
    found = appearance(frame((9, 9, 9)), np.array([[100, 100, 140, 140], [-50, 3, -1, 9]], np.float32))
    assert not found.any()
    assert likeness(found, found).tolist() == [0, 0]


def test_no_boxes_have_no_colours():
    assert appearance(frame((9, 9, 9)), np.zeros((0, 4), np.float32)).shape == (0, 1728)
