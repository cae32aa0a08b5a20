"""KoDF, the Korean deepfake dataset (Kwon et al., arXiv 2103.10094).

Layout: videos anywhere below the root: reals ``<actor>_<NNN>.mp4``, fakes
    ``<target>_<source>_<code>_<seq>.mp4``; the code is the method.
Label: the name, as said.
Group of a fake: ``kodf/<target>``, identity: the recording behind it is not told. Reals likewise.
Split: none official; all is test.
Unknown: recordings behind fakes. Copies with noise have the names of their originals; whichever
    comes first by path is taken.
"""

from __future__ import annotations

import re
from pathlib import Path

from dfdet.schema import REAL_METHOD
from shards.datasets import walk
from shards.datasets.named import LeftOut, by_file_stem
from shards.source import Listing, ListOptions, Video

METHODS = {"1": "dfl", "2": "dffs", "3": "fsgan", "4": "fo", "5": "audio-driven"}
"""By the code in the name: DeepFaceLab, FaceSwap, FSGAN, FOMM, audio-driven (ATFHP, Wav2Lip)."""
_REAL = re.compile(r"(?P<person>[0-9A-Za-z]+)_[0-9]+")
_FAKE = re.compile(r"(?P<person>[0-9A-Za-z]+)_[0-9A-Za-z]+_(?P<code>[0-9]+)_[0-9]+")


def find(root: Path, options: ListOptions) -> Listing:
    """Videos whose name tells what they are."""
    left_out = LeftOut()
    videos = []
    for stem, path in by_file_stem(walk.tree(root), left_out).items():
        real, fake = _REAL.fullmatch(stem), _FAKE.fullmatch(stem)
        name = real or fake
        if name is None:
            left_out.add("files whose name tells no label", path.name)
            continue
        person = name["person"]
        source = REAL_METHOD if real else METHODS.get(name["code"], f"code-{name['code']}")
        videos.append(Video(path, source, stem, "test", f"kodf/{person}", "identity", identity=person))
    return Listing("kodf", tuple(videos), (), left_out.notes)
