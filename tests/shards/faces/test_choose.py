import numpy as np
import pytest

from shards.detect.faces import Faces
from shards.faces.choose import Selection, choose, link

SIZE = (200, 100)


def faces(*boxes: tuple[float, float, float, float], scores: list[float] | None = None) -> Faces:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.repeat((corners[:, None, :2] + corners[:, None, 2:]) / 2, 5, axis=1)
    return Faces(corners, np.array(scores or [0.9] * len(corners), np.float32), points)


def square(x: float, y: float = 50, side: float = 20) -> tuple[float, float, float, float]:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def mask(x0: int, y0: int, x1: int, y1: int, value: int = 255, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = np.zeros(size[::-1], np.uint8)
    image[y0:y1, x0:x1] = value
    return image


def chosen(found: list[Faces], selection: Selection, masks: list | None = None) -> list[int | None]:
    choices = choose(found, selection, masks or [None] * len(found), [SIZE] * len(found))
    return [choice and choice.index for choice in choices]


def test_largest_takes_the_largest_box_of_each_frame() -> None:
    assert chosen([faces(square(50), square(150, side=30)), faces(square(50))], "largest") == [1, 0]


@pytest.mark.parametrize("selection", ["largest", "mask", "track"])
def test_a_frame_without_faces_has_no_choice(selection: Selection) -> None:
    assert chosen([faces(), faces(square(50)), faces()], selection) == [None, 0, None]


def test_mask_takes_the_face_under_the_mask_though_another_is_larger() -> None:
    assert chosen([faces(square(150, side=60), square(50))], "mask", [mask(40, 40, 60, 60)]) == [1]


def test_mask_takes_the_face_that_holds_most_of_it() -> None:
    assert chosen([faces(square(50), square(80))], "mask", [mask(50, 45, 85, 55)]) == [1]


def test_largest_wins_where_faces_hold_equally_much_of_the_mask() -> None:
    inner, outer = square(50, side=30), square(50, side=50)
    assert chosen([faces(inner, outer)], "mask", [mask(48, 48, 52, 52)]) == [1]


@pytest.mark.parametrize(
    "empty", [None, mask(0, 0, 0, 0), mask(0, 0, 200, 100, value=12), mask(95, 0, 105, 9)]
)
def test_mask_falls_back_to_the_largest_where_the_mask_tells_nothing(empty: np.ndarray | None) -> None:
    assert chosen([faces(square(50), square(150, side=30))], "mask", [empty]) == [1]


def test_a_mask_of_another_resolution_is_scaled() -> None:
    half = mask(20, 20, 30, 30, size=(100, 50))
    found = [faces(square(25), square(50))]
    assert chosen(found, "mask", [half]) == [1]


@pytest.mark.parametrize("selection", ["largest", "mask", "track"])
def test_the_covered_part_of_every_box_is_recorded(selection: Selection) -> None:
    (choice,) = choose([faces(square(50), square(150))], selection, [mask(40, 40, 50, 60)], [SIZE])
    assert choice is not None
    assert choice.mask_overlaps == (0.5, 0.0)


def test_a_box_beyond_the_frame_counts_as_far_as_it_is_inside() -> None:
    (choice,) = choose([faces((-10, 0, 10, 20))], "mask", [mask(0, 0, 10, 20)], [SIZE])
    assert choice is not None
    assert choice.mask_overlaps == (1.0,)


def test_without_masks_and_tracks_nothing_is_recorded_of_them() -> None:
    (choice,) = choose([faces(square(50), square(150))], "largest", [None], [SIZE])
    assert choice is not None
    assert (choice.mask_overlaps, choice.tracks) == ((None, None), (None, None))


def test_tracks_follow_people_whatever_the_order_of_detection() -> None:
    found = [faces(square(50), square(150)), faces(square(145), square(60)), faces(square(68), square(140))]
    assert link(found) == [[0, 1], [1, 0], [0, 1]]


def test_a_face_that_moved_less_than_its_side_is_followed_though_boxes_hardly_overlap() -> None:
    assert link([faces(square(50)), faces(square(69)), faces(square(88))]) == [[0], [0], [0]]


def test_a_face_far_away_or_of_another_size_is_someone_else() -> None:
    assert link([faces(square(50)), faces(square(71)), faces(square(71, side=45))]) == [[0], [1], [2]]


def test_each_track_continues_in_one_face_the_nearest() -> None:
    assert link([faces(square(50)), faces(square(60), square(52))]) == [[0], [1, 0]]


def test_a_track_goes_on_after_a_gap() -> None:
    assert link([faces(square(50)), faces(), faces(square(150)), faces(square(55))]) == [[0], [], [1], [0]]


def test_equal_costs_are_settled_by_order() -> None:
    assert link([faces(square(50)), faces(square(45), square(55))]) == [[0], [0, 1]]


def test_track_ignores_a_bystander_who_is_large_for_one_frame() -> None:
    main = [faces(square(50)) for _ in range(8)]
    main[3] = faces(square(150, side=50), square(50))
    assert chosen(main, "largest")[3] == 0
    assert chosen(main, "track") == [0, 0, 0, 1, 0, 0, 0, 0]


def test_track_weighs_area_by_score() -> None:
    doubtful = [faces(square(150, side=22), square(50), scores=[0.5, 0.99])] * 2
    assert chosen(doubtful, "track") == [1, 1]


def test_track_takes_who_is_there_longest_not_who_comes_closest() -> None:
    found = [faces(square(50, side=90))] * 3 + [faces(square(150))] * 4
    assert chosen(found, "track") == [None] * 3 + [0] * 4


def test_track_takes_the_main_person_not_one_who_sits_small_behind() -> None:
    both = faces(square(50, side=8), square(150, side=40))
    assert chosen([both, both, faces(square(50, side=8))], "track") == [1, 1, None]


def test_frames_without_the_tracked_person_give_nobody_else() -> None:
    found = [faces(square(50, side=30)), faces(square(150)), faces(square(150), square(50, side=30))]
    assert chosen(found, "track") == [0, None, 1]


def test_track_takes_the_person_under_the_masks_in_all_frames() -> None:
    found = [faces(square(150, side=60), square(50))] * 3
    masks = [mask(40, 40, 60, 60), None, mask(0, 0, 0, 0)]
    assert chosen(found, "track", masks) == [1, 1, 1]


def test_track_numbers_of_all_faces_are_recorded() -> None:
    choices = choose([faces(square(150), square(50))] * 2, "track", [None] * 2, [SIZE] * 2)
    assert [choice and choice.tracks for choice in choices] == [(0, 1), (0, 1)]


def test_sequences_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        choose([faces(square(50))], "largest", [], [SIZE])


def test_a_face_of_other_colours_in_the_same_place_starts_a_new_track() -> None:
    """After a cut, another person may stand where the first one stood."""
    found = [faces(square(50)), faces(square(51)), faces(square(52)), faces(square(53))]
    singer, listener = np.array([[1, 0]], np.float32), np.array([[0.3, 0.7]], np.float32)
    assert link(found, [listener, singer, singer, singer]) == [[0], [1], [1], [1]]
    choices = choose(found, "track", [None] * 4, [SIZE] * 4, [listener, singer, singer, singer])
    assert [choice and choice.index for choice in choices] == [None, 0, 0, 0]


def test_a_track_goes_on_after_a_cutaway() -> None:
    found = [faces(square(50)), faces(square(50)), faces(square(50))]
    singer, listener = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    assert link(found, [singer, listener, singer]) == [[0], [1], [0]]
