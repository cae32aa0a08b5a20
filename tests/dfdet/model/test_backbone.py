import json
import os
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import save_file

from dfdet.config import Model
from dfdet.errors import ConfigError, WeightsError
from dfdet.model import openclip
from dfdet.model.backbone import build_tower, check_backbone
from dfdet.model.weights import from_hugging_face, resize_positions

NAME = "dfdet-test-tiny-quickgelu"
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
DINO_NAME = "timm/vit_small_patch14_dinov2.lvd142m"
REPO = Path(__file__).parents[3]
DINO = Path(os.environ.get("DFDET_REAL", REPO / "../shared/real")) / "weights/dinov2_vits14_518.safetensors"


@pytest.fixture(scope="module", autouse=True)
def small_open_clip(tmp_path_factory):
    """A tiny CLIP and its activation twin in open_clip's own registry."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in ((NAME, True), (NAME.removesuffix("-quickgelu"), False)):
        config = {"embed_dim": 48, "quick_gelu": quick, "vision_cfg": VISION, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def small(pretrained=None, image_size=32, backbone=NAME):
    return Model(
        backbone=backbone, pretrained=None if pretrained is None else str(pretrained), image_size=image_size
    )


def tower_of(config, seed=0):
    return build_tower(config, seed=seed)[0]


def images(count=3, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def default_visual():
    """open_clip's own tower, with its default (nn.MultiheadAttention) block."""
    torch.manual_seed(4)
    visual = _build_vision_tower(48, CLIPVisionCfg(**VISION), quick_gelu=True).eval()
    with torch.no_grad():  # norms and biases that a mix-up would show
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual


def save(folder, tensors, name="weights.safetensors"):
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / name)
    return folder / name


def test_custom_blocks_give_the_features_and_gradients_of_open_clips_default(tmp_path):
    visual = default_visual()
    tower = tower_of(small(save(tmp_path, visual.state_dict())))
    visual.proj = None
    assert tower.output_dim == 64
    torch.testing.assert_close(tower(images()), visual(images()), atol=1e-5, rtol=1e-5)
    tower(images()).square().sum().backward()
    visual(images()).square().sum().backward()
    ours, theirs = tower.visual.transformer.resblocks[0].ln_1, visual.transformer.resblocks[0].ln_1
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-4, rtol=1e-4)


def hugging_face(hidden_act="quick_gelu"):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    model = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            hidden_act=hidden_act,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_features_equal_hugging_faces_pooler_output(tmp_path):
    model = hugging_face()
    tower = tower_of(small(save(tmp_path, model.state_dict())))
    torch.testing.assert_close(tower(images()), model(images()).pooler_output, atol=1e-5, rtol=1e-5)


def test_bf16_is_no_less_exact_than_hugging_face_under_autocast(tmp_path):
    model = hugging_face()
    tower = tower_of(small(save(tmp_path, model.state_dict())))
    exact = tower_of(small(tmp_path / "weights.safetensors")).double()
    exact._embed = lambda visual, x: embed_in_double(visual, x)
    exact_features = exact(images(16).double())
    exact_features.square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = tower(images(16)), model(images(16)).pooler_output
    ours.float().square().sum().backward()
    theirs.float().square().sum().backward()
    assert ours.dtype == torch.float32
    assert error(ours, exact_features) <= 1.1 * error(theirs, exact_features)
    reference = exact.visual.transformer.resblocks[0].ln_1.weight.grad
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.layer_norm1"))
    our_gradient = tower.visual.transformer.resblocks[0].ln_1.weight.grad
    assert error(our_gradient, reference) <= 1.25 * error(layer.weight.grad, reference)


def embed_in_double(visual, x):
    patches = visual.conv1(x).flatten(2).transpose(1, 2)
    token = visual.class_embedding.expand(len(x), 1, -1)
    return visual.ln_pre(torch.cat([token, patches], dim=1) + visual.positional_embedding)


def error(value, exact):
    return ((value.double() - exact).norm() / exact.norm()).item()


