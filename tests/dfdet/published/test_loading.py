"""Published detectors give the authors' logits, and what their files tell."""

from __future__ import annotations

import sys
import types
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, DINOv3ViTImageProcessor
from transformers.image_utils import PILImageResampling

from dfdet.published import Published, load
from dfdet.published.formats import hugging_face
from dfdet.published.raw import Raw
from dfdet.published.towers import map_tower
from tests.dfdet.published.authors import (
    TINY,
    Reference,
    dinov3_reference,
    gend_folder,
    in_wrapper,
    lightning_file,
    perception_reference,
)


def logits(published: Published, images: Tensor) -> Tensor:
    with torch.no_grad():
        return published.detector.head(published.detector(images), None)


def assert_equal_logits(published: Published, reference: Reference, images: Tensor) -> None:
    ours, theirs = logits(published, images), reference(images)
    assert theirs.std() > 1e-3  # images differ in their logits: equality says something
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["LinearNorm", "linear"])
def test_a_folder_of_gend_gives_its_logits(
    head: str, tmp_path: Path, reference: Reference, images: Tensor
) -> None:
    reference.normalize = head == "LinearNorm"
    folder = gend_folder(tmp_path / "gend", reference.state_dict(), backbone="some/clip", head=head)
    published = load(str(folder))
    assert_equal_logits(published, reference, images)
    assert published.config.model.normalize is reference.normalize


@pytest.mark.parametrize("head", ["LinearNorm", "linear"])
def test_dds_lightning_checkpoint_gives_the_logits_of_its_adapters(
    head: str, tmp_path: Path, reference: Reference, images: Tensor
) -> None:
    reference.normalize = head == "LinearNorm"
    path = lightning_file(
        tmp_path / "dd.ckpt", in_wrapper(reference.state_dict()), backbone="clip", head=head
    )
    published = load(str(path))
    assert published.kind == "DD's Lightning checkpoint"
    assert_equal_logits(published, reference, images)


def test_gends_lightning_checkpoint_gives_its_logits(
    tmp_path: Path, reference: Reference, images: Tensor
) -> None:
    path = lightning_file(tmp_path / "gend.ckpt", reference.state_dict(), backbone="clip", head="LinearNorm")
    published = load(str(path))
    assert published.kind == "GenD's Lightning checkpoint"
    assert_equal_logits(published, reference, images)


def test_half_precision_files_are_computed_in_float32(
    tmp_path: Path, reference: Reference, images: Tensor
) -> None:
    halves = {name: tensor.half() for name, tensor in reference.state_dict().items()}
    reference.load_state_dict(halves)
    published = load(str(lightning_file(tmp_path / "half.ckpt", halves, head="LinearNorm")))
    assert {p.dtype for p in published.detector.parameters()} == {torch.float32}
    assert_equal_logits(published, reference, images)


def test_a_perception_encoder_gives_the_logits_that_timms_own_resampling_gives(tmp_path: Path) -> None:
    """The authors run weights of 384 pixels on 224."""
    name = "vit_pe_core_tiny_patch16_384"
    reference = perception_reference(name)
    folder = gend_folder(tmp_path, reference.state_dict(), backbone=name, head="LinearNorm")
    published = load(str(folder))
    assert published.config.model.backbone == f"timm/{name}"
    assert published.config.model.image_size == 224
    assert_equal_logits(published, reference, torch.randn(2, 3, 224, 224))


