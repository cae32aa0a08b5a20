"""Blocks of open_clip's Vision Transformers at less time and memory, under the same parameter names."""

from __future__ import annotations

from open_clip.transformer import Attention, CustomResidualAttentionBlock, QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dfdet.model.attention import attend, merge_heads
from dfdet.model.gelu import QuickGelu


def lighten(visual: VisionTransformer) -> None:
    """Replaces a tower's custom blocks, in place, by :class:`Block`, with the same values and gradients.

    The last one computes only the class token where features are that. A tower of other blocks, or
    with norms or scales inside attention, keeps its own.
    """
    blocks = visual.transformer.resblocks
    if all(isinstance(block, CustomResidualAttentionBlock) and _is_plain(block.attn) for block in blocks):
        last = len(blocks) - 1
        for number, block in enumerate(list(blocks)):
            blocks[number] = Block(block, first_only=number == last and _pools_class_token(visual))


def _is_plain(attention: Attention) -> bool:
    extras = (attention.ln_q, attention.ln_k, attention.ln_inner)
    no_norms = all(isinstance(extra, nn.Identity) for extra in extras)
    no_scales = attention.logit_scale is None and attention.head_scale is None
    return no_norms and no_scales and attention.in_proj_bias is not None


def _pools_class_token(visual: VisionTransformer) -> bool:
    """Whether features are the class token: its norm, before the pool or after, sees no other token."""
    return visual.attn_pool is None and visual.pool_type == "tok"


class Block(nn.Module):
    """Pre-norm transformer block with the children of an open_clip block, by their names.

    With ``first_only`` it returns the first token alone, and computes nothing of the others after their
    keys and values: 3 to 5 % of a step at L/14 saved, and two thirds of the block's activations.
    """

    ln_1: nn.Module
    attn: nn.Module
    ln_attn: nn.Module
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module

    def __init__(self, block: CustomResidualAttentionBlock, *, first_only: bool = False) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.attn = SelfAttention(block.attn, first_only=first_only)
        if isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = QuickGelu()
        self.first_only = first_only

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` to the same, or to ``[B, 1, D]``; float32 stays float32 under autocast."""
        stream = x[:, :1] if self.first_only else x
        stream = stream + self.ls_1(self.ln_attn(self.attn(self.ln_1(x))))
        return stream + self.ls_2(self.mlp(self.ln_2(stream)))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of an open_clip attention, by their names.

    With ``first_only`` only the first token asks.
    """

    def __init__(self, attention: Attention, *, first_only: bool = False) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.first_only = first_only
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` to the same, or to ``[B, 1, D]``."""
        if self.first_only:
            return self.out_proj(self._first(x))
        return self.out_proj(attend(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.heads))

    def _first(self, x: Tensor) -> Tensor:
        dim = x.shape[-1]
        weights = self.in_proj_weight.split([dim, 2 * dim])  # looked up once: LoRA computes it each time
        biases = self.in_proj_bias.split([dim, 2 * dim])
        query = F.linear(x[:, :1], weights[0], biases[0])
        keys_values = F.linear(x, weights[1], biases[1])
        query = query.unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = keys_values.unflatten(2, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        return merge_heads(F.scaled_dot_product_attention(query, key, value))
