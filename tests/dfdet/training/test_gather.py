"""Real two-process gloo groups: N ranks, and accumulation, give the gradients of one rank."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dfdet.config import from_dict
from dfdet.model.detector import build_detector
from dfdet.training.gather import all_gather_rows, splice
from dfdet.training.losses import DetectionLoss

SIDE, BATCH = 32, 8
KEY = (5, 1, 7)


def config():
    return from_dict(
        {
            "model": {"backbone": "tiny", "pretrained": None, "image_size": SIDE},
            "loss": {"slerp": True, "alignment": 0.1, "uniformity": 0.5, "label_smoothing": 0.1},
            "engine": {"precision": "fp32"},
        }
    )


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    valid = torch.ones(BATCH).bool()
    valid[5] = False
    return images, torch.tensor([0, 1, 1, 0, 1, 0, 0, 1]), valid


def train_step(world, rank, accumulation):
    """Loss terms and averaged gradients of the whole batch, as the engine computes them."""
    images, labels, valid = batch()
    detector, loss = build_detector(config()), DetectionLoss(config().loss)
    micro = BATCH // world // accumulation
    starts = [rank * micro * accumulation + step * micro for step in range(accumulation)]
    with torch.no_grad():
        own = torch.cat([detector(images[start : start + micro]) for start in starts])
    gathered = all_gather_rows(own)
    for start in starts:
        live = detector(images[start : start + micro])
        features = splice(gathered, live, start, world * accumulation)
        terms = loss(features, labels, valid, detector.head, KEY)
        (terms.total / accumulation).backward()
    gradients = {name: p.grad for name, p in detector.trainable().items()}
    for gradient in gradients.values():
        if world > 1:
            dist.all_reduce(gradient)
            gradient /= world
    return {name: value.detach() for name, value in vars(terms).items()}, gradients


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mask = all_gather_rows(torch.tensor([rank == 0, True]))
    results = {accumulation: train_step(world, rank, accumulation) for accumulation in (1, 2)}
    torch.save({"results": results, "mask": mask}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def assert_equal(result, reference):
    for ours, theirs in zip(result, reference, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(
                ours[name], theirs[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_give_the_loss_and_gradients_of_one(two_ranks, rank, accumulation):
    reference = train_step(1, 0, 1)
    assert max(gradient.abs().max() for gradient in reference[1].values()) > 1e-3
    assert_equal(two_ranks[rank]["results"][accumulation], reference)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_gives_the_loss_and_gradients_of_one_step(accumulation):
    assert_equal(train_step(1, 0, accumulation), train_step(1, 0, 1))


def test_rows_are_gathered_in_rank_order_with_their_type(two_ranks):
    for rank in range(2):
        assert two_ranks[rank]["mask"].tolist() == [True, True, False, True]


def test_without_a_group_rows_come_back_detached():
    x = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(all_gather_rows(x), x)
    assert not all_gather_rows(x).requires_grad


def test_splice_replaces_rows_and_scales_their_gradient():
    gathered, live = torch.zeros(4, 2), torch.ones(2, 2, requires_grad=True)
    whole = splice(gathered, live, 1, 3.0)
    assert whole[:, 0].tolist() == [0, 1, 1, 0]
    (whole * torch.arange(4.0)[:, None]).sum().backward()
    assert live.grad[:, 0].tolist() == [3.0, 6.0]
    assert gathered.abs().sum() == 0


def test_splice_refuses_rows_outside_of_the_batch():
    with pytest.raises(ValueError, match="rows 3 to 5 lie outside of 4"):
        splice(torch.zeros(4, 2), torch.ones(2, 2), 3, 1.0)
