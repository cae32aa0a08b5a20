from __future__ import annotations

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from dfdet.config import Augment
from dfdet.data.augment import apply, draw_parameters, recompress
from dfdet.data.prepare import Prepare, pillow_resize
from dfdet.data.reader import DamageError
from dfdet.data.transforms import ToInput
from dfdet.errors import ConfigError
from tests.dfdet.data.pictures import encode, picture

TAGS = [("ViT-L-14-quickgelu", "openai"), ("ViT-B-16-SigLIP", "webli"), ("MobileCLIP-S1", "datacompdr")]
IMAGE = picture(5, 80, 80)


def open_clips(tag: tuple[str, str], size: int):
    """open_clip's own preprocessing of a tag, and its configuration."""
    cfg = open_clip.get_pretrained_cfg(*tag)
    names = ("mean", "std", "interpolation", "resize_mode")
    return open_clip.image_transform(size, is_train=False, **{name: cfg.get(name) for name in names}), cfg


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("side", [56, 97, 112, 224, 256, 260, 401])
@pytest.mark.parametrize("size", [112, 224])
def test_pillow_mode_is_open_clips_preprocessing_to_the_bit(tag, side, size):
    transform, cfg = open_clips(tag, size)
    interpolation = cfg.get("interpolation") or "bicubic"
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    to_input = ToInput(
        size,
        cfg.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        cfg.get("std") or open_clip.OPENAI_DATASET_STD,
        interpolation,
    )
    for image in (picture(side, side, side), noise):
        prepare = Prepare(max_side=40, resize=(size, interpolation))
        crop = prepare.crop(encode(image), side, side, None)
        found = to_input(torch.from_numpy(crop.copy())[None])[0]
        assert torch.equal(found, transform(Image.fromarray(image)))


def test_pillow_mode_resizes_the_middle_of_the_stored_crop():
    crop = Prepare(1024, resize=(32, "bicubic")).crop(encode(IMAGE), 80, 65, None)
    middle = Image.fromarray(IMAGE).crop((7, 7, 72, 72))
    assert (crop == np.asarray(middle.resize((32, 32), Image.Resampling.BICUBIC))).all()


def test_pillow_mode_refuses_filters_it_has_not():
    with pytest.raises(ConfigError, match=r"'nearest'.*bicubic or bilinear; set --data.resize device"):
        Prepare(1024, resize=(32, "nearest"))


def test_augmentation_comes_before_the_resize():
    (parameters,) = draw_parameters(Augment(), 0, 0, [3])
    crop = Prepare(1024, resize=(32, "bicubic")).crop(encode(IMAGE), 80, 80, parameters)
    assert (crop == pillow_resize(apply(IMAGE, parameters), 32)).all()


def test_jpeg_first_and_jpeg_only():
    (parameters,) = draw_parameters(Augment(), 0, 0, [3])
    compressed = recompress(IMAGE, parameters)
    out = io.BytesIO()
    Image.fromarray(IMAGE).save(out, "JPEG", quality=parameters.quality)
    assert (compressed == np.asarray(Image.open(out))).all()
    only = Prepare(1024, jpeg_first=True, jpeg_only=True).crop(encode(IMAGE), 80, 80, parameters)
    assert (only == compressed).all()
    whole = Prepare(1024, jpeg_first=True).crop(encode(IMAGE), 80, 80, parameters)
    assert (whole == apply(IMAGE, parameters, jpeg_first=True)).all()
    assert (whole != apply(IMAGE, parameters)).any()


def test_another_size_than_the_index_says_is_damage():
    with pytest.raises(DamageError, match="80x80") as error:
        Prepare(1024).crop(encode(IMAGE), 81, 80, None)
    assert error.value.reason == "size"
