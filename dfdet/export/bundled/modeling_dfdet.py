"""dfdet's detector for transformers: CLIP's vision tower and a linear head on its pooled features.

AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class DfdetConfig(PretrainedConfig):
    """Sizes of the tower, and whether its features are L2-normalised before the head."""

    model_type = "dfdet"

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        head: str = "LinearNorm",
        backbone: str | None = None,
        **more: Any,
    ) -> None:
        self.vision_config = vision_config or {}
        self.head = head
        self.backbone = backbone
        super().__init__(**more)


class DfdetModel(PreTrainedModel):
    """Pixels of face crops to logits, real (0) and fake (1)."""

    config_class = DfdetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: DfdetConfig) -> None:
        super().__init__(config)
        vision = CLIPVisionModel(CLIPVisionConfig(**config.vision_config))
        tower = getattr(vision, "vision_model", vision)  # which transformers 4 has one deeper
        self.feature_extractor = nn.ModuleDict({"vision_model": tower})
        self.model = nn.ModuleDict({"linear": nn.Linear(vision.config.hidden_size, 2)})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the file."""

    def forward(self, pixel_values: torch.Tensor, **unused: Any) -> ImageClassifierOutput:
        """Pixels ``[B, 3, H, W]`` of the preprocessor to logits ``[B, 2]``; softmax gives probabilities."""
        features = self.feature_extractor["vision_model"](pixel_values).pooler_output
        if self.config.head == "LinearNorm":
            features = F.normalize(features, dim=-1)
        return ImageClassifierOutput(logits=self.model["linear"](features))
