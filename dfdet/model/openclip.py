"""open_clip towers by name: pooled features before any projection, float32 residual stream."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.model import _build_vision_tower as open_clip_build_vision_tower
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dfdet.config import Model
from dfdet.errors import ConfigError, WeightsError
from dfdet.model.openclip_blocks import lighten
from dfdet.model.preprocess import Preprocess
from dfdet.model.timm_tower import classifier_names, feature_dim, resize_input
from dfdet.model.weights import Tensors, fit, from_hugging_face, is_hugging_face, load, pick, read_tensors

log = logging.getLogger(__name__)

PREFIXES = ("tower.visual.", "visual.")


class OpenClipTower(nn.Module):
    """An open_clip vision tower: images ``[B, 3, H, W]`` to features ``[B, output_dim]``.

    The features of a CLIP ViT are its class token after the last LayerNorm, Hugging Face's
    ``pooler_output``; a ModifiedResNet's are those of its attention pooling. Under autocast the
    embedding and its positional sum stay float32, and so does every later sum of the residual stream:
    stock open_clip casts them to bfloat16, at 5 times the feature error and 10 times the error of the
    LayerNorms' gradients. Blocks are :mod:`dfdet.model.openclip_blocks`'.
    """

    def __init__(self, visual: nn.Module, output_dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.output_dim = output_dim
        self.checkpointing = False
        if isinstance(visual, VisionTransformer):
            lighten(visual)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, output_dim]``."""
        if not isinstance(self.visual, VisionTransformer):
            return self.visual(images)
        tokens = self._embed(self.visual, images)
        for block in self.visual.transformer.resblocks:
            # Not open_clip's own loop: its checkpointing passes four arguments to a block of two.
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.visual._pool(tokens)[0]

    @staticmethod
    def _embed(visual: VisionTransformer, images: Tensor) -> Tensor:
        """Patch, class and position embeddings after the first norm, ``[B, tokens, D]`` float32."""
        patches = visual.conv1(images).flatten(2).transpose(1, 2).float()
        token = visual.class_embedding.float().expand(patches.shape[0], 1, -1)  # len() is fixed in exports
        tokens = torch.cat([token, patches], dim=1) + visual.positional_embedding.float()
        return visual.ln_pre(visual.patch_dropout(tokens))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block's activations in the backward pass.

        Raises:
            ConfigError: The tower cannot.
        """
        if isinstance(self.visual, VisionTransformer):
            self.checkpointing = enable
        elif isinstance(self.visual, TimmModel) and hasattr(self.visual.trunk, "set_grad_checkpointing"):
            self.visual.trunk.set_grad_checkpointing(enable)
        elif enable:
            raise ConfigError(
                f"engine.gradient_checkpointing=True: {type(self.visual).__name__} cannot; set it to False"
            )


def build(config: Model) -> tuple[OpenClipTower, Preprocess]:
    """The tower of ``config.backbone``, random or pretrained, and what its images must look like.

    Raises:
        ConfigError: Unknown tag, or a tag of another activation.
        WeightsError: A file that does not fit, or a download that failed.
    """
    check_tag(config)
    visual = _bare_visual(config.backbone, config.image_size)
    for module in visual.modules():
        if isinstance(module, Attention):
            _condition(module)
    if config.pretrained:
        load(visual, _source_tensors(config), _source_name(config), optional=projection_names(visual))
    return OpenClipTower(visual, strip_projection(visual)), preprocess(config)


def check(config: Model) -> None:
    """Checks tag or file without building weights: a file's names and shapes on the meta device.

    Raises:
        ConfigError: As :func:`build`.
        WeightsError: As :func:`build`, downloads aside.
    """
    check_tag(config)
    if config.pretrained and not _is_tag(config):
        tensors = _open_clip_names(read_tensors(Path(config.pretrained), shapes_only=True))
        with torch.device("meta"):
            visual = _bare_visual(config.backbone, config.image_size)
        fit(tensors, visual.state_dict(), _source_name(config), optional=projection_names(visual))


def _is_tag(config: Model) -> bool:
    return bool(config.pretrained and get_pretrained_cfg(config.backbone, config.pretrained))


def _source_name(config: Model) -> str:
    return f"model.pretrained={config.pretrained} (model.backbone={config.backbone})"


def check_tag(config: Model) -> None:
    """Checks that ``pretrained`` is None, a file, or a tag of this backbone with its activation.

    Raises:
        ConfigError: It is none of these.
    """
    if config.pretrained is None:
        return
    if not _is_tag(config):
        if not Path(config.pretrained).is_file():
            tags = ", ".join(list_pretrained_tags_by_model(config.backbone)) or "none"
            raise ConfigError(
                f"model.pretrained={config.pretrained}: neither a file nor a tag of {config.backbone};"
                f" tags of it: {tags}; None starts from random weights"
            )
        _warn_of_twin(config.backbone)
    elif _quick_gelu(config.backbone) != bool(_tag_config(config).get("quick_gelu", False)):
        raise ConfigError(
            f"model.backbone={config.backbone}: its activation is not the one that {config.pretrained!r} was"
            f" trained with (QuickGELU against GELU: wrong features, no error); set --model.backbone"
            f" {_twin(config.backbone)}"
        )


def _quick_gelu(name: str) -> bool:
    return bool(_registered(name).get("quick_gelu", False))


def _twin(name: str) -> str:
    suffix = "-quickgelu"
    return name.removesuffix(suffix) if name.endswith(suffix) else name + suffix


def _warn_of_twin(name: str) -> None:
    """A file does not tell its activation, and the wrong one shifts L/14's features by .028 silently."""
    if open_clip.get_model_config(_twin(name)) is not None:
        activation = "QuickGELU" if _quick_gelu(name) else "GELU"
        log.warning(
            "model.backbone=%s computes %s; if the file was trained with the other one, use %s",
            name, activation, _twin(name),
        )  # fmt: skip


