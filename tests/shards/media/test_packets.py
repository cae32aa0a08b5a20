from shards.media.packets import Damage, Packet, PacketTable, Run, is_exact


def table(*frames: tuple[int, bool], hidden: frozenset[int] = frozenset()) -> PacketTable:
    """Of (presentation time, is key) in decoding order."""
    return PacketTable(
        [Packet(pts, place, key, place not in hidden, 100) for place, (pts, key) in enumerate(frames)]
    )


def groups(count: int, length: int) -> PacketTable:
    """Groups of pictures without B-frames."""
    return table(*((place, place % length == 0) for place in range(count * length)))


B_FRAMES = table((0, True), (3, False), (1, False), (2, False))
OPEN_GROUP = table((0, True), (3, False), (1, False), (2, False), (6, True), (4, False), (5, False))


def test_frames_count_in_the_order_they_are_shown():
    assert B_FRAMES.places == [0, 2, 3, 1]


def test_frames_outside_of_the_edit_list_have_no_index():
    assert table((0, True), (1, False), (2, False), hidden=frozenset([0])).places == [1, 2]


def test_frames_far_apart_are_decoded_from_their_own_key_frames():
    assert groups(4, 10).runs([2, 35]) == [Run(0, 2, frozenset([2])), Run(30, 35, frozenset([35]))]


def test_frames_in_one_group_are_decoded_in_one_go():
    assert groups(4, 10).runs([12, 18]) == [Run(10, 18, frozenset([12, 18]))]


def test_a_key_frame_close_ahead_is_decoded_on_to():
    assert groups(4, 10).runs([8, 10]) == [Run(0, 10, frozenset([8, 10]))]


def test_what_is_shown_before_the_key_frame_starts_at_the_one_before():
    assert OPEN_GROUP.runs([4]) == [Run(0, 5, frozenset([5]))]


def test_after_a_seek_what_refers_to_before_the_key_frame_is_not_decoded():
    run = Run(4, 6, frozenset([4]))
    assert [place for place in range(7) if OPEN_GROUP.is_needed(place, run)] == [4]


def test_a_frame_is_settled_when_all_that_came_before_it_was_shown():
    assert not B_FRAMES.is_settled(2, shown=3)
    assert B_FRAMES.is_settled(2, shown=1)


def test_damage_reaches_to_the_next_key_frame():
    each = groups(3, 10)
    damage = Damage(each)
    damage.add(14)
    assert [place for place in range(30) if damage.reaches(place)] == list(range(14, 20))


def test_damage_reaches_the_first_pictures_of_the_next_open_group():
    damage = Damage(OPEN_GROUP)
    damage.add(1)
    assert [place for place in range(7) if damage.reaches(place)] == [1, 2, 3, 5, 6]


def test_damaged_first_pictures_of_an_open_group_spoil_none_after_them():
    damage = Damage(OPEN_GROUP)
    damage.add(5)
    assert not damage.reaches(4)


def test_times_that_are_missing_or_doubled_tell_no_order():
    packet = Packet(1, 1, True, True, 100)
    assert is_exact([packet, packet._replace(pts=2)])
    assert not is_exact([packet, packet._replace(pts=None)])
    assert not is_exact([packet, packet])
