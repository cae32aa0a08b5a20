"""A folder that transformers and GenD's code load: a CLIP tower and its head under their names.

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` builds it from its config alone, and
:mod:`dfdet.published` reads it back.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.errors import ConfigError
from dfdet.export.graph import Deployed
from dfdet.export.tensor_file import write_tensors
from dfdet.model.detector import Detector
from dfdet.model.gelu import QuickGelu
from dfdet.model.heads import LinearHead, MarginHead
from dfdet.model.openclip_blocks import Block
from dfdet.model.weights import Tensors
from dfdet.published.contents import HEAD, HEADS, TOWER
from dfdet.published.towers.clip import NAMES, PREFIX

VISUAL = "tower.visual."
_NAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
)
_IN_PROJ = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def is_clip(detector: Detector) -> bool:
    """Whether the tower is one that transformers' CLIP can compute."""
    return _foreign(getattr(detector.tower, "visual", None)) is None


def check(detector: Detector, backbone: str) -> None:
    """Refuses a tower that transformers' CLIP cannot compute.

    Raises:
        ConfigError: It is none of open_clip's plain Vision Transformers.
    """
    if cause := _foreign(getattr(detector.tower, "visual", None)):
        raise ConfigError(
            f"--hugging_face: {backbone} {cause}, so it has no layout of Hugging Face's CLIP; leave the flag"
            " out"
        )


def _foreign(visual: object) -> str | None:
    """How a tower differs from CLIP's; None where it is one."""
    if not isinstance(visual, VisionTransformer):
        return "is no CLIP tower of open_clip"
    blocks = list(visual.transformer.resblocks)
    norms = [visual.ln_pre, visual.ln_post, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    if not all(isinstance(block, Block) and _is_plain(block) for block in blocks):
        return "has other blocks than CLIP's"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "does not pool by its class token"
    if len({getattr(norm, "eps", None) for norm in norms}) > 1:
        return "has other norms than CLIP's"
    return None


def _is_plain(block: Block) -> bool:
    extras = (block.ln_attn, block.ls_1, block.ls_2, block.mlp.get_submodule("ln"))
    return all(isinstance(extra, nn.Identity) for extra in extras)


def write(folder: Path, model: Deployed, state: Tensors, backbone: str) -> None:
    """Writes the layout.

    Args:
        folder: Made here.
        model: For its sizes; see :func:`check`.
        state: Its whole state, float32, updates merged.
        backbone: Our name of the tower.

    Raises:
        OSError: The disk is full or not writable.
    """
    folder.mkdir()
    visual = {k.removeprefix(VISUAL): v for k, v in state.items() if k.startswith(VISUAL)}
    tensors = {f"{TOWER}{PREFIX}{name}": tensor for name, tensor in to_hugging_face(visual).items()}
    tensors |= {f"{HEAD}linear.{name}": tensor for name, tensor in linear_head(model.head).items()}
    ordered = {name: tensors[name].float().contiguous() for name in sorted(tensors)}
    write_tensors(folder / "model.safetensors", ordered, {"format": "pt"})
    _write_json(folder / "config.json", config(model, backbone))
    _write_json(folder / "preprocessor_config.json", preprocessor(model))
    modeling = resources.files("dfdet.export.bundled") / "modeling_dfdet.py"
    (folder / "modeling_dfdet.py").write_bytes(modeling.read_bytes())
    (folder / "README.md").write_text(README, encoding="utf-8")


def to_hugging_face(tensors: Tensors) -> Tensors:
    """open_clip's vision names as Hugging Face's: :func:`dfdet.model.weights.from_hugging_face` undone."""
    mapped: Tensors = {}
    for name, tensor in tensors.items():
        if match := _IN_PROJ.match(name):
            for which, part in zip("qkv", tensor.chunk(3), strict=True):
                mapped[f"encoder.layers.{match[1]}.self_attn.{which}_proj.{match[2]}"] = part
        else:
            mapped[_renamed(name)] = tensor
    return mapped


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    raise AssertionError(f"{name} is no name of a CLIP tower, which check() has seen to")


def linear_head(head: nn.Module) -> dict[str, Tensor]:
    """A head as one linear layer: a margin head's scaled cosines are one on L2-normalised features."""
    if isinstance(head, LinearHead):
        return {name: tensor.detach() for name, tensor in head.linear.named_parameters()}
    assert isinstance(head, MarginHead)
    weight = head.scale * F.normalize(head.weight.detach().float(), dim=-1)
    return {"weight": weight, "bias": torch.zeros(len(weight))}


def config(model: Deployed, backbone: str) -> dict[str, Any]:
    """``config.json``: all that the model is built from, with the names that GenD's files have."""
    visual: Any = model.tower.visual
    block = visual.transformer.resblocks[0]
    width = visual.conv1.out_channels
    normalised = not isinstance(model.head, LinearHead) or model.head.normalize
    return {
        "architectures": ["DfdetModel"],
        "auto_map": {
            "AutoConfig": "modeling_dfdet.DfdetConfig",
            "AutoModel": "modeling_dfdet.DfdetModel",
            "AutoModelForImageClassification": "modeling_dfdet.DfdetModel",
        },
        "model_type": "dfdet",
        "backbone": {ours: theirs for theirs, ours in NAMES.items()}.get(backbone, backbone),
        "head": next(name for name, normalises in HEADS.items() if normalises == normalised),
        "id2label": {"0": "real", "1": "fake"},
        "label2id": {"real": 0, "fake": 1},
        "dtype": "float32",
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": block.mlp.c_fc.out_features,
            "num_hidden_layers": len(visual.transformer.resblocks),
            "num_attention_heads": block.attn.heads,
            "image_size": model.preprocess.image_size,
            "patch_size": visual.conv1.kernel_size[0],
            "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGelu) else "gelu",
            "layer_norm_eps": visual.ln_post.eps,
        },
    }


def preprocessor(model: Deployed) -> dict[str, Any]:
    """``preprocessor_config.json``: the crop as it is cut, resized and normalised."""
    preprocess = model.preprocess
    side = preprocess.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": int(Image.Resampling[preprocess.interpolation.upper()]),
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


README = """\
---
library_name: transformers
pipeline_tag: image-classification
tags:
- deepfake-detection
- clip
---
# A face-deepfake detector for transformers

CLIP's vision tower and a linear head on its pooled features, in float32. The model card of the bundle
tells what it was trained on, how well it does and where it ends.

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "."  # this folder, or its repository
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder)
crop = Image.open("crop.png")  # the middle square, as the bundle's preprocess.json has it
with torch.no_grad():
    logits = model(**processor(crop, return_tensors="pt")).logits
print("score", logits.softmax(dim=1)[0, 1].item())
```

`trust_remote_code` runs `modeling_dfdet.py` of this folder: read it first, it has one page. The tensors
have GenD's names (`feature_extractor.vision_model.*`, `model.linear.*`), so its loaders read them too;
dfdet itself takes the folder as `--checkpoint FOLDER`.
"""