def _registered(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(f"model.backbone={name}: open_clip has no such model")
    return config


def stock_visual(config: Model) -> nn.Module:
    """open_clip's tower as it comes, its text projection taken off, for comparisons."""
    visual = _bare_visual(config.backbone, config.image_size, block_type="default")
    strip_projection(visual)
    return visual


def _bare_visual(name: str, image_size: int, block_type: str = "custom") -> nn.Module:
    """open_clip's vision tower with its projection still on, at ``image_size``, random weights.

    The custom block has the keys of the default one; that one, ``nn.MultiheadAttention``, is slow
    exactly when its weights are frozen.
    """
    config = _registered(name)
    cfg = CLIPVisionCfg(**config["vision_cfg"])
    cfg.timm_model_pretrained = False
    cfg.output_tokens = False
    cfg.patch_dropout = 0.0
    if cfg.timm_model_name is None:
        cfg.image_size = image_size
        cfg.block_type = block_type
    visual = open_clip_build_vision_tower(config["embed_dim"], cfg, quick_gelu=_quick_gelu(name))
    if isinstance(visual, TimmModel):
        resize_input(visual.trunk, image_size)
    return visual


def _condition(attention: Attention) -> None:
    """The default block's initialisation: the custom one's is ill-conditioned without pretraining."""
    nn.init.xavier_uniform_(attention.in_proj_weight)
    nn.init.zeros_(attention.out_proj.bias)


def projection_names(visual: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names that belong to the text projection, which features do not use."""
    if isinstance(visual, TimmModel):
        return ("head.proj", "head.mlp", *(f"trunk.{name}" for name in classifier_names(visual.trunk)))
    return ("proj",)


def strip_projection(visual: Any) -> int:
    """Takes the text projection off and returns the width of the features before it."""
    if isinstance(visual, TimmModel):
        visual.trunk.reset_classifier(0)
        visual.head = nn.Identity()
        return feature_dim(visual.trunk)
    if isinstance(visual, VisionTransformer):
        visual.proj = None
        return visual.ln_post.normalized_shape[0]
    return visual.output_dim


def _source_tensors(config: Model) -> Tensors:
    if _is_tag(config):
        return _tag_tensors(config)
    return _open_clip_names(read_tensors(Path(str(config.pretrained))))


def _open_clip_names(tensors: Tensors) -> Tensors:
    tensors = pick(tensors, PREFIXES)
    return from_hugging_face(tensors) if is_hugging_face(tensors) else tensors


def _tag_tensors(config: Model) -> Tensors:
    """The vision tensors of a tag, at the tag's own image size, through open_clip's own loader."""
    try:
        model = open_clip.create_model(config.backbone, pretrained=config.pretrained, device="cpu")
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            f"{_source_name(config)}: open_clip could not get the tag's weights ({error}); check the network,"
            " or give a downloaded file"
        ) from error
    return model.visual.state_dict()


def _tag_config(config: Model) -> dict[str, Any]:
    return get_pretrained_cfg(config.backbone, config.pretrained)


def preprocess(config: Model) -> Preprocess:
    """Mean, deviation and interpolation of the tag; for a file or random weights, of the first tag."""
    tags = [config.pretrained] if _is_tag(config) else list_pretrained_tags_by_model(config.backbone)
    cfgs = [get_pretrained_cfg(config.backbone, tag) for tag in tags]
    if len({tuple(cfg["mean"]) for cfg in cfgs}) > 1:
        log.warning(
            "model.backbone=%s: its tags differ in mean and deviation; a file gets those of %r",
            config.backbone,
            tags[0],
        )
    cfg = cfgs[0] if cfgs else {}
    return Preprocess(
        config.image_size,
        tuple(cfg.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        tuple(cfg.get("std", open_clip.OPENAI_DATASET_STD)),
        cfg.get("interpolation", "bicubic"),
    )
