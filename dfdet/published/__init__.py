"""Detectors that others published, read key by key into our own: no code of theirs is loaded or run."""

from dfdet.published.loading import Published, load
from dfdet.published.source import is_published

__all__ = ["Published", "is_published", "load"]
