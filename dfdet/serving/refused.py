"""A request that gets no prediction: its HTTP status, a code for programs, a line for people."""

from __future__ import annotations


class RefusedError(Exception):
    """What a client is told instead of an answer; never holds what a client sent.

    Args:
        status: Of HTTP.
        code: One word for programs, as ``too_large``.
        message: One line for people, with the limit or the remedy.
        retry_after_s: When to come again (s); None: the same request will fail again.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(status, code, message, retry_after_s)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


def busy(message: str) -> RefusedError:
    """The server has no room now."""
    return RefusedError(503, "busy", message, retry_after_s=1)