def test_dinov3_gives_the_logits_of_its_class_token(tmp_path: Path) -> None:
    reference = dinov3_reference()
    name = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    tensors = {k.replace(".model.layer.", ".layer."): v for k, v in reference.state_dict().items()}
    published = load(str(gend_folder(tmp_path, tensors, backbone=name, head="LinearNorm")))
    assert published.config.model.backbone == "timm/vit_tiny_patch16_dinov3_qkvb"
    preprocess, processor = published.detector.preprocess, DINOv3ViTImageProcessor()
    assert (preprocess.mean, preprocess.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert (preprocess.interpolation, processor.resample) == ("bilinear", PILImageResampling.BILINEAR)
    assert processor.size == {"height": preprocess.image_size, "width": preprocess.image_size}
    assert "mask_token" in published.note
    assert_equal_logits(published, reference, torch.randn(2, 3, 224, 224))


def test_dinov3_of_transformers_5_has_the_same_tensors() -> None:
    with torch.device("meta"):
        new = dinov3_reference().state_dict()
    old = {k.replace(".model.layer.", ".layer."): v for k, v in new.items()}
    assert set(old) != set(new)
    mapped = [map_tower(hugging_face.contents(Raw("x", t, {}, False, ())), "x").tensors for t in (old, new)]
    assert {k: v.shape for k, v in mapped[0].items()} == {k: v.shape for k, v in mapped[1].items()}


def test_the_detector_is_tuned_as_published_and_scores_in_evaluation_mode(
    tmp_path: Path, reference: Reference
) -> None:
    folder = gend_folder(tmp_path, reference.state_dict(), backbone="clip", head="LinearNorm")
    detector = load(str(folder)).detector
    assert not detector.training and detector.precision == "fp32"
    norms = {name for name in detector.trainable() if name.startswith("tower.")}
    assert len(norms) == 2 * (2 + 2 * 2) and all(".ln_" in name for name in norms)  # pre, post, 2 a block
    assert {"head.linear.weight", "head.linear.bias"} == set(detector.trainable()) - norms


def test_images_are_prepared_as_the_authors_processor_does(tmp_path: Path, reference: Reference) -> None:
    folder = gend_folder(tmp_path, reference.state_dict(), backbone="clip", head="LinearNorm")
    preprocess = load(str(folder)).detector.preprocess
    processor = CLIPImageProcessor()
    assert (preprocess.mean, preprocess.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert (preprocess.interpolation, processor.resample) == ("bicubic", PILImageResampling.BICUBIC)


def test_a_file_inside_its_folder_takes_the_config_beside_it(tmp_path: Path, reference: Reference) -> None:
    folder = gend_folder(tmp_path, reference.state_dict(), backbone="clip", head="linear")
    assert load(str(folder / "model.safetensors")).config.model.normalize is False


def test_what_a_file_does_not_tell_is_inferred_and_said(tmp_path: Path, reference: Reference) -> None:
    published = load(str(lightning_file(tmp_path / "bare.ckpt", reference.state_dict())))
    assert published.config.model.backbone == TINY
    assert published.config.model.normalize
    assert "its backbone is not told: taken from its sizes" in published.note
    assert "its head's kind is not told" in published.note


def test_tensors_that_no_feature_depends_on_are_named(tmp_path: Path, reference: Reference) -> None:
    path = lightning_file(tmp_path / "dd.ckpt", in_wrapper(reference.state_dict()), head="LinearNorm")
    note = load(str(path)).note
    assert "not used: feature_extractor.visual_projection.weight" in note
    old = "feature_extractor.base_model.model.vision_model.encoder.layers.*.layer_norm1.base_layer.weight"
    assert f"not used: {old} (2)" in note


def test_training_values_of_a_lightning_checkpoint_become_fields(
    tmp_path: Path, reference: Reference
) -> None:
    path = lightning_file(
        tmp_path / "dd.ckpt",
        in_wrapper(reference.state_dict()),
        backbone="clip",
        head="LinearNorm",
        lr=2e-4,
        min_lr=1e-5,
        batch_size=64,
        max_epochs=7,
        lr_scheduler="cyclic",
        loss={"ce_labels": 1.0, "uniformity": 0.3, "alignment_labels": 0.2},
    )
    config = load(str(path)).config
    assert (config.run.recipe, config.data.global_batch) == ("paper", 64)
    assert (config.optim.lr, config.optim.min_lr, config.optim.epochs) == (2e-4, 1e-5, 7)
    assert (config.optim.schedule, config.loss.uniformity, config.loss.alignment) == ("restarts", 0.3, 0.2)


def test_training_values_that_are_impossible_here_are_left_out_and_said(
    tmp_path: Path, reference: Reference
) -> None:
    path = lightning_file(tmp_path / "gend.ckpt", reference.state_dict(), head="LinearNorm", lr=-1.0)
    published = load(str(path))
    assert published.config.optim.lr == 3e-4
    assert "optim.lr=-1.0" in published.note


def test_members_of_the_authors_enumerations_are_read_by_value(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("their_package")
    module.Head = Enum("Head", {"NLinear": "linear"}, module="their_package")  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "their_package", module)
        path = lightning_file(tmp_path / "dd.ckpt", reference.state_dict(), head=module.Head.NLinear)
    published = load(str(path))
    assert published.config.model.normalize is False
    assert "their_package.Head" in published.note


def test_crops_are_those_of_the_authors(tmp_path: Path, reference: Reference) -> None:
    dd = lightning_file(tmp_path / "dd.ckpt", in_wrapper(reference.state_dict()), head="LinearNorm")
    gend = gend_folder(tmp_path / "gend", reference.state_dict(), backbone="clip", head="LinearNorm")
    crops = [load(str(path)).crop for path in (dd, gend)]
    assert [(c.template, c.scale, c.size_px) for c in crops] == [("dfb", 1.3, 256), ("gend", 1.3, None)]
    assert [c.detector_weights_sha256 for c in crops] == [None, None]
