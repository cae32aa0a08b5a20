import json
import math
import sys

import open_clip
import pytest
import torch
from torch import nn

from dfdet.benchmark import step
from dfdet.benchmark.__main__ import main
from dfdet.benchmark.floor import replay
from dfdet.benchmark.measure import outcome, saved_bytes, saved_memory
from dfdet.training.flops import Product, Products

NAME = "dfdet-bench-tiny-quickgelu"
VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
OPTIONS = ["--batch", "2", "--image-size", "32", "--device", "cpu", "--repeats", "2", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def small_open_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    config = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows_of(printed):
    """Cells by step and type."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if "wall ms" in line)
    cells = [line.split("  ") for line in lines[start + 1 :]]
    table = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    return {(line[0], line[1]): line[2:] for line in table if len(line) > 2}


def test_the_step_benchmark_prints_finite_rows_of_all_steps(capsys):
    pytest.importorskip("transformers")
    assert main(["step", "--backbone", NAME, *OPTIONS]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == [
        ("dfdet", "bf16"),
        ("transformers", "bf16"),
        ("transformers", "fp32"),
        ("open_clip", "bf16"),
        ("open_clip", "fp32"),
        ("products alone", "bf16"),
    ]
    for cells in rows.values():
        assert all(math.isfinite(float(cell)) for cell in cells if cell != "-")
    assert float(rows["dfdet", "bf16"][2]) == 1
    saved = {key: float(cells[5]) + float(cells[6]) for key, cells in rows.items() if cells[5] != "-"}
    assert saved["dfdet", "bf16"] < 0.75 * saved["transformers", "bf16"]
    assert float(rows["transformers", "fp32"][8]) < 1e-5  # the weights are the same in all
    assert float(rows["dfdet", "bf16"][8]) < 0.02


def test_checkpointing_and_precision_are_ours_to_choose(capsys):
    options = ["--precision", "fp32", "--checkpointing"]
    assert main(["step", "--backbone", NAME, *OPTIONS, *options]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["dfdet", "fp32"][5]) < 0.3 * float(rows["open_clip", "fp32"][5])
    assert float(rows["dfdet", "fp32"][9]) < 1e-5


def test_rows_without_transformers_say_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["step", "--backbone", NAME, *OPTIONS, "--no-errors"]) == 0
    printed = capsys.readouterr().out
    assert "transformers: rows missing, it is not installed" in printed
    assert ("open_clip", "bf16") in rows_of(printed)


def test_a_tower_that_no_other_code_has_runs_alone(capsys):
    assert main(["step", "--backbone", "tiny", *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert "no other steps: tiny is no CLIP ViT of open_clip's" in printed
    assert list(rows_of(printed)) == [("dfdet", "bf16"), ("products alone", "bf16")]


def test_an_unknown_backbone_is_one_line(capsys):
    assert main(["step", "--backbone", "tinny", *OPTIONS]) == 2
    assert "no such model" in capsys.readouterr().err


def test_an_unknown_benchmark_is_refused(capsys):
    assert main(["stepp"]) == 2
    assert "{step,scaling}" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_missing_device_is_one_line(capsys):
    assert main(["step", "--backbone", "tiny", "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    layer = nn.Linear(4, 4)
    x = torch.randn(3, 4, requires_grad=True)

    def forward():
        hidden = layer(x)  # keeps x and the weight
        return hidden.sigmoid().mul(2).square()  # keeps the sigmoid, and twice the sigmoid

    assert saved_bytes(forward, [*layer.parameters(), x]) == 2 * 3 * 4 * 4


def test_saved_memory_tells_activations_from_copies():
    weight = torch.randn(256, 256, requires_grad=True)

    def forward(images):
        # keeps the weight's double copy, and with the images that and the sigmoid
        return (images.clone().requires_grad_() @ weight.double()).sigmoid()

    found = saved_memory(forward, [weight], torch.randn(2, 256, dtype=torch.float64), batch=10)
    assert found.activations * 2**20 == 10 * 2 * 256 * 8
    assert found.copies * 2**20 == 256 * 256 * 8


def test_the_floor_computes_each_product_once_in_its_type():
    seen = []

    def multiply(left, right):
        seen.append((left.dtype, tuple(left.shape), right.stride()))
        return left @ right

    operands = (torch.empty(2, 3), torch.empty(5, 3).T)
    products = Products([Product(multiply, operands, 60)] * 4, [Product(multiply, operands, 60)])
    replay(products, torch.bfloat16, torch.device("cpu"))()
    assert seen == [(torch.bfloat16, (2, 3), (1, 3))] * 5


def test_an_outcome_is_compared_by_relative_norms():
    layer = nn.Linear(3, 2).double()
    images = torch.randn(4, 3, dtype=torch.float64)
    exact = outcome(layer, list(layer.parameters()), images)
    twice = outcome(lambda x: 2 * layer(x), list(layer.parameters()), images)
    assert twice.error(exact) == pytest.approx((1, 1))


def test_options_have_the_public_defaults():
    options = step.StepOptions()
    assert (options.backbone, options.batch, options.image_size) == ("ViT-L-14-quickgelu", 2, 224)
