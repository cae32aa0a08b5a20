"""``python -m dfdet.published`` says what a file is, on shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dfdet.published.__main__ import main
from dfdet.published.formats import headless
from tests.dfdet.published.authors import (
    Reference,
    clip_reference,
    dinov3_reference,
    in_wrapper,
    lightning_file,
    perception_reference,
    shapes_file,
)

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}


def test_dds_checkpoint_is_described(
    tmp_path: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = in_wrapper(reference.state_dict())
    path = lightning_file(tmp_path / "dd.ckpt", tensors, backbone="their/clip", head="LinearNorm")
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    tower = sum(p.numel() for p in reference.feature_extractor.vision_model.parameters())
    assert lines[:4] == [
        "kind        DD's Lightning checkpoint",
        "backbone    tiny-published-quickgelu (published as: their/clip), input 32 px",
        "head        linear on L2-normalised features",
        f"parameters  {tower:,} tower, 130 head",
    ]
    assert lines[4].startswith("crop        template dfb, scale 1.3, size_px 256, detector unknown")
    assert "not used    feature_extractor.visual_projection.weight" in lines


def large_clip() -> Reference:
    return clip_reference(**LARGE)


def large_perception() -> Reference:
    return perception_reference("vit_pe_core_large_patch14_336")


def large_dinov3() -> Reference:
    return dinov3_reference(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )


@pytest.mark.parametrize(
    ("build", "backbone", "parameters"),
    [
        (large_clip, "ViT-L-14-quickgelu", 303_179_776),
        (large_perception, "timm/vit_pe_core_large_patch14_336", 315_774_976),
        (large_dinov3, "timm/vit_large_patch16_dinov3_qkvb", 303_128_576),
    ],
)
def test_tensors_of_the_published_sizes_match_key_by_key(
    build: Callable[[], Reference],
    backbone: str,
    parameters: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with torch.device("meta"):
        tensors = build().state_dict()
    assert main([str(shapes_file(tmp_path / "large.safetensors", tensors))]) == 0
    out = capsys.readouterr().out
    assert f"{backbone} " in out
    assert f"{parameters:,} tower, 2,050 head" in out


def test_a_tower_without_a_head_is_described_with_its_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "openai.safetensors"
    save_file({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}, path)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kind        OpenAI or open_clip weights: a tower without a head",
        f"use         {headless.USE}",
    ]


def test_tensors_that_do_not_match_are_refused(
    tmp_path: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = reference.state_dict() | {"model.linear.bias": torch.zeros(3)}
    assert main([str(lightning_file(tmp_path / "bad.ckpt", tensors))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "linear.bias [3] instead of [2]" in error


def test_an_unknown_file_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "gone.ckpt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_other_words_print_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "python -m dfdet.published" in capsys.readouterr().out
