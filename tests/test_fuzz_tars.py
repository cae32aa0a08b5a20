"""1,000 damaged tars through the indexer and the training reader.

Each gives one clear line or a counted skip. Whatever is delivered is, pixel by pixel, what lay in the
sound tar; what was damaged before there was any checksum is what a strict decoder makes of its bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfdet.data.index import Index, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import sequential_plan
from dfdet.errors import DamagedSampleError, DfdetError, ShardSetError
from dfdet.schema import Manifest
from shards.foreign.index import IndexTars, index_tars
from shards.sets.manifest import read_manifest
from tests.shards.foreign.tarballs import END, FORMATS, member, picture, record

CASES, LOT = 1000, 100
BASES = 5
SIDE = 40

pytestmark = pytest.mark.timeout(200)  # A hang is a failure.


class Bomb:
    """Its unpickling leaves a file."""

    def __reduce__(self):
        return Path("bomb-went-off").write_text, ("x",)


@dataclass
class Base:
    """A sound tar, its index, and what it holds."""

    data: bytes
    manifest: Path
    index: Index
    pixels: np.ndarray
    headers: list[int]
    """Offsets of the member headers (bytes)."""
    images: list[tuple[int, int]]
    """Offset and size of each image payload (bytes)."""
    truth: dict[bytes, tuple[int, np.ndarray]]
    """Label and pixels by image payload."""


def foreign_tar(seed: int) -> bytes:
    """Five samples whose labels stand in JSON and .cls, so that one changed bit contradicts itself."""
    rng = np.random.default_rng(seed)
    parts = [
        member("pax_global_header", record("comment", b"x"), b"g"),
        member("k0.pkl", pickle.dumps(Bomb())),
    ]
    for number, ext in enumerate(("png", "jpg", "webp", "png", "jpeg")):
        key, label = f"s{seed}/k{number}", int(rng.integers(2))
        facts = {"label": label, "method": "DF" if label else "real", "group": f"g{number}"}
        options = {"lossless": True} if ext == "webp" else {}
        image = picture(seed * 10 + number, ext, (SIDE, 16 + 4 * number), **options)
        members = [
            member(f"{key}.{ext}", image),
            member(f"{key}.json", json.dumps(facts).encode()),
            member(f"{key}.cls", b"%d" % label),
            member(f"{key}.txt", b"a face"),
        ]
        if number == 1:
            members[0] = member("x", record("path", f"{key}.{ext}".encode()), b"x") + members[0]
        if number == 2:
            members[1] = member("././@LongLink", f"{key}.json\0".encode(), b"L") + members[1]
        parts += [members[place] for place in rng.permutation(4)]
    return b"".join(parts) + END + bytes(512 * int(rng.integers(4)))


def strict(payload: bytes) -> np.ndarray:
    """The middle square as Pillow decodes it: another program than the reader's for PNG and JPEG."""
    with Image.open(io.BytesIO(payload)) as image:
        pixels = np.asarray(image.convert("RGB"))
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def loaded(index: Index, on_damage: str) -> tuple[list[np.ndarray | None], Counter[str]]:
    """Pixels of each sample, None of those masked, and what was counted."""
    settings = {"crop_scale": 1.3, "augment": None, "seed": 0, "threads": 1, "prefetch": 2, "max_damaged": 99}
    loader = Loader(index, on_damage=on_damage, **settings)
    images: list[np.ndarray | None] = []
    with loader, closing(loader.batches(sequential_plan(len(index), 5), epoch=0, rank=0, world=1)) as batches:
        for batch in batches:
            for row, side in enumerate(batch.sizes.tolist()):
                pixels = batch.images[row].numpy()
                assert batch.valid[row] or not pixels.any()  # A masked image is zeros.
                images.append(pixels[:side, :side].copy() if batch.valid[row] else None)
    return images[: len(index)], loader.damaged


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Base]:
    folder = tmp_path_factory.mktemp("bases")
    return [base_of(folder / str(seed), foreign_tar(seed)) for seed in range(BASES)]


def base_of(folder: Path, data: bytes) -> Base:
    folder.mkdir()
    tar = folder / "a.tar"
    tar.write_bytes(data)
    manifest = index_tars(IndexTars(tars=(str(tar),), out=folder))
    index = open_sets([manifest])
    with tarfile.open(tar) as file:
        found = [(info.offset, info.offset_data, info.size, info.name) for info in file]
    images = [(start, size) for _, start, size, name in found if name.rpartition(".")[2] in FORMATS]
    assert sorted(images) == list(zip(index.offset.tolist(), index.size.tolist(), strict=True))
    payloads = [data[start : start + size] for start, size in sorted(images)]
    pixels = [strict(payload) for payload in payloads]
    labels = index.label.tolist()
    truth = {payload: each for payload, *each in zip(payloads, labels, pixels, strict=True)}
    headers = [start for start, *_ in found]
    return Base(data, manifest, index, pixels, headers, images, truth)


Mutation = Callable[[np.random.Generator, Base], bytes]


