import numpy as np
import pytest

from shards.blend.draws import Draws
from shards.blend.mismatch import augment
from shards.blend.regions import face_length, fill, outline
from shards.blend.sbi import self_blend

SIDE = 160
FIVE = np.array([[62.0, 70], [98, 70], [80, 90], [66, 110], [94, 110]])
BOX = (45.0, 40.0, 115.0, 130.0)


def dense(count):
    """Landmarks in the order of iBUG 300-W on a plain face, with a forehead where 81 are wanted."""
    angle = np.linspace(0, np.pi, 17)
    jaw = np.stack([80 - 38 * np.cos(angle), 78 + 50 * np.sin(angle)], -1)
    brows = np.stack([np.linspace(50, 110, 10), np.full(10, 60.0)], -1)
    nose = np.stack([np.full(9, 80.0), np.linspace(68, 92, 9)], -1)
    eyes = np.array([[x + 6 * np.cos(a), 70 + 3 * np.sin(a)] for x in (62, 98) for a in np.arange(6)])
    mouth = np.array(
        [[80 - 14 * np.cos(a), 110 + 5 * np.sin(a)] for a in np.linspace(0, 2 * np.pi, 20, False)]
    )
    mouth[6], mouth[0] = [94, 110], [66, 110]
    forehead = np.stack([np.linspace(50, 110, 13), np.full(13, 35.0)], -1)
    return np.concatenate([jaw, brows, nose, eyes, mouth, forehead])[:count]


@pytest.fixture(scope="module")
def real():
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (20, 20, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(coarse + rng.normal(0, 6, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("count", [5, 68, 81])
def test_fake_is_the_real_outside_of_the_mask_and_another_within(real, count):
    points = FIVE if count == 5 else dense(count)
    for number in range(20):
        fake = self_blend(real, points, BOX, Draws(0, "k", number))
        changed = (fake.image != real).any(-1)
        assert not changed[fake.alpha == 0].any()
        assert changed[fake.alpha > 0.1].mean() > 0.5
        assert fake.image.dtype == np.uint8
        assert fake.image.shape == real.shape


def test_mask_lies_on_the_face_and_leaves_the_border_free(real):
    for number in range(40):
        alpha = self_blend(real, FIVE, BOX, Draws(1, "k", number)).alpha
        assert 0.2 < alpha.max() <= 1
        y, x = np.nonzero(alpha > alpha.max() / 2)
        assert abs(x.mean() - 80) < 12
        assert 60 < y.mean() < 115
        assert alpha[[0, -1]].max() == 0
        assert alpha[:, [0, -1]].max() == 0


def test_equal_draws_give_equal_fakes_and_others_differ(real):
    one = self_blend(real, FIVE, BOX, Draws(0, "k", 0))
    again = self_blend(real, FIVE, BOX, Draws(0, "k", 0))
    other = self_blend(real, FIVE, BOX, Draws(0, "k", 1))
    np.testing.assert_array_equal(one.image, again.image)
    assert (one.image != other.image).any()


def test_all_ratios_of_the_paper_occur(real):
    peaks = [self_blend(real, FIVE, BOX, Draws(2, "k", number)).alpha.max() for number in range(60)]
    assert set(np.round(peaks, 3)) == {0.25, 0.5, 0.75, 1.0}


def test_nothing_is_blended_where_the_frame_is_not_seen(real):
    seen = np.zeros((SIDE, SIDE), bool)
    seen[:, 80:] = True
    fake = self_blend(real, FIVE, BOX, Draws(0, "k", 3), seen=seen)
    np.testing.assert_array_equal(fake.image[:, :80], real[:, :80])
    assert (fake.image[:, 80:] != real[:, 80:]).any()


def test_no_colour_of_a_border_comes_in_where_the_crop_is_tight():
    plain = np.full((100, 100, 3), 128, np.uint8)
    tight = (FIVE - [55, 62]) * 2  # The face fills the crop and reaches over its edges.
    for number in range(20):
        fake = self_blend(plain, tight, (0, 0, 100, 100), Draws(0, "k", number)).image.astype(int)
        assert np.abs(fake - 128).max() < 60


def test_altered_target_changes_the_whole_image_in_half_of_the_fakes(real):
    changed = [
        (
            self_blend(real, FIVE, BOX, Draws(0, "k", number), augment_target=True).image[:10] != real[:10]
        ).any()
        for number in range(60)
    ]
    assert 15 < sum(changed) < 45


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (FIVE[:4], "4 landmarks"),
        (FIVE * np.nan, "finite"),
        (np.tile(FIVE[:1], (5, 1)), "in one point"),
        (FIVE + 1000, "no region in the image"),
    ],
)
def test_landmarks_that_do_not_serve_are_refused(real, points, reason):
    with pytest.raises(ValueError, match=reason):
        self_blend(real, points, None, Draws(0, "k", 0))


def test_mismatch_alters_colour_and_sharpness_either_way(real):
    image = real.astype(np.float32) / 255

    def detail(picture):
        return float(np.abs(np.diff(picture, axis=1)).mean())

    ratios = np.array([detail(augment(image, Draws(number))) / detail(image) for number in range(30)])
    assert (ratios < 0.8).any()
    assert (ratios > 1.2).any()
    means = np.array([augment(image, Draws(number)).mean((0, 1)) for number in range(30)])
    assert means.std(0).min() > 0.02
    assert np.abs(means - image.mean((0, 1))).max() < 0.25


def test_regions_turn_with_the_face():
    turn = np.array([[0.0, 1], [-1, 0]])  # A quarter, about the middle of the crop.
    turned = (FIVE - 80) @ turn + 80
    for number in range(10):
        upright = outline(FIVE, None, Draws(number))
        np.testing.assert_allclose(
            outline(turned, None, Draws(number)), (upright - 80) @ turn + 80, atol=1e-6
        )


def test_box_makes_the_region_of_a_turned_head_lopsided():
    areas = []
    for box in ((70.0, 40, 115, 130), (45.0, 40, 90, 130)):
        mask = fill(outline(FIVE, box, Draws(0)), SIDE, SIDE)
        areas.append(mask[:, :80].sum() - mask[:, 81:].sum())
    assert areas[0] < -200
    assert areas[1] > 200


def test_hulls_of_dense_landmarks_hold_what_they_are_named_for():
    areas = {}
    for number in range(40):
        mask = fill(outline(dense(81), None, Draws(number)), SIDE, SIDE)
        areas[int(mask.sum())] = mask
        assert mask[95, 80] == 1  # Below the nose.
    whole = areas[max(areas)]
    assert len(areas) == 4
    assert whole[40, 80] == 1
    assert face_length(dense(68)) == pytest.approx(40, abs=1)
