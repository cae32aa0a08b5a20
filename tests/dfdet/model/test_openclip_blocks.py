import copy

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import CustomResidualAttentionBlock
from torch import nn
from torch.nn import functional as F

from dfdet.benchmark.measure import saved_bytes
from dfdet.config import Tuning
from dfdet.model.attention import attend
from dfdet.model.detector import store_frozen_in_bf16
from dfdet.model.gelu import QuickGelu
from dfdet.model.openclip import OpenClipTower
from dfdet.model.openclip_blocks import Block
from dfdet.model.tuning import apply_tuning

VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
LAYERS, WIDTH, TOKENS, BATCH = 3, 64, 17, 4


def visual_of(quick=True, **changes):
    """open_clip's own tower of custom blocks, before anything is replaced."""
    torch.manual_seed(5)
    cfg = CLIPVisionCfg(**VISION, block_type="custom", **changes)
    visual = _build_vision_tower(48, cfg, quick_gelu=quick).eval()
    for block in visual.transformer.resblocks:
        nn.init.xavier_uniform_(block.attn.in_proj_weight)
    with torch.no_grad():  # norms and biases that a mix-up would show
        for parameter in visual.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    visual.proj = None
    return visual


def tower_of(visual, mode="ln", bf16=False):
    tower = OpenClipTower(copy.deepcopy(visual), WIDTH).eval()
    apply_tuning(tower, Tuning(mode=mode))
    if bf16:
        store_frozen_in_bf16(tower)
    return tower


