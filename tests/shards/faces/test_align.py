import functools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from dfdet.data.crops import crop_side
from dfdet.data.decode import cut_middle
from dfdet.data.transforms import ToInput
from shards.faces.align import TEMPLATES, crop, map_box, map_points, to_crop

BOTH = pytest.mark.parametrize("template", sorted(TEMPLATES))


def similarity(zoom, angle, x, y):
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def face(template="gend", *, tight=200.0, angle=0.2, centre=(320.0, 300.0)):
    """Landmarks of a face that fits its template exactly."""
    return map_points(TEMPLATES[template] - 0.5, similarity(tight, angle, *centre))


@functools.cache
def texture(side, seed=0):
    """Noise of 1/f^1.5 spectrum, a little smoother than photographs have it."""
    rng = np.random.default_rng(seed)
    step = np.fft.fftfreq(side)
    radius = np.hypot(step[:, None], step[None])
    radius[0, 0] = 1
    planes = [
        np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / radius**1.5).real for _ in range(3)
    ]
    image = np.stack([(plane - plane.mean()) / plane.std() for plane in planes], -1)
    return np.clip(128 + 45 * image, 0, 255).astype(np.uint8)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2))


def model_input(image):
    to_input = ToInput(224, (0, 0, 0), (1, 1, 1))
    return to_input(torch.from_numpy(np.ascontiguousarray(image))[None])[0].numpy() * 255


def test_templates_are_the_published_ones():
    assert TEMPLATES["gend"].tolist() == [[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]]
    pixels = [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
    np.testing.assert_allclose(TEMPLATES["dfb"] * 112, pixels)


@BOTH
def test_landmarks_come_to_the_template_scaled_about_the_middle(template):
    points = face(template)
    mapped = map_points(points, to_crop(points, template, 1.6, 320))
    np.testing.assert_allclose(mapped, ((TEMPLATES[template] - 0.5) / 1.6 + 0.5) * 320, atol=1e-3)


@BOTH
def test_margins_as_public_code_adds_them_give_the_same_target(template):
    points = face(template)
    side, scale = 256, 1.3
    margin = side * (scale - 1) / 2
    published = (TEMPLATES[template] * side + margin) * side / (side + 2 * margin)
    np.testing.assert_allclose(
        map_points(points, to_crop(points, template, scale, side)), published, atol=1e-3
    )


def test_gend_leaves_out_a_point_far_off_and_dfb_does_not():
    points, damaged = face(), face()
    damaged[3] += 60
    exact = to_crop(points, "gend", 1.3, 256)
    np.testing.assert_allclose(to_crop(damaged, "gend", 1.3, 256), exact, atol=1e-3)
    assert np.abs(to_crop(damaged, "dfb", 1.3, 256) - to_crop(points, "dfb", 1.3, 256)).max() > 5


def test_dfb_is_the_least_squares_similarity():
    rng = np.random.default_rng(1)
    points = face("dfb") + rng.normal(0, 6, (5, 2))
    target = ((TEMPLATES["dfb"] - 0.5) / 1.3 + 0.5) * 256
    # Unknowns a, b, tx, ty of x' = a x - b y + tx, y' = b x + a y + ty.
    rows = [row for x, y in points for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(to_crop(points, "dfb", 1.3, 256), [[a, -b, tx], [b, a, ty]], atol=1e-8)


def test_equal_landmarks_give_equal_bits_in_any_thread():
    rng = np.random.default_rng(2)
    faces = [face(angle=a) + rng.normal(0, 5, (5, 2)) for a in rng.uniform(-1, 1, 50)]

    def maps(_):
        return np.stack([to_crop(points, "gend", 1.6, 320) for points in faces]).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(maps, range(12)))) == 1


@BOTH
@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([[5.0, 5.0]] * 5, "one point or on one line"),
        ([[1.0 * i, 2.0 * i] for i in range(5)], "one point or on one line"),
        ([[np.nan, 1.0]] * 5, "not five finite points"),
        ([[0.0, np.inf], [1, 0], [2, 2], [3, 0], [1, 5]], "not five finite points"),
        (TEMPLATES["gend"][:4], "not five finite points"),
        (TEMPLATES["gend"] * 1e-12, "one point or on one line"),
        (TEMPLATES["gend"] * 1e9, "fit no similarity"),
    ],
)
def test_landmarks_that_are_no_face_are_refused_with_the_reason(template, points, reason):
    with pytest.raises(ValueError, match=reason):
        to_crop(points, template, 1.6, 320)


def test_integer_coordinates_are_centres_of_pixels():
    frame = texture(64)
    shift = np.array([[1.0, 0, -20], [0, 1, -10]])
    np.testing.assert_array_equal(crop(frame, shift, 32), frame[10:42, 20:52])


def test_template_middle_comes_half_a_pixel_right_of_and_below_the_middle():
    points = face("gend", tight=200, angle=0.0, centre=(100.0, 100.0))
    middle = map_points([[100.0, 100.0]], to_crop(points, "gend", 1.0, 200))
    np.testing.assert_allclose(middle, [[100.0, 100.0]], atol=1e-3)  # Of pixels 0 to 199 it is 99.5.


def test_whole_reduction_averages_blocks_of_pixels():
    frame = texture(96)
    # Crop pixel 0 covers frame pixels 0 to 2, whose middle is 1.
    matrix = np.array([[1 / 3, 0, -1 / 3], [0, 1 / 3, -1 / 3]])
    np.testing.assert_array_equal(
        crop(frame, matrix, 32), cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA)
    )


def test_outside_of_the_frame_is_black():
    frame = np.full((40, 40, 3), 200, np.uint8)
    cut = crop(frame, np.array([[1.0, 0, 10], [0, 1, 0]]), 40)
    assert (cut[:, :10] == 0).all()
    assert (cut[:, 10:] == 200).all()


def test_vast_face_is_cut_in_bounded_memory():
    frame = np.full((300, 300, 3), 90, np.uint8)
    tiny = np.array([[1e-4, 0, 128], [0, 1e-4, 128]])
    cut = crop(frame, tiny, 256)
    assert cut.shape == (256, 256, 3)


def test_box_is_carried_as_the_upright_box_around_it():
    turned = np.array([[0.0, -2, 100], [2, 0, 0]])
    assert map_box((1, 2, 4, 10), turned) == (80, 2, 96, 8)


@BOTH
@pytest.mark.parametrize("tight", [90, 160, 260, 380, 420, 700])
def test_middle_of_a_stored_crop_is_a_direct_crop(template, tight):
    frame = texture(1600)
    points = face(template, tight=tight, centre=(800.0, 780.0))
    stored = crop(frame, to_crop(points, template, 1.6, 320), 320)
    direct = crop(frame, to_crop(points, template, 1.3, 256), 256)
    middle = cut_middle(stored, crop_side(320, 320, 1.3, 1.6))
    assert middle.shape == (260, 260, 3)
    # 48 to 53 dB here; a shift of one pixel of the stored crop costs over 10 dB.
    assert psnr(model_input(middle), model_input(direct)) > 46
    assert psnr(model_input(np.roll(middle, 1, 1)), model_input(direct)) < 42
