import io

import pytest
from PIL import Image

from dfdet.errors import DamagedSampleError, ShardSetError
from dfdet.schema import CropRecipe, Sample
from shards.sets.read import SetReader
from shards.sets.write import ShardWriter


def sample(number, video="v"):
    return Sample(dataset="d.1", source="real", label=0, video=video, frame=number)


@pytest.fixture
def made(tmp_path):
    with ShardWriter(
        tmp_path, "set", dataset="d.1", split="all", crop=CropRecipe(), max_shard_bytes=20_480
    ) as writer:
        for number in range(12):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "png")
            long = "n" * 150  # Such a name has a PAX header.
            writer.add_group([(sample(number, "v" if number % 2 else long), "png", buffer.getvalue(), 8, 8)])
    return writer.manifest_path


def test_samples_and_images_of_all_shards_are_read_by_row(made):
    with SetReader(made) as reader:
        assert len(reader.manifest.shards) > 1
        assert [reader.sample(row).frame for row in reader.rows] == list(range(12))
        assert [reader.sample(row).key for row in reader.rows] == [row.key for row in reader.rows]
        pixels = [Image.open(io.BytesIO(reader.image(row))).getpixel((0, 0))[0] for row in reader.rows]
        assert pixels == list(range(12))
        assert reader.rows[0].dataset == "d%2E1"


def damage(made, place):
    tar = made.with_name("set-000000.tar")
    data = bytearray(tar.read_bytes())
    data[place] ^= 1
    tar.write_bytes(data)


def test_flipped_bit_of_an_image_is_found_by_its_checksum_only(made):
    with SetReader(made) as reader:
        row = reader.rows[1]
        damage(made, row.offset + 20)
        with pytest.raises(DamagedSampleError, match=r"d%2E1/real/v/000001.*checksum"):
            reader.image(row)
        assert len(reader.image(row, checked=False)) == row.size


def test_json_that_is_not_there_is_an_error_of_that_sample(made):
    with SetReader(made) as reader:
        row = reader.rows[1]
        damage(made, row.offset + row.size + -row.size % 512)
        with pytest.raises(DamagedSampleError, match="d%2E1/real/v/000001"):
            reader.sample(row)
        assert reader.sample(reader.rows[2]).frame == 2


def test_tar_that_ends_too_early_is_an_error_of_that_sample(made):
    with SetReader(made) as reader:
        tar = made.with_name("set-000000.tar")
        tar.write_bytes(tar.read_bytes()[: reader.rows[1].offset + 10])
        with pytest.raises(DamagedSampleError, match="ends too early"):
            reader.image(reader.rows[1])
        with pytest.raises(DamagedSampleError, match="JSON"):
            reader.sample(reader.rows[1])


def test_missing_tar_is_named(made):
    made.with_name("set-000001.tar").unlink()
    with pytest.raises(ShardSetError, match=r"set-000001.tar cannot be read"), SetReader(made):
        pass


def test_unfinished_set_is_refused(made):
    made.unlink()
    with pytest.raises(ShardSetError, match="finished shard set"):
        SetReader(made)
