"""Calls on threads: results in order, a bounded way ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def in_order(
    call: Callable[[Given], Result], items: Iterable[Given], threads: int, ahead: int
) -> Iterator[Result]:
    """Results in the order of the items; for work that frees the interpreter lock.

    Closing the iterator, or an error, cancels what has not begun and waits for what has.

    Args:
        call: What is done to an item.
        items: Taken as there is room.
        threads: At work.
        ahead: Most items begun and not yet handed out, besides the one asked for.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