def test_the_residual_stream_is_float32_under_autocast():
    tower, seen = tower_of(small()), []
    for block in tower.visual.transformer.resblocks:
        block.register_forward_hook(
            lambda _module, inputs, output: seen.extend([inputs[0].dtype, output.dtype])
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tower(images())
    assert seen == [torch.float32] * 4


def test_checkpointing_gives_the_same_gradients():
    plain, saving = tower_of(small()), tower_of(small())
    saving.set_grad_checkpointing(True)
    for tower in (plain, saving):
        tower(images()).square().sum().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(9)
    first = tower_of(small(), seed=1).state_dict()
    torch.rand(3)
    second, other = tower_of(small(), seed=1).state_dict(), tower_of(small(), seed=2).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_full_clip_file_gives_its_visual_tensors(tmp_path, suffix):
    clip = open_clip.create_model(NAME)
    if suffix == "pt":
        path = tmp_path / "clip.pt"
        torch.save({"state_dict": {f"module.{k}": v for k, v in clip.state_dict().items()}}, path)
    else:
        path = save(tmp_path, clip.state_dict())
    check_backbone(small(path))
    tower = tower_of(small(path))
    clip.visual.proj = None
    torch.testing.assert_close(tower(images()), clip.eval().visual(images()), atol=1e-5, rtol=1e-5)


def test_a_tower_loads_what_a_tower_saved(tmp_path):
    tower = tower_of(small(), seed=1)
    path = save(tmp_path, tower.state_dict())
    check_backbone(small(path))
    assert torch.equal(tower_of(small(path), seed=2)(images()), tower(images()))


@pytest.mark.parametrize("act", [check_backbone, tower_of])
def test_a_file_with_other_keys_names_them(tmp_path, act):
    tensors = {k: v for k, v in default_visual().state_dict().items() if k != "ln_post.bias"}
    tensors["conv1.weight"] = torch.zeros(64, 3, 4, 4)
    tensors["extra"] = torch.zeros(1)
    path = save(tmp_path, tensors)
    with pytest.raises(WeightsError) as caught:
        act(small(path))
    message = str(caught.value)
    assert "1 missing (ln_post.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "1 of other shape (conv1.weight [64, 3, 4, 4] instead of [64, 3, 8, 8])" in message


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("act", [check_backbone, tower_of])
def test_a_pickle_is_refused_without_running_it(tmp_path, act):
    trace = tmp_path / "ran"
    for path, write in ((tmp_path / "a.pt", torch.save), (tmp_path / "b.pt", _pickle)):
        write({"conv1.weight": Bomb(trace)}, path)
        with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
            act(small(path))
    assert not trace.exists()


def _pickle(value, path):
    path.write_bytes(pickle.dumps(value))


def test_a_damaged_file_is_refused(tmp_path):
    path = save(tmp_path, default_visual().state_dict())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        check_backbone(small(path))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ViT-L-14-quickgel", "ViT-L-14-quickgelu"),
        ("timm/vit_smal_patch14_dinov2", "timm/vit_small_patch14_dinov2"),
        ("tinny", "tiny"),
    ],
)
@pytest.mark.parametrize("act", [check_backbone, tower_of])
def test_an_unknown_backbone_lists_the_nearest(act, name, near):
    with pytest.raises(ConfigError, match=f"no such model; the nearest are .*{near}"):
        act(Model(backbone=name, pretrained=None))


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(
        ConfigError, match="neither a file nor a tag of ViT-L-14-quickgelu; tags of it: openai, "
    ):
        check_backbone(Model(backbone="ViT-L-14-quickgelu", pretrained="openal"))


def test_a_tag_of_the_other_activation_is_refused():
    with pytest.raises(ConfigError, match=r"set --model\.backbone ViT-L-14-quickgelu"):
        check_backbone(Model(backbone="ViT-L-14", pretrained="openai"))


def test_a_file_for_a_name_with_an_activation_twin_warns(tmp_path, caplog):
    path = save(tmp_path, default_visual().state_dict())
    check_backbone(small(path, backbone=NAME.removesuffix("-quickgelu")))
    assert f"computes GELU; if the file was trained with the other one, use {NAME}" in caplog.text


@pytest.mark.parametrize("backbone", ["tiny", "timm/vit_tiny_patch16_224"])
def test_a_missing_file_is_refused(backbone):
    with pytest.raises(ConfigError, match=r"model\.pretrained=none\.safetensors: .*no such file"):
        check_backbone(Model(backbone=backbone, pretrained="none.safetensors"))


