import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.media.decode import Stored
from shards.media.footage import open_footage, read_masks
from shards.media.video import UnusableVideoError
from shards.source import Video
from tests.shards.numbered import number_in, numbered, write


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered(number)).save(buffer, "PNG")
    return buffer.getvalue()


def open_kind(path: Path, kind: str):
    return open_footage(Video(path, "real", "a", "all", kind=kind))


def tar(path: Path, members: dict[str, bytes], packed: bool = True) -> Path:
    with tarfile.open(path, "w:gz" if packed else "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def numbers(footage, positions=None) -> dict[int, int]:
    positions = range(footage.length) if positions is None else positions
    return {position: number_in(image) for position, image in footage.frames(positions)}


def reason(path: Path, kind: str) -> str:
    with pytest.raises(UnusableVideoError) as caught:
        open_kind(path, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Videos and images


def test_a_video_gives_its_frames(tmp_path):
    path = write(tmp_path / "a.mp4", map(numbered, range(9)), crf=20)
    with open_kind(path, "video") as footage:
        assert list(footage.numbers) == list(range(9))
        assert numbers(footage, [2, 7]) == {2: 2, 7: 7}


def test_frames_of_a_video_are_stored_without_loss(tmp_path):
    path = write(tmp_path / "a.mp4", map(numbered, range(5)), crf=20)
    with open_kind(path, "video") as footage:
        ((_, image),) = footage.frames([3])
        ((position, stored),) = footage.stored([3])
    assert (position, stored.ext, stored.width, stored.height) == (3, "webp", 144, 80)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.data))), image)


def test_a_frame_of_a_video_that_does_not_decode_has_its_reason(tmp_path):
    path = write(tmp_path / "a.mp4", map(numbered, range(9)), crf=20)
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with open_kind(path, "video") as footage:
        assert dict(footage.frames([0, 8])) == {}
        assert [(place, result[:15]) for place, result in footage.stored([0, 8])] == [
            (0, "does not decode"),
            (8, "does not decode"),
        ]


def test_an_image_is_one_upright_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(numbered(5)).save(tmp_path / "a.png", exif=exif)
    with open_kind(tmp_path / "a.png", "image") as footage:
        ((position, image),) = footage.frames([0])
    assert (footage.length, list(footage.numbers), position) == (1, [0], 0)
    assert np.array_equal(image, np.rot90(numbered(5)))


def test_an_image_that_does_not_decode_has_its_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(png(5)[:200])
    with open_kind(tmp_path / "a.png", "image") as footage:
        assert list(footage.frames([0])) == []
        assert footage.problem is not None and footage.problem.startswith("does not decode: ")
        assert list(footage.stored([0])) == [(0, footage.problem)]


def test_an_image_of_too_many_pixels_has_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.decode.MAX_PIXELS", 1000)
    (tmp_path / "a.png").write_bytes(png(5))
    with open_kind(tmp_path / "a.png", "image") as footage:
        assert list(footage.frames([0])) == []
        assert footage.problem == "144x80 px exceed 0 megapixels"


# Folders


def fill(folder: Path, names) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(number))
    return folder


def test_a_folder_numbers_frames_by_their_names(tmp_path):
    folder = fill(tmp_path / "a", ["frame_100.png", "frame_9.png", "frame_0020.png"])
    with open_kind(folder, "folder") as footage:
        assert list(footage.numbers) == [9, 20, 100]
        assert numbers(footage) == {0: 1, 1: 2, 2: 0}


@pytest.mark.parametrize("names", [["b10.png", "b9.png", "a.png"], ["b.10.png", "b.9.png", "a.9.png"]])
def test_a_folder_of_other_names_is_in_natural_order(tmp_path, names):
    with open_kind(fill(tmp_path / "a", names), "folder") as footage:
        assert list(footage.numbers) == [0, 1, 2]
        assert numbers(footage) == {0: 2, 1: 1, 2: 0}


def test_names_with_endless_digits_do_no_harm(tmp_path):
    folder = fill(tmp_path / "a", ["1" * 200 + ".png", "9" * 199 + ".png"])
    with open_kind(folder, "folder") as footage:
        assert numbers(footage) == {0: 1, 1: 0}


def test_other_files_in_a_folder_are_passed_over(tmp_path):
    folder = fill(tmp_path / "a", ["1.png"])
    (folder / "notes.txt").write_text("2")
    (folder / "sub.png").mkdir()
    with open_kind(folder, "folder") as footage:
        assert list(footage.numbers) == [1]


def test_an_unreadable_frame_is_left_out_and_the_others_stay(tmp_path):
    folder = fill(tmp_path / "a", ["1.png", "2.png", "3.png", "4.png"])
    (folder / "2.png").write_bytes(b"")
    (folder / "3.png").unlink()
    os.mkfifo(folder / "3.png")
    with open_kind(folder, "folder") as footage:
        assert numbers(footage) == {0: 0, 3: 3}
        assert dict(footage.stored([2])) == {2: "is no regular file"}


