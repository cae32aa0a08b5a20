"""Names of videos for people: what would break a line or a terminal is escaped."""

from __future__ import annotations

from dfdet.schema import decode_part


def printable(name: str) -> str:
    """A name as on the disk, with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def readable(name: str) -> str:
    """``<dataset>/<source>/<video>`` of a key, with the percent-encoding undone."""
    return printable(decode_part(name))
