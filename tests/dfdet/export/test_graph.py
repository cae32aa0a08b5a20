import pytest
import torch

from dfdet.checkpoints.opened import open_checkpoint
from dfdet.evaluation.evaluate import probabilities
from dfdet.export.graph import deployed, whole_state
from tests.dfdet.export.models import (
    CLIP,
    TIMM,
    crops_of,
    deployed_of,
    detector_of,
    eager,
    register_small_clip,
)
from tests.signal_runs import config_for, run


@pytest.fixture(scope="module", autouse=True)
def small_clip(tmp_path_factory):
    register_small_clip(tmp_path_factory.mktemp("configs"))


@torch.no_grad()
def evaluated(detector, crops):
    """Scores and logits as an evaluation computes them."""
    found = probabilities(detector.head(detector(detector.to_input(torch.from_numpy(crops)))))
    return found[:, 0].numpy(), found[:, 1].numpy()


def assert_equal_scores(model, detector, atol=1e-6):
    for side in (50, 96):
        crops = crops_of(4, side)
        for found, expected in zip(eager(model, crops), evaluated(detector, crops), strict=True):
            torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"model.head": "linear", "model.normalize": True},
        {"model.head": "linear", "model.normalize": False},
        {"model.head": "cosine", "model.margin": 0.2},
        {"model.head": "angular", "model.margin": 0.2},
    ],
)
def test_scores_are_those_of_an_evaluation(values):
    detector = detector_of("tiny", **values)
    assert_equal_scores(deployed_of(detector), detector)


@pytest.mark.parametrize("backbone", ["tiny", CLIP, TIMM])
def test_merged_low_rank_updates_give_the_same_scores_under_a_plain_towers_names(backbone):
    lora = {"tuning.mode": "lora"}
    model = deployed_of(detector_of(backbone, **lora))
    assert_equal_scores(model, detector_of(backbone, **lora), atol=2e-6)
    assert whole_state(model).keys() == detector_of(backbone).state_dict().keys()


def test_whole_state_is_sorted_float32_and_of_its_own_memory():
    detector = detector_of("tiny")
    state = whole_state(deployed_of(detector))
    assert list(state) == sorted(detector.state_dict())
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    assert torch.equal(state["head.linear.weight"], detector.head.linear.weight)
    assert state["head.linear.weight"].data_ptr() != detector.head.linear.weight.data_ptr()


def test_a_runs_best_checkpoint_scores_as_in_its_evaluation(trained_run):
    opened = open_checkpoint(str(trained_run))
    assert_equal_scores(deployed(str(trained_run)), opened.detector)


def test_an_opened_checkpoint_stays_as_it_was(signal_sets, tmp_path):
    run(config_for(signal_sets, tmp_path, **{"tuning.mode": "lora", "optim.epochs": 1}))
    opened = open_checkpoint(str(tmp_path / "run"))
    before = evaluated(opened.detector, crops_of(4, 96))
    assert_equal_scores(deployed(opened), opened.detector, atol=2e-6)
    assert (evaluated(opened.detector, crops_of(4, 96))[1] == before[1]).all()


def test_a_run_in_bfloat16_gets_the_weights_its_products_were_rounded_from(signal_sets, tmp_path):
    weights = tmp_path / "tower.pt"
    exact = detector_of("tiny", **{"model.image_size": 32})
    torch.save({f"tower.{name}": tensor for name, tensor in exact.tower.state_dict().items()}, weights)
    values = {"engine.precision": "bf16", "model.pretrained": str(weights), "optim.epochs": 1}
    run(config_for(signal_sets, tmp_path, **values))
    opened = open_checkpoint(str(tmp_path / "run"))
    state = whole_state(deployed(opened))
    name = "tower.blocks.0.attn.qkv.weight"
    assert opened.detector.state_dict()[name].dtype == torch.bfloat16
    assert torch.equal(state[name], exact.state_dict()[name])
    assert torch.equal(state["head.linear.weight"], opened.detector.head.linear.weight)