def flipped(rng, base):
    data = bytearray(base.data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def flipped_in_a_header(rng, base):
    data = bytearray(base.data)
    place = pick(rng, (*range(148), *range(156, 512)))  # A space of the checksum's own field may go.
    data[pick(rng, base.headers) + place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def label_flipped(rng, base):
    data = bytearray(base.data)
    data[pick(rng, [found.end() for found in re.finditer(b'"label": ', base.data)])] ^= 1
    return bytes(data)


def flipped_in_an_image(rng, base):
    data, (start, size) = bytearray(base.data), pick(rng, base.images)
    for place in rng.integers(size, size=rng.integers(1, 5)):
        data[start + int(place)] ^= 1 << int(rng.integers(8))
    return bytes(data)


def noise_in_an_image(rng, base):
    start, size = pick(rng, base.images)
    low = int(rng.integers(size))
    length = min(int(rng.integers(1, 64)), size - low)
    return base.data[: start + low] + rng.bytes(length) + base.data[start + low + length :]


def image_with_its_tail_lost(rng, base):
    start, size = pick(rng, base.images)
    kept = int(rng.integers(size))
    return base.data[: start + kept] + bytes(size - kept) + base.data[start + size :]


def image_put_for_another(rng, base):
    (start, size), (other, length) = pick(rng, base.images), pick(rng, base.images)
    wrong = base.data[other : other + length].ljust(size, b"\0")[:size]
    return base.data[:start] + wrong + base.data[start + size :]


def bomb_for_an_image(rng, base):
    start, size = pick(rng, base.images)
    return base.data[:start] + pickle.dumps(Bomb()).ljust(size, b".")[:size] + base.data[start + size :]


def cut(rng, base):
    return base.data[: rng.integers(len(base.data))]


def cut_at_a_block(rng, base):
    return base.data[: 512 * int(rng.integers(len(base.data) // 512))]


def blocks_swapped(rng, base):
    blocks = blocks_of(base.data)
    one, two = rng.integers(len(blocks), size=2)
    blocks[one], blocks[two] = blocks[two], blocks[one]
    return b"".join(blocks)


def block_lost_or_doubled(rng, base):
    blocks, place = blocks_of(base.data), int(rng.integers(len(base.data) // 512))
    return b"".join(
        blocks[:place] + blocks[place : place + 1] * int(rng.choice([0, 2])) + blocks[place + 1 :]
    )


def block_of_zeros_or_noise(rng, base):
    blocks = blocks_of(base.data)
    blocks[rng.integers(len(blocks))] = bytes(512) if rng.random() < 0.5 else rng.bytes(512)
    return b"".join(blocks)


def bytes_put_in(rng, base):
    place = int(rng.integers(len(base.data)))
    return base.data[:place] + rng.bytes(int(rng.integers(1, 2000))) + base.data[place:]


def wrong_size(rng, base):
    size = [b"%011o\0" % int(rng.integers(1 << 14)), b"77777777777\0", b"\x80" + rng.bytes(11), b"\xff" * 12]
    return header_changed(rng, base, 124, size[rng.integers(4)])


def wrong_type(rng, base):
    return header_changed(rng, base, 156, bytes([pick(rng, b"0\x0012345678LKxXgSMDVNZ")]))


def wrong_byte_in_a_summed_header(rng, base):
    return header_changed(rng, base, int(rng.integers(500)), rng.bytes(1))


def hostile_name(rng, base):
    names = (
        *(b"../../a.png", b"/etc/passwd.png", b"~/.ssh.json", b"%2e%2e%2f.png", b"..", b".", b"", b"con.cls"),
        *(b"a\nb.png", b"\xff\xfe.png", b"\x1b[2J.png", b"a.png.pkl", b"pipe:touch bomb-went-off.png"),
    )
    return header_changed(rng, base, 0, pick(rng, names).ljust(100, b"\0"))


def tar_behind_the_tar(rng, base):
    return base.data + base.data[: 512 * int(rng.integers(1, 9))]


def no_tar(rng, base):
    files = (
        b"",
        rng.bytes(3000),
        gzip.compress(base.data),
        pickle.dumps(Bomb()),
        bytes(5000),
        b"PK\3\4" * 500,
    )
    return pick(rng, files)


MUTATIONS: tuple[Mutation, ...] = (
    *(flipped, flipped_in_a_header, label_flipped, flipped_in_an_image, noise_in_an_image),
    *(image_with_its_tail_lost, image_put_for_another, bomb_for_an_image, cut, cut_at_a_block),
    *(blocks_swapped, block_lost_or_doubled, block_of_zeros_or_noise, bytes_put_in, wrong_size, wrong_type),
    *(wrong_byte_in_a_summed_header, hostile_name, tar_behind_the_tar, no_tar),
)
REFUSED = (flipped_in_a_header, label_flipped, bytes_put_in, tar_behind_the_tar, no_tar)
"""Never indexed."""
SUMMED = (wrong_size, wrong_type, wrong_byte_in_a_summed_header, hostile_name)
"""Headers whose checksum was put right again: a whole tar of another content."""
OTHER_IMAGES = (image_put_for_another, blocks_swapped)
"""May put a sound image (or header) in another's place before there is a checksum: nobody can tell."""


def pick(rng, items):
    return items[rng.integers(len(items))]


def blocks_of(data):
    return [data[start : start + 512] for start in range(0, len(data), 512)]


def header_changed(rng, base, place, value):
    """A header with other bytes and a checksum that fits them."""
    start = pick(rng, base.headers)
    block = bytearray(base.data[start : start + 512])
    block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return base.data[:start] + bytes(block) + base.data[start + 512 :]


def one_line(error: DfdetError) -> bool:
    text = str(error)
    return 0 < len(text) < 2000 and text.isprintable()


def check_reader(base: Base, tar: Path, data: bytes) -> str:
    """Reads by the sound tar's index what was damaged since; nothing but sound pixels may come."""
    sound = [
        base.data[start : start + size] == data[start : start + size] for start, size in sorted(base.images)
    ]
    images, counts = loaded(base.index, "skip")
    assert [image is not None for image in images] == sound
    assert counts.total() == sound.count(False) and set(counts) <= {"short", "crc"}
    for image, pixels in zip(images, base.pixels, strict=True):
        assert image is None or np.array_equal(image, pixels)
    if len(data) != len(base.data):
        with pytest.raises(ShardSetError) as refused:
            open_sets([base.manifest])
        assert one_line(refused.value)
    if all(sound):
        return "read whole"
    with pytest.raises(DamagedSampleError) as caught:
        loaded(base.index, "raise")
    assert one_line(caught.value)
    return "read in part"


def check_indexer(base: Base, tar: Path, data: bytes, out: Path, mutation: Mutation) -> str:
    """Indexes what is damaged: a refusal in one line, or an index that tells and reads what is there."""
    try:
        path = index_tars(IndexTars(tars=(str(tar),), out=out, threads=1))
    except DfdetError as error:
        assert one_line(error)
        assert not out.exists() or not list(out.iterdir())
        return "refused"
    assert mutation not in REFUSED
    manifest, index = read_manifest(path), open_sets([path])
    if mutation not in SUMMED:
        assert len(index) + losses(manifest) >= len(base.index)  # None is lost without a word.
    for number, image in enumerate(loaded(index, "skip")[0]):
        start = int(index.offset[number])
        payload = data[start : start + int(index.size[number])]
        assert zlib.crc32(payload) == index.crc32[number]
        label, pixels = base.truth.get(payload, (None, None))
        if image is not None:
            assert np.array_equal(image, strict(payload) if pixels is None else pixels)
        if label is not None and mutation not in OTHER_IMAGES:
            assert index.label[number] == label
    return "indexed with losses" if losses(manifest) else "indexed"


def losses(manifest: Manifest) -> int:
    short = sum(each.asked - each.faces for each in manifest.shortfalls)
    return len(manifest.failures) + short + len(manifest.missing)


@pytest.mark.parametrize("lot", range(CASES // LOT))
def test_a_thousand_damaged_tars_are_told_or_read_right(bases, tmp_path, monkeypatch, lot):
    monkeypatch.chdir(tmp_path)
    outcomes: Counter[str] = Counter()
    for case in range(lot * LOT, (lot + 1) * LOT):
        rng, base = np.random.default_rng(case), bases[case % BASES]
        mutation = MUTATIONS[case % len(MUTATIONS)]
        data = mutation(rng, base)
        tar = base.manifest.parent / "a.tar"
        tar.write_bytes(data)
        try:
            outcomes[check_reader(base, tar, data)] += 1
            outcomes[check_indexer(base, tar, data, tmp_path / str(case), mutation)] += 1
        except Exception as error:
            error.add_note(f"case {case}: {mutation.__name__}")
            raise
    assert not (tmp_path / "bomb-went-off").exists()
    assert outcomes.total() == 2 * LOT
    assert all(
        outcomes[kind] for kind in ("refused", "indexed", "indexed with losses", "read whole", "read in part")
    )


def test_the_bomb_would_go_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch bomb-went-off",
        "pipe://touch bomb-went-off",
        "simplecache::pipe:touch bomb-went-off",
        "file:///etc/passwd",
        "/etc/../etc/passwd",
        "https://user:hunter2@host/a.tar",
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(bases, tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    base = bases[0]
    told = json.loads(base.manifest.read_text())
    told["shards"][0]["url"] = url
    (tmp_path / "tars.json").write_text(json.dumps(told))
    (tmp_path / "tars.parquet").write_bytes(base.manifest.with_suffix(".parquet").read_bytes())
    with pytest.raises(DfdetError) as caught:
        open_sets([tmp_path / "tars.json"])
    assert one_line(caught.value) and "hunter2" not in str(caught.value)
    assert not (tmp_path / "bomb-went-off").exists()