def test_a_tag_comes_through_open_clips_own_loader(tmp_path, monkeypatch):
    clip = open_clip.create_model(NAME)
    path = save(tmp_path, clip.state_dict())
    tag = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "quick_gelu": True}
    for module in (openclip, open_clip.factory):
        monkeypatch.setattr(module, "get_pretrained_cfg", lambda _model, name: tag if name == "ours" else {})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_args, **_kwargs: str(path))
    tower, preprocess = build_tower(small("ours", image_size=48), seed=0)
    assert (preprocess.image_size, preprocess.mean, preprocess.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert preprocess.interpolation == "bilinear"
    assert torch.equal(tower.visual.conv1.weight, clip.visual.conv1.weight)
    assert tower(images(side=48)).shape == (3, 64)


def test_a_failed_download_names_the_remedy(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", fail)
    with pytest.raises(WeightsError, match=r"no route to host.*give a downloaded file"):
        build_tower(Model(backbone="ViT-B-32-quickgelu"), seed=0)


def test_positions_are_resized_behind_the_class_token(tmp_path):
    visual = default_visual()
    tower = tower_of(small(save(tmp_path, visual.state_dict()), image_size=64))
    resized = tower.visual.positional_embedding
    grid = visual.positional_embedding[1:].T.reshape(1, 64, 4, 4)
    expected = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    assert torch.equal(resized[0], visual.positional_embedding[0])
    torch.testing.assert_close(resized[1:], expected[0].flatten(1).T)
    assert tower(images(side=64)).shape == (3, 64)


def test_only_position_embeddings_of_square_grids_are_resized():
    given = torch.randn(1, 17, 4)
    assert resize_positions(given, torch.empty(1, 26, 4)).shape == (1, 26, 4)
    assert resize_positions(given, torch.empty(1, 26, 5)) is given
    assert resize_positions(given, torch.empty(1, 28, 4)) is given


def test_hugging_face_names_map_on_the_meta_device():
    shapes = {k: v.to("meta") for k, v in hugging_face().state_dict().items()}
    mapped = from_hugging_face(shapes)
    assert mapped["transformer.resblocks.1.attn.in_proj_weight"].shape == (192, 64)
    assert set(mapped) == {k for k in default_visual().state_dict() if k != "proj"}


@pytest.mark.parametrize(
    "name", ["timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050", "timm/resnet10t"]
)
def test_timm_towers_pool_to_their_width(name):
    tower, preprocess = build_tower(Model(backbone=name, pretrained=None, image_size=64), seed=0)
    assert tower(images(side=64)).shape == (3, tower.output_dim)
    assert preprocess.image_size == 64
    assert not any(module.training for module in tower.modules())


def test_a_timm_file_may_hold_its_classifier(tmp_path):
    import timm

    source = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    config = Model(
        backbone="timm/vit_tiny_patch16_224",
        pretrained=str(save(tmp_path, source.state_dict())),
        image_size=64,
    )
    check_backbone(config)
    source.reset_classifier(0)
    torch.testing.assert_close(tower_of(config)(images(side=64)), source(images(side=64)))


@pytest.mark.parametrize(("name", "side"), [("PE-Core-B-16", 64), ("MobileCLIP2-S0", 64)])
def test_a_projection_inside_a_timm_trunk_is_taken_off(name, side):
    with torch.device("meta"):
        visual = openclip._bare_visual(name, side)
        before = visual.eval()(images(side=side).to("meta")).shape[1]
        dim = openclip.strip_projection(visual)
    assert before == open_clip.get_model_config(name)["embed_dim"]
    assert visual(images(side=side).to("meta")).shape == (3, dim)


@pytest.mark.skipif(not DINO.is_file(), reason="no DINOv2 file; set DFDET_REAL")
@pytest.mark.parametrize("side", [112, 224])
def test_the_dinov2_file_loads_at_other_sizes(side):
    config = Model(backbone=DINO_NAME, pretrained=str(DINO), image_size=side)
    check_backbone(config)
    tower, preprocess = build_tower(config, seed=0)
    assert tower.trunk.pos_embed.shape == (1, (side // 14) ** 2 + 1, 384)
    assert tower(images(2, side)).shape == (2, 384)
    assert preprocess.mean == (0.485, 0.456, 0.406)
