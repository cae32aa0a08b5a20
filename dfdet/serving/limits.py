"""What a request may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on a request and on all of them together."""

    max_bytes: int = 100 << 20
    """Body of a request (bytes)."""
    max_pixels: int = 40_000_000
    """An image, or a frame of a video (pixels)."""
    max_seconds: float = 600.0
    """Length of a video (s)."""
    timeout_s: float = 120.0
    """Time for the upload, and once more for the answer (s)."""
    max_queue: int = 32
    """Requests under way, those that wait counted."""
    max_files: int = 32
    """Files of a request."""

    @property
    def max_held_bytes(self) -> int:
        """Bodies of all requests together, which lie in memory (bytes)."""
        return 4 * self.max_bytes