def test_a_folder_without_images_or_no_folder_says_so(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert reason(tmp_path / "a", "folder") == "has no images"
    assert reason(tmp_path / "b", "folder") == "is no folder"
    assert reason(tmp_path / "none", "folder") == "is no folder"
    assert "symbolic links" in reason(tmp_path / "loop", "folder")


# Archives


@pytest.mark.parametrize("packed", [True, False])
def test_an_archive_gives_its_images_by_number(tmp_path, packed):
    # Unordered, as tar packs a folder.
    path = tar(tmp_path / "a.tar.gz", {f"1/real/{number}.png": png(number) for number in (12, 3, 40)}, packed)
    with open_kind(path, "archive") as footage:
        assert list(footage.numbers) == [3, 12, 40]
        assert list(numbers(footage).items()) == [(0, 3), (1, 12), (2, 40)]
        assert numbers(footage, [1]) == {1: 12}


def test_ready_crops_of_an_archive_are_stored_byte_for_byte(tmp_path):
    path = tar(tmp_path / "a.tar.gz", {"1.png": png(1), "2.png": b"damaged"})
    with open_kind(path, "archive") as footage:
        good, bad = footage.stored([0, 1])
    assert good == (0, Stored("png", png(1), 144, 80))
    assert bad[1].startswith("does not decode")


def test_names_of_an_archive_are_never_paths(tmp_path):
    path = tar(tmp_path / "a.tar", {"../../x/1.png": png(1), "/etc/2.png": png(2), "a\n3.png": png(3)}, False)
    before = sorted(tmp_path.parent.rglob("*"))
    with open_kind(path, "archive") as footage:
        assert numbers(footage) == {0: 1, 1: 2, 2: 3}
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_only_files_of_an_archive_count(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = kind, str(tmp_path / "secret.png")
        archive.addfile(link)
        member = tarfile.TarInfo("2.png")
        member.size = len(png(2))
        archive.addfile(member, io.BytesIO(png(2)))
    with open_kind(tmp_path / "a.tar", "archive") as footage:
        assert list(footage.numbers) == [2]
        assert numbers(footage) == {0: 2}


@pytest.mark.parametrize("packed", [True, False])
def test_a_truncated_archive_gives_what_is_there(tmp_path, packed):
    path = tar(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(20)}, packed)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_kind(path, "archive") as footage:
        found = numbers(footage)
        assert 3 < len(found) < 20 and found == {number: number for number in range(len(found))}
        *_, (_, last) = footage.stored(range(footage.length))
    assert last == "is cut short in the archive"


def test_what_is_no_archive_says_so(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"no tar" * 1000))
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8bno gzip either")
    (tmp_path / "c.tar.gz").touch()
    assert reason(tmp_path / "a.tar.gz", "archive").startswith("has no images (archive breaks off: ")
    assert reason(tmp_path / "b.tar.gz", "archive").startswith("has no images (archive breaks off: ")
    assert reason(tmp_path / "c.tar.gz", "archive") == "is empty"
    assert reason(tar(tmp_path / "d.tar.gz", {"a.txt": b"1"}), "archive") == "has no images"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.archive.MAX_UNPACKED_BYTES", 32 << 20)
    path = tar(tmp_path / "a.tar.gz", {"zeros.bin": bytes(33 << 20), "1.png": png(1)})
    assert path.stat().st_size < 100_000
    assert reason(path, "archive") == "unpacks to over 32 MiB"


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.archive.MAX_MEMBERS", 5)
    path = tar(tmp_path / "a.tar.gz", {f"{number}.txt": b"" for number in range(6)})
    assert reason(path, "archive") == "has over 5 members"


def test_a_header_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.archive.MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * (2 << 20) + ".png"))
    assert reason(path, "archive") == "has a member or header of over 1 MiB"


def test_what_must_wait_is_held_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.media.archive.MAX_WAITING_BYTES", 3 * len(png(2)) // 2)
    path = tar(tmp_path / "a.tar.gz", {"2.png": png(2), "3.png": png(3), "1.png": png(1)})
    with open_kind(path, "archive") as footage:
        assert numbers(footage, [1, 2]) == {1: 2, 2: 3}  # In the archive's order none waits.
        first, second, third = dict(footage.stored([0, 1, 2])).values()
    assert "is too large" in first and "is too large" in third
    assert second == Stored("png", png(2), 144, 80)


# Masks


def test_masks_are_read_by_index_as_far_as_they_go(tmp_path):
    images = [np.full((80, 144, 3), 20 * index, np.uint8) for index in range(9)]
    images[5][:, 72:] = (0, 0, 250)
    path = write(tmp_path / "mask.mp4", images, crf=1)
    masks = read_masks(path, [2, 5, 30])
    assert list(masks) == [2, 5]
    assert masks[2].shape == (80, 144) and masks[2].dtype == np.uint8
    assert np.abs(masks[2].astype(int) - 40).max() <= 4
    assert masks[5][:, 80:].min() > 230 and masks[5][:, :64].max() < 110


def test_a_mask_that_is_no_video_says_so(tmp_path):
    (tmp_path / "mask.mp4").write_text("none")
    with pytest.raises(UnusableVideoError, match="is no video"):
        read_masks(tmp_path / "mask.mp4", [0])
