"""The demo set: procedural talking heads, and forgeries of them for training and for testing.

Two methods of forging are in ``train`` and ``val`` (``sbi``, ``swap``); ``heldout`` has new persons and a
third (``reenact``). Reals and fakes end in the same chain of resizing and JPEG, so that only an
inconsistency within the picture tells them apart.
"""

from shards.demo.build import build

__all__ = ["build"]
