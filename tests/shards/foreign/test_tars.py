import bz2
import gzip
import hashlib
import io
import lzma
import tarfile

import pytest
import webdataset

from shards.foreign.tars import Member, TarError, TarStream, members
from tests.shards.foreign.tarballs import (
    END,
    header,
    member,
    padded,
    pax,
    record,
    sample,
    write,
    write_by_tarfile,
)


def walk(data: bytes) -> list[Member]:
    return list(members(TarStream(io.BytesIO(data))))


def names(data: bytes) -> list[bytes]:
    return [each.name for each in walk(data)]


def refusal(data: bytes) -> str:
    with pytest.raises(TarError) as caught:
        walk(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


THREE = [member("a.txt", b"A" * 700), member("b.txt", b"B" * 100), member("c.txt", b"C" * 512)]
WHOLE = b"".join(THREE) + END


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_says_in_every_format(tmp_path, form):
    long = "d/" * 60 + "deep.jpg" if form == tarfile.USTAR_FORMAT else "d" * 300 + ".jpg"
    wanted = {"a.jpg": b"1" * 600, long: b"2" * 512, "empty.txt": b"", "ü/c.json": b"{}"}
    path = write_by_tarfile(tmp_path / "a.tar", wanted, form)
    with tarfile.open(path) as tar:
        theirs = [(info.name.encode(), True, info.offset_data, info.size) for info in tar]
    assert walk(path.read_bytes()) == theirs
    assert [name.decode() for name, *_ in theirs] == list(wanted)


def test_the_checksum_is_that_of_the_whole_file():
    stream = TarStream(io.BytesIO(WHOLE + bytes(4096)))
    list(members(stream))
    assert stream.sha256 == hashlib.sha256(WHOLE + bytes(4096)).hexdigest()
    assert stream.offset == len(WHOLE) + 4096


def test_a_payload_may_be_taken_or_left():
    stream = TarStream(io.BytesIO(WHOLE))
    taken = [stream.take(each.size, "x") for each in members(stream) if each.name != b"b.txt"]
    assert taken == [b"A" * 700, b"C" * 512]


@pytest.mark.parametrize("chunk", [1, 100, 511])
def test_short_reads_of_the_source_are_put_together(chunk):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, chunk))

    assert list(members(TarStream(Slow(WHOLE)))) == walk(WHOLE)


def test_links_devices_and_folders_have_no_payload():
    parts = [member("link", kind=b"2"), member("node", kind=b"3"), member("folder/", kind=b"5"), THREE[0]]
    assert [each.is_file for each in walk(b"".join(parts) + END)] == [False, False, False, True]


def test_sizes_in_base_256_are_read():
    size = b"\x80" + (700).to_bytes(11, "big")
    assert walk(member("a", b"A" * 700, size=size) + END)[0].size == 700


def test_a_negative_size_is_refused():
    assert "is no number" in refusal(member("a", size=b"\xff" * 12) + END)


def test_signed_checksums_of_old_writers_are_taken():
    name = "ü.jpg".encode()
    unsigned = sum(header(name, 0, sum=b" " * 8))
    signed = unsigned - 256 * sum(byte > 127 for byte in name)
    assert names(header(name, 0, sum=b"%06o\0 " % signed) + END) == [name]


def test_a_prefix_counts_under_the_posix_magic_only():
    assert names(header(b"a.jpg", 0, prefix=b"dir") + END) == [b"dir/a.jpg"]
    assert names(header(b"a.jpg", 0, prefix=b"01234567", magic=b"ustar  \0") + END) == [b"a.jpg"]


def test_pax_names_and_sizes_overrule_the_header():
    data = pax(path=b"long.jpg", size=b"700") + header(b"short", 0) + padded(b"A" * 700) + THREE[1] + END
    assert [(each.name, each.size) for each in walk(data)] == [(b"long.jpg", 700), (b"b.txt", 100)]


def test_a_pax_header_counts_for_one_member():
    assert names(pax(path=b"x.jpg") + THREE[0] + THREE[1] + END) == [b"x.jpg", b"b.txt"]


def test_global_pax_headers_are_passed_over():
    assert names(member("g", record("comment", b"of git"), b"g") + THREE[0] + END) == [b"a.txt"]