def images(count=BATCH):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def result(module, parameters, bf16=False, count=BATCH):
    """Features and gradients of a fixed random sum of them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = module(images(count))
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((features.float() * direction).sum(), list(parameters))
    return [features.detach().double(), torch.cat([g.double().flatten() for g in gradients])]


def trained(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def error(value, exact):
    return ((value - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("changes", [{}, {"final_ln_after_pool": True}, {"ls_init_value": 0.5}])
@pytest.mark.parametrize("mode", ["ln", "full"])
def test_the_class_token_alone_gives_the_features_and_gradients_of_whole_blocks(changes, mode):
    visual = visual_of(**changes)
    tower = tower_of(visual, mode)
    assert tower.visual.transformer.resblocks[-1].first_only
    apply_tuning(visual, Tuning(mode=mode))
    ours, theirs = result(tower, trained(tower)), result(visual, trained(visual))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert error(ours[1], theirs[1]) < 1e-5


def test_in_bf16_blocks_are_no_less_exact_than_whole_ones():
    visual = visual_of()
    whole, double = copy.deepcopy(visual), copy.deepcopy(visual).double()
    whole._embeds = lambda x: OpenClipTower._embed(whole, x)  # the residual stream in float32
    for each in (whole, double):
        apply_tuning(each, Tuning(mode="ln"))
    exact = result(lambda x: double(x.double()), trained(double), count=32)
    tower = tower_of(visual, bf16=True)
    ours, theirs = (result(each, trained(each), bf16=True, count=32) for each in (tower, whole))
    assert error(ours[0], exact[0]) < 1.2 * error(theirs[0], exact[0])
    assert error(ours[1], exact[1]) < 1.2 * error(theirs[1], exact[1])


@pytest.mark.parametrize("changes", [{"pool_type": "avg"}, {"attentional_pool": True}])
def test_a_tower_that_pools_other_tokens_keeps_whole_blocks(changes):
    visual = visual_of(**changes)
    tower = tower_of(visual)
    assert not tower.visual.transformer.resblocks[-1].first_only
    torch.testing.assert_close(tower(images()), visual(images()), atol=1e-5, rtol=1e-5)


def test_blocks_with_norms_inside_attention_stay_open_clips():
    visual = visual_of(qk_norm=True)
    tower = tower_of(visual)
    blocks = tower.visual.transformer.resblocks
    assert all(isinstance(block, CustomResidualAttentionBlock) for block in blocks)
    torch.testing.assert_close(tower(images()), visual(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_names_and_their_order_stay(quick):
    visual = visual_of(quick)
    tower = tower_of(visual)
    assert all(type(block) is Block for block in tower.visual.transformer.resblocks)
    assert list(tower.visual.state_dict()) == list(visual.state_dict())


def test_lora_updates_reach_every_block():
    tower = tower_of(visual_of(), "lora")
    assert {name.split(".")[3] for name, p in tower.named_parameters() if p.requires_grad} == {"0", "1", "2"}
    start = result(tower, trained(tower))
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(std=0.1)
    features, gradients = result(tower, trained(tower))
    assert error(features, start[0]) > 0.01
    assert gradients.isfinite().all() and (gradients != 0).float().mean() > 0.9


def test_a_step_saves_at_most_22_bytes_a_number_of_the_stream():
    tower = tower_of(visual_of(), bf16=True)
    x = images()

    def forward():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return tower(x)

    stream = BATCH * TOKENS * WIDTH
    # a block: two norms' inputs (4 + 4), queries, keys and values (6), hidden layer (4 x 2)
    blocks = (LAYERS - 1) * 22 * stream
    last = (4 + 4) * stream
    stem = 4 * stream
    # besides, statistics of the norms and the class token's own
    assert saved_bytes(forward, [*tower.parameters(), x]) < 1.05 * (blocks + last + stem)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_quick_gelu_recomputed_equals_plain_in_value_and_gradient(dtype):
    x = torch.linspace(-8, 8, 1001, dtype=dtype)
    grad = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    QuickGelu()(ours).backward(grad)
    (theirs * torch.sigmoid(1.702 * theirs)).backward(grad)
    assert torch.equal(QuickGelu()(ours), theirs * torch.sigmoid(1.702 * theirs))
    tolerance = 1e-12 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(ours.grad, theirs.grad, atol=tolerance, rtol=tolerance)


def test_quick_gelu_has_the_right_derivative():
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGelu(), x)


def test_quick_gelu_keeps_its_input_only():
    x = torch.randn(8, 32, dtype=torch.bfloat16).requires_grad_() * 1
    assert saved_bytes(lambda: QuickGelu()(x)) == 8 * 32 * 2
    with torch.no_grad():
        assert not QuickGelu()(x).requires_grad


def attention_error(function, qkv, grad, exact):
    qkv = qkv.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # as in a step
        out = function(qkv)
    (gradient,) = torch.autograd.grad(out, qkv, grad)
    return error(out.double(), exact[0]), error(gradient.double(), exact[1])


def fused(qkv):
    query, key, value = qkv.unflatten(2, (3, 2, -1)).transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [33, 600])  # 600: several chunks
def test_attention_in_bf16_is_as_exact_as_the_fused_kernel(tokens):
    torch.manual_seed(3)
    qkv = torch.randn(3, tokens, 3 * 64)
    qkv[..., :128] *= 2.5  # sharp attention, as trained towers have
    qkv, grad = qkv.bfloat16(), torch.randn(3, tokens, 64).bfloat16()
    double = qkv.double().requires_grad_()
    out = fused(double)
    exact = out.detach(), torch.autograd.grad(out, double, grad.double())[0]
    ours = attention_error(lambda x: attend(x, 2), qkv, grad, exact)
    theirs = attention_error(fused, qkv, grad, exact)
    assert ours[0] < 1.3 * theirs[0] < 0.01
    assert ours[1] < 1.1 * theirs[1] < 0.02


def test_attention_keeps_queries_keys_and_values_only():
    qkv = torch.randn(2, 50, 3 * 64, dtype=torch.bfloat16).requires_grad_() * 1
    assert saved_bytes(lambda: attend(qkv, 2)) == 2 * 50 * 3 * 64 * 2


def test_compiled_blocks_give_the_same_gradients():
    visual = visual_of()
    plain, compiled = tower_of(visual), tower_of(visual)
    for block in compiled.visual.transformer.resblocks:
        assert isinstance(block, nn.Module)
        block.compile(backend="aot_eager")
    ours, theirs = result(compiled, trained(compiled)), result(plain, trained(plain))
    assert error(ours[0], theirs[0]) < 1e-5
    assert error(ours[1], theirs[1]) < 1e-5


def test_checkpointing_in_bf16_gives_the_same_bits():
    visual = visual_of()
    plain, saving = tower_of(visual, bf16=True), tower_of(visual, bf16=True)
    saving.set_grad_checkpointing(True)
    ours, theirs = result(saving, trained(saving), bf16=True), result(plain, trained(plain), bf16=True)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
