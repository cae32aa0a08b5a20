import json

import open_clip
import pytest
import torch

from dfdet.config import Config
from dfdet.model.detector import build_detector
from dfdet.training import flops

NAME = "dfdet-flops-tiny-quickgelu"
LAYERS, WIDTH, PATCH, SIDE = 3, 64, 8, 32
TOKENS = (SIDE // PATCH) ** 2 + 1
VISION = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": PATCH}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}

# Hand counts of a Vision Transformer, 2 FLOPs a multiplication and addition.
EMBED = 2 * (TOKENS - 1) * 3 * PATCH**2 * WIDTH
LINEARS = 2 * TOKENS * 12 * WIDTH**2
ATTENTION = 2 * 2 * TOKENS**2 * WIDTH
# Of the last block only keys and values see all tokens.
LAST_LINEARS = 2 * TOKENS * 2 * WIDTH**2 + 2 * 10 * WIDTH**2
LAST_ATTENTION = 2 * 2 * TOKENS * WIDTH
LINEARS_ALL = (LAYERS - 1) * LINEARS + LAST_LINEARS
ATTENTION_ALL = (LAYERS - 1) * ATTENTION + LAST_ATTENTION
FORWARD = EMBED + LINEARS_ALL + ATTENTION_ALL


@pytest.fixture(scope="module", autouse=True)
def small_open_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def detector(mode="ln", backbone=NAME, **fields):
    names = {"model.backbone": backbone, "model.pretrained": None, "model.image_size": SIDE}
    return build_detector(Config().replace({**names, "tuning.mode": mode, **fields}))


# Attention has no weights: both factors of each product want a gradient, whatever is tuned.
@pytest.mark.parametrize(
    ("mode", "backward"),
    [
        ("probe", 0),
        ("ln", LINEARS_ALL + 2 * ATTENTION_ALL),
        ("full", EMBED + 2 * LINEARS_ALL + 2 * ATTENTION_ALL),
    ],
)
def test_flops_equal_a_count_by_hand(mode, backward):
    assert flops.count(detector(mode)) == flops.Flops(FORWARD, backward)


def test_lora_adds_little_to_layer_norm_tuning():
    ln, lora = flops.count(detector("ln")), flops.count(detector("lora", **{"tuning.lora_rank": 1}))
    assert ln.step < lora.step < 1.6 * ln.step  # a rank of 1 is much beside a width of 64


def test_recomputation_is_not_counted():
    saving = detector(**{"engine.gradient_checkpointing": True})
    assert flops.count(saving) == flops.count(detector())
    assert saving.tower.checkpointing


def test_counting_leaves_no_trace():
    counted = detector()
    before = {name: value.clone() for name, value in counted.state_dict().items()}
    with torch.no_grad():
        flops.count(counted)
        assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in counted.parameters())
    assert not counted.tower.training
    assert all(torch.equal(value, before[name]) for name, value in counted.state_dict().items())
    assert torch.randn(1).device.type == "cpu" and type(torch.randn(1)) is torch.Tensor


def test_products_of_a_batch_grow_with_it():
    counted = detector()
    assert flops.trace(counted, 3).flops == 3 * flops.count(counted).step


@pytest.mark.parametrize("backbone", ["tiny", "timm/resnet10t"])
def test_other_towers_are_counted(backbone):
    found = flops.count(detector(backbone=backbone))
    assert 0.5 * found.forward < found.backward < 1.5 * found.forward


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "fp32", 91.6),
        ("Tesla T4", "fp32", 8.1),
    ],
)
def test_peaks_come_from_the_data_sheet_by_name(name, precision, tera):
    found = flops.data_sheet(name, precision)
    assert found.flops_per_s == tera * 1e12
    assert found.origin.startswith("data sheet (")


@pytest.mark.parametrize(
    ("name", "precision"),
    [("NVIDIA GeForce RTX 4090", "bf16"), ("Tesla T4", "bf16"), ("NVIDIA A1000", "fp32")],
)
def test_other_devices_have_no_data_sheet(name, precision):
    assert flops.data_sheet(name, precision) is None


def test_the_peak_of_a_cpu_is_measured():
    found = flops.peak(torch.device("cpu"), "fp32")
    assert found.origin == "measured"
    assert 1e8 < found.flops_per_s < 1e15