@pytest.mark.parametrize("key", ["path", "size"])
def test_a_global_name_or_size_for_all_members_is_refused(key):
    assert "global header" in refusal(member("g", record(key, b"7"), b"g") + THREE[0] + END)


@pytest.mark.parametrize(
    "data",
    [
        member("s", b"x", b"S"),
        pax(**{"GNU.sparse.map": b"0,1"}) + THREE[0],
        pax(**{"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0"}) + THREE[0],
    ],
)
def test_sparse_members_are_refused(data):
    assert "sparse" in refusal(data + END)


@pytest.mark.parametrize("kind", [b"M", b"D", b"Q"])
def test_volumes_and_unknown_kinds_are_refused(kind):
    assert "of type" in refusal(member("m", b"x", kind) + END)


@pytest.mark.parametrize(
    "body",
    [b"junk\n", b"8 path=a\n", b"99 path=a\n", b"10 path=ab", b"0 a=b\n", record("path", b"a") + b"\0"],
)
def test_a_damaged_pax_record_is_found(body):
    assert "extended header" in refusal(member("p", body, b"x") + THREE[0] + END)


def test_an_extended_header_without_its_member_is_found():
    assert "without a member" in refusal(THREE[0] + pax(path=b"a") + END)


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_huge_extended_header_is_refused_unread(kind):
    assert "extended header of" in refusal(member("x", kind=kind, size=b"77777777777\0") + END)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("byte", [0, 60, 124, 150, 156, 300, 511])
def test_a_changed_bit_in_any_header_is_found(place, byte):
    data = bytearray(WHOLE)
    at = sum(len(part) for part in THREE[:place]) + byte
    data[at] ^= 1
    assert f"byte {at - byte}" in refusal(bytes(data))


def test_a_cut_at_any_byte_before_the_end_is_found():
    for size in range(0, len(WHOLE), 37):
        refusal(WHOLE[:size])


def test_a_cut_inside_a_header_is_found_where_python_stops_silently(tmp_path):
    cut = WHOLE[: len(THREE[0]) + 200]
    with tarfile.open(fileobj=io.BytesIO(cut)) as tar:
        assert tar.getnames() == ["a.txt"]  # Not a word of b and c.
    assert "cut off at byte 1736" in refusal(cut)


def test_a_damaged_header_is_found_where_webdataset_passes_it_silently(tmp_path):
    parts = [sample(f"k{number}", 0, number) for number in range(3)]
    data = bytearray(b"".join(parts) + END)
    data[len(parts[0]) + 3] ^= 1
    path = write(tmp_path / "a.tar", bytes(data), end=b"")
    seen = [each["__key__"] for each in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert seen == ["k0"]  # A third of the data, and no error.
    assert f"damaged header at byte {len(parts[0])}" in refusal(bytes(data))


@pytest.mark.parametrize("end", [b"", bytes(512)])
def test_missing_zero_blocks_are_found_where_webdataset_misses_them(tmp_path, end):
    path = write(tmp_path / "a.tar", sample("k", 0), end=end)
    assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) == 1
    refusal(path.read_bytes())


def test_a_tar_behind_a_tar_is_found():
    assert "goes on after its end" in refusal(WHOLE + WHOLE)


def test_bytes_behind_the_end_are_found():
    assert "goes on after its end" in refusal(WHOLE + bytes(512) + b"x")
    assert "no multiple of 512" in refusal(WHOLE + bytes(100))


def test_a_zeroed_header_is_found():
    data = THREE[0] + bytes(512) + THREE[1][512:] + THREE[2] + END
    assert "lone zero block" in refusal(data)


@pytest.mark.parametrize(
    ("pack", "tool"), [(gzip.compress, "gunzip"), (bz2.compress, "bunzip2"), (lzma.compress, "unxz")]
)
def test_compressed_tars_are_refused_with_the_tool_to_unpack_them(pack, tool):
    assert tool in refusal(pack(WHOLE))


def test_an_empty_file_is_no_tar():
    assert refusal(b"") == "is empty"


def test_an_empty_tar_has_no_members():
    assert walk(END) == []


@pytest.mark.parametrize("name", [b"", b"n" * 5000])
def test_a_name_of_no_or_too_many_bytes_is_refused(name):
    assert "with a name of" in refusal(pax(path=name) + member("a") + END)
