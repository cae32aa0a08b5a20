"""``torch.export`` programs: a traced detector, saved and loaded without our code."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from dfdet.export.graph import Deployed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of the tower's matrix products by their names."""
SAMPLE = (2, 40, 48, 3)
"""Shape of the crops that are traced: sizes that differ, so that none is taken for another."""
INPUT = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
"""Dynamic dimensions of the crops."""
PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Where a node came from: paths of this machine, and numbers that change with each process."""

Program = Callable[[Tensor], tuple[Tensor, Tensor]]


def trace(model: Deployed) -> ExportedProgram:
    """A detector as a graph of plain operations, of any batch, height and width.

    Autocast becomes casts, and what depends on no input is computed once: the weights lie there in the
    type that they are used in. Traced once for all formats: it is half of their time.
    """
    if model.products not in model.traces:
        first = _export(model).run_decompositions({}).module(check_guards=False)
        _free_of_device(first.graph)
        model.traces[model.products] = _export(fold_constants(first))
    return model.traces[model.products]


@torch.no_grad()
def _export(model: nn.Module) -> ExportedProgram:
    sample = torch.zeros(SAMPLE, dtype=torch.uint8)
    return torch.export.export(model, (sample,), dynamic_shapes=(INPUT,), strict=False)


def _free_of_device(graph: Graph) -> None:
    """Takes out what holds on the device of the trace alone."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)  # a check that autocast left behind
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # attention's result lies in another order on other devices


@torch.no_grad()
def fold_constants(module: GraphModule) -> GraphModule:
    """The module with every operation on constants alone replaced by its result."""
    known: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(module)
        elif node.op == "call_function" and known.keys() >= set(node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    computed = [node for node in known if node.op == "call_function" and not known.keys() >= set(node.users)]
    for number, node in enumerate(computed):
        # a copy: a part of a weight would keep the whole
        constant = known[node].clone(memory_format=torch.contiguous_format)
        module.register_buffer(f"constant_{number}", constant)
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(f"constant_{number}"))
    module.graph.eliminate_dead_code()
    return GraphModule(module, module.graph)  # which has only what the graph names


def export_program(
    model: Deployed, path: Path, *, precision: Literal["float32", "bfloat16", "float16"] = "float32"
) -> None:
    """Writes a ``.pt2`` file, equal for equal models and versions of torch.

    Args:
        model: In float32.
        path: File to write.
        precision: Type of the tower's matrix products; preprocessing, norms, the residual stream and the
            head stay float32.
    """
    program = trace(model.computing_in(DTYPES[precision]))
    for node in program.graph.nodes:
        for key in PROVENANCE:
            node.meta.pop(key, None)
    buffer = io.BytesIO()  # in a file, the archive would be named after it
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def load_program(path: Path, device: torch.device | str = "cpu") -> Program:
    """Crops ``[N, H, W, 3]`` uint8 on ``device`` to scores and logits ``[N]`` float32."""
    program = move_to_device_pass(torch.export.load(path), str(device))
    return torch.no_grad()(program.module())
