"""Checks of a whole configuration: fields that contradict each other, and worker counts that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfdet.config import Config, Data


def combination_problems(config: Config) -> list[str | None]:
    """Fields that contradict each other, one line each with the remedy."""
    data, model, loss, optim = config.data, config.model, config.loss, config.optim
    unit = data.unit_size
    return [
        _workers_problem(config),
        f"model.margin={model.margin}: a linear head has no margin; set --model.head cosine or angular"
        if model.head == "linear" and model.margin
        else None,
        "loss.ce, loss.alignment and loss.uniformity are all 0: nothing to learn; set --loss.ce 1"
        if not (loss.ce or loss.alignment or loss.uniformity or (loss.clip and model.temporal))
        else None,
        f"model.temporal=True: needs clips, not data.sampling={data.sampling}; set --data.sampling clip"
        if model.temporal and data.sampling != "clip"
        else None,
        f"loss.consistency={loss.consistency}: of frames with their clip, which only a temporal model scores;"
        " set --model.temporal True"
        if loss.consistency and not model.temporal
        else None,
        f"loss.slerp_low={loss.slerp_low}: above loss.slerp_high={loss.slerp_high}; swap them"
        if loss.slerp_low > loss.slerp_high
        else None,
        f"optim.min_lr={optim.min_lr}: above optim.lr={optim.lr}; set --optim.min_lr {optim.lr} or lower"
        if optim.min_lr > optim.lr and optim.schedule != "constant"
        else None,
        f"optim.warmup_epochs={optim.warmup_epochs}: not less than optim.epochs={optim.epochs};"
        " shorten the warm-up, as with --optim.warmup_epochs 0"
        if optim.warmup_epochs and optim.warmup_epochs >= optim.epochs
        else None,
        f"optim.betas={optim.betas}: each must be in [0, 1); set --optim.betas 0.9 0.999"
        if not all(0 <= beta < 1 for beta in optim.betas)
        else None,
        f"engine.micro_batch={config.engine.micro_batch}: smaller than a {_unit_name(data)}"
        f" (data.sampling={data.sampling}); set --engine.micro_batch {unit}"
        if (config.engine.micro_batch or unit) < unit
        else None,
        "engine.compile=True: not with engine.zero_stage=3, which gathers the weights of each module as it is"
        " called; set --engine.zero_stage 0"
        if config.engine.compile and config.engine.zero_stage == 3
        else None,
        *(_named_set_problem("data.val", data.val)),
        *(_named_set_problem("data.test", data.test)),
    ]


def _workers_problem(config: Config) -> str | None:
    """A global batch that no allowed number of workers divides."""
    run, data = config.run, config.data
    if usable_workers(config, run.most_workers) is not None:
        return None
    share = run.most_workers * data.unit_size
    low_batch = max(share, data.global_batch // share * share)
    shown = run.workers if isinstance(run.workers, int) else list(run.workers)
    together = f" x {data.unit_size} (data.sampling={data.sampling} keeps {_unit_name(data)}s on one rank)"
    return (
        f"data.global_batch={data.global_batch}: not divisible by run.workers={shown}"
        + (together if data.unit_size > 1 else "")
        + f"; set --data.global_batch {low_batch}"
    )


def usable_workers(config: Config, available: int) -> int | None:
    """The most workers, at most ``available``, that the run allows and its global batch divides into.

    None where there are none. Pairs and clips stay on one worker.
    """
    run, data = config.run, config.data
    high = min(available, run.most_workers)
    counts = range(high, run.fewest_workers - 1, -1)
    return next((n for n in counts if data.global_batch % (n * data.unit_size) == 0), None)


def _unit_name(data: Data) -> str:
    return "clip" if data.sampling == "clip" else "pair"


def _named_set_problem(path: str, entries: tuple[str, ...]) -> list[str]:
    names = [entry.partition("=")[0] for entry in entries]
    problems = [
        f"{path}={entry!r}: write NAME=SET.json, with a name of letters, digits, - and _"
        for entry, name in zip(entries, names, strict=True)
        if "=" not in entry or not name.replace("-", "").replace("_", "").isalnum()
    ]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return problems + [f"{path}: the name {name!r} is given twice; name each set once" for name in repeated]
