import numpy as np
import pytest
import torch
from retinaface.box_utils import decode as their_decode
from retinaface.box_utils import decode_landm
from retinaface.prior_box import priorbox
from torchvision.ops import nms

from shards.detect.geometry import (
    PRIOR_SIDES,
    STRIDES,
    VARIANCES,
    Fit,
    decode,
    finish,
    fit_frame,
    priors,
    shrink,
    suppress,
)

UNCHANGED = fit_frame(320, 240, 640)


def found(boxes: list, scores: list[float], fit: Fit = UNCHANGED, threshold: float = 0.4):
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.repeat(corners[:, None, :2], 5, axis=1) + 0.25
    return finish(corners, np.array(scores, np.float32), points, fit, threshold)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1920, 1080, (640, 360, 640, 384)),
        (1080, 1920, (360, 640, 384, 640)),
        (640, 480, (640, 480, 640, 480)),
        (100, 50, (100, 50, 128, 64)),
        (16000, 3, (640, 1, 640, 32)),
    ],
)
def test_frames_are_shrunk_never_enlarged_and_padded_to_multiples_of_32(
    width: int, height: int, expected: tuple[int, int, int, int]
) -> None:
    assert fit_frame(width, height, 640)[2:] == expected


def test_a_network_of_one_size_gets_that_size() -> None:
    assert fit_frame(1280, 720, 640, fixed=(320, 320))[2:] == (320, 180, 320, 320)


def test_a_frame_of_the_right_size_is_passed_as_it_is() -> None:
    frame = np.zeros((240, 320, 3), np.uint8)
    assert shrink(frame, UNCHANGED) is frame


def test_shrinking_averages_so_that_fine_patterns_do_not_alias() -> None:
    frame = np.zeros((960, 1280, 3), np.uint8)
    frame[::2] = 200
    small = shrink(frame, fit_frame(1280, 960, 640))
    assert small.shape == (480, 640, 3)
    assert set(small.ravel().tolist()) == {100}


def test_priors_are_those_of_retinaface() -> None:
    theirs = priorbox(PRIOR_SIDES, STRIDES, clip=False, image_size=(96, 160)) * torch.tensor(
        [160, 96, 160, 96]
    )
    np.testing.assert_allclose(priors(96, 160), theirs[:, :3], rtol=1e-6)


def test_decoding_is_that_of_retinaface() -> None:
    random = np.random.default_rng(0)
    ours = priors(96, 160)
    boxes, landmarks = (random.normal(size=(len(ours), n)).astype(np.float32) for n in (4, 10))
    square = torch.from_numpy(ours[:, [0, 1, 2, 2]])
    corners, points = decode(ours, boxes, landmarks)
    np.testing.assert_allclose(
        corners, their_decode(torch.from_numpy(boxes), square, VARIANCES), rtol=1e-4, atol=1e-3
    )
    theirs = decode_landm(torch.from_numpy(landmarks), square, VARIANCES).view(-1, 5, 2)
    np.testing.assert_allclose(points, theirs, rtol=1e-4, atol=1e-3)
    assert corners.dtype == points.dtype == np.float32


def test_suppression_is_that_of_torchvision() -> None:
    random = np.random.default_rng(0)
    low = random.uniform(0, 100, (300, 2))
    boxes = np.concatenate([low, low + random.uniform(5, 60, (300, 2))], axis=1).astype(np.float32)
    best_first = torch.arange(300, 0, -1).float()
    expected = nms(torch.from_numpy(boxes), best_first, 0.4).tolist()
    assert suppress(boxes, 0.4).tolist() == expected
    assert 5 < len(expected) < 295


def test_faces_come_back_in_pixels_of_the_frame_unrounded() -> None:
    fit = fit_frame(1280, 720, 640)
    faces = found([[10.25, 20, 30, 40.5]], [0.9], fit)
    assert faces.boxes.tolist() == [[20.5, 40, 60, 81]]
    assert faces.landmarks[0, 0].tolist() == [21, 40.5]


def test_axes_are_scaled_apart_where_shrinking_rounded() -> None:
    fit = fit_frame(1001, 333, 640)
    faces = found([[0, 0, fit.width, fit.height]], [0.9], fit)
    np.testing.assert_allclose(faces.boxes, [[0, 0, 1001, 333]], rtol=1e-6)


def test_best_score_comes_first_and_equal_scores_keep_their_order() -> None:
    boxes = [[x, 0, x + 10, 10] for x in (0, 50, 100, 150)]
    faces = found(boxes, [0.6, 0.8, 0.6, 0.9])
    assert faces.boxes[:, 0].tolist() == [150, 50, 0, 100]


def test_of_overlapping_faces_the_better_stays() -> None:
    faces = found([[0, 0, 10, 10], [1, 0, 11, 10], [8, 0, 18, 10]], [0.6, 0.8, 0.5])
    assert faces.boxes[:, 0].tolist() == [1, 8]


def test_boxes_and_landmarks_may_leave_the_frame() -> None:
    faces = found([[-20, -10, 30, 30], [300, 200, 400, 300]], [0.9, 0.8])
    assert faces.boxes.tolist() == [[-20, -10, 30, 30], [300, 200, 400, 300]]
    assert faces.landmarks[0, 0].tolist() == [-19.75, -9.75]


def test_faces_in_the_padding_and_not_finite_ones_are_dropped() -> None:
    padded = fit_frame(320, 200, 640)
    boxes = [[10, 201, 40, 220], [10, 190, 40, 220], [-9, 0, -1, 9], [0, 0, np.inf, 9], [np.nan, 0, 9, 9]]
    assert found(boxes, [0.9] * 5, padded).boxes.tolist() == [[10, 190, 40, 220]]


def test_no_face_gives_empty_arrays_of_the_right_shape() -> None:
    faces = found([], [])
    assert [part.shape for part in faces] == [(0, 4), (0,), (0, 5, 2)]
