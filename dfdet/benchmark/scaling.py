"""What more GPUs bring: predicted from a step's time, its messages and public link speeds.

    python -m dfdet.benchmark scaling --step-ms 87.7 --batch-per-gpu 128 [--strong] [--weak]

The prediction is arithmetic on plain numbers (``dfdet.benchmark.cost``); with ``--weak`` the communication
of this machine is held against the model, and 1 worker against 2 (``dfdet.benchmark.weak``).
"""

from __future__ import annotations

from dfdet.benchmark.cost import ScalingOptions, StepCost, gpu_counts, predict, step_cost
from dfdet.benchmark.links import FABRICS, Fabric
from dfdet.benchmark.weak import measured_lines


def plan_lines(options: ScalingOptions, cost: StepCost) -> list[str]:
    """The tables and what they assume."""
    counts = gpu_counts(divides=options.batch_per_gpu if options.strong else None)
    fabrics = [Fabric(f.inside, f.between, f.cards, options.gpus_per_node) for f in FABRICS]
    links = {link.name: link.origin for f in fabrics for link in (f.inside, f.between)}
    kind = f"global batch {cost.batch}" if options.strong else f"{cost.batch} samples a GPU"
    return [
        f"{options.backbone}, tuning {options.tuning}, {kind}: {cost.compute_s * 1e3:.1f} ms a step alone",
        f"messages of a rank and step: features {cost.gather_bytes(cost.batch) / 1e3:.0f} kB"
        f"{' in all' if options.strong else ''}, gradients {cost.reduce_bytes / 1e3:.0f} kB",
        "",
        *_table(cost, fabrics, counts, options.strong),
        "",
        "comm: gather of the features and reduction of the gradients, on each fabric. loss: every rank",
        "computes the loss of the global batch; its float32 [N, N] matrices are counted by FLOPs alone.",
        f"Assumed: {options.gpus_per_node} GPUs a node, nodes filled in order; nothing overlaps; no rank is"
        " slower than another;",
        "data keep up; the better of ring and tree. Links, one way:",
        *(f"  {name}: {origin}" for name, origin in links.items()),
    ]


def _table(cost: StepCost, fabrics: list[Fabric], counts: list[int], strong: bool) -> list[str]:
    heads = "".join(f"{fabric.name:>30}" for fabric in fabrics)
    lines = [
        f"{'GPUs':>5}{'batch':>8}{'loss ms':>9}{heads}",
        f"{'':22}" + f"{'comm ms  efficiency':>30}" * len(fabrics),
    ]
    for gpus in counts:
        found = [predict(cost, fabric, gpus, strong) for fabric in fabrics]
        samples = cost.batch if strong else cost.batch * gpus
        cells = "".join(f"{(p.gather_s + p.reduce_s) * 1e3:>18.3f}{p.efficiency:>12.1%}" for p in found)
        lines.append(f"{gpus:>5}{samples:>8}{found[0].loss_s * 1e3:>9.2f}{cells}")
    return lines


def run(options: ScalingOptions) -> int:
    """Prints the prediction, and with ``weak`` what was measured here; gives the exit code."""
    print("\n".join(plan_lines(options, step_cost(options))))
    if options.weak:
        print("\n" + "\n".join(measured_lines(options)))
    return 0
