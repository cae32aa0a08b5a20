import threading
import time

import pytest

from shards.ordered import in_order


def test_results_come_in_the_order_of_the_items():
    def late(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    assert list(in_order(late, range(20), threads=4, ahead=8)) == list(range(20))


def test_items_are_taken_no_further_ahead_than_the_bound():
    taken = []
    results = in_order(lambda number: number, (taken.append(n) or n for n in range(50)), threads=2, ahead=3)
    assert next(results) == 0
    assert len(taken) == 4


def test_an_error_reaches_the_caller_and_cancels_what_has_not_begun():
    begun = []

    def call(number):
        begun.append(number)
        if number == 0:
            raise ValueError("first")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="first"):
        list(in_order(call, range(100), threads=1, ahead=50))
    assert len(begun) < 10


def test_closing_ends_the_threads():
    before = threading.active_count()
    results = in_order(lambda number: number, range(100), threads=3, ahead=6)
    next(results)
    results.close()
    assert threading.active_count() == before
