"""DeepFakeDetection (DFD) by Google and Jigsaw: paid actors in scenes, some with several people.

Layout: ``original_sequences/actors/{raw,c23,c40}/videos/<actor>__<scene>.mp4`` and
    ``manipulated_sequences/DeepFakeDetection/{c}/videos/<T>_<S>__<scene>__<hash>.mp4``; masks in
    ``DeepFakeDetection/masks/videos`` (some may be far shorter than the video: FaceForensics issue 40).
Label: by folder.
Group of a fake: ``T__scene``, the video whose face was replaced; exact. Identity: the actor T.
Split: none is published; all is test.
Unknown: group and identity of a name of another form, which gets neither.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dfdet.schema import REAL_METHOD
from shards.datasets.ffpp import (
    Sequences,
    compression_of,
    manipulated,
    original,
    real_masks,
    refuse_other_compression,
)
from shards.datasets.lists import lacking, mask_note, short_of
from shards.source import Listing, ListOptions, Missing, Video

_REAL = re.compile(r"(?P<actor>\d+)__(?P<scene>.+)", re.ASCII | re.DOTALL)
_FAKE = re.compile(r"(?P<actor>\d+)_\d+__(?P<scene>.+)__[^_]+", re.ASCII | re.DOTALL)


def find(root: Path, options: ListOptions) -> Listing:
    """Lists reals and fakes of one compression, all of them test.

    Raises:
        InputError: A compression that is unknown or not there.
    """
    compression = compression_of(options)
    fake = manipulated(root, "DFD", "DeepFakeDetection", compression)
    real = original(root, "actors", compression)
    if not real.paths and not fake.paths:
        refuse_other_compression(root, compression, (real, fake))
    behind = {
        name: f"{parts['actor']}__{parts['scene']}" for name in fake.paths if (parts := _FAKE.fullmatch(name))
    }
    real = replace(real, masks=real_masks(behind, [fake]))
    reals = [_video(real, name, _REAL) for name in real.paths]
    fakes = [_video(fake, name, _FAKE) for name in fake.paths]
    implied = (Missing(REAL_METHOD, name, "test", "names of its fakes") for name in behind.values())
    notes = short_of({"real": len(reals), "DFD": len(fakes)}, {"real": 363, "DFD": 3068}) + mask_note(fakes)
    return Listing(f"dfd-{compression}", (*reals, *fakes), lacking(implied, reals), tuple(notes))


def _video(sequences: Sequences, name: str, form: re.Pattern[str]) -> Video:
    parts = form.fullmatch(name)
    return Video(
        path=sequences.paths[name],
        source=sequences.source,
        video=name,
        split="test",
        group=f"dfd/{parts['actor']}__{parts['scene']}" if parts else None,
        group_level="exact" if parts else "none",
        identity=parts["actor"] if parts else None,
        mask=sequences.masks.get(name),
        compression=sequences.compression,
    )
