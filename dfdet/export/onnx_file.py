"""ONNX files: the traced detector in float32, with products in float16, or with weights of 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx_ir as ir
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from dfdet.errors import ConfigError
from dfdet.export.graph import Deployed
from dfdet.export.onnx_scorer import OnnxScorer
from dfdet.export.program import trace

__all__ = ["OnnxScorer", "export_onnx"]

OPSET = 20
"""The first with GELU as one operator; read by ONNX Runtime from 1.17 on, and by TensorRT 10."""
SINGLE_FILE_BYTES = 1_900_000_000
"""Weights beyond it go into a file beside the graph: a protobuf ends at 2 GiB (bytes)."""
SHAPES = {"crops": ("batch", "height", "width", 3), "score": ("batch",), "logit": ("batch",)}
"""Inputs and outputs with their dimensions."""
PRODUCTS = ("MatMul", "Gemm")
QUANTISER_MARK = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Says to the quantiser that the graph is optimised already: it warns otherwise."""


def export_onnx(
    model: Deployed, path: Path, *, precision: Literal["float32", "float16", "int8"] = "float32"
) -> None:
    """Writes an ``.onnx`` file, equal for equal models and versions of torch, onnxscript and ONNX Runtime.

    Weights of 2 GB and more go into ``<name>.data`` beside it. With float16 the tower's matrix products
    are, while preprocessing, norms, softmax, the residual stream and the head stay float32. int8 is for
    CPUs: weights of the tower's linear layers in 8 bits a channel, their inputs quantised as they come.

    Args:
        model: In float32.
        path: File to write.
        precision: One of the three.

    Raises:
        ConfigError: int8 of a tower without linear layers.
    """
    half = precision == "float16"
    graph = _convert(model.computing_in(torch.float16) if half else model)
    if half:
        _soften(graph.graph)
    if precision == "int8":
        graph = _quantised(graph)
    _save(graph, path)


def _convert(model: Deployed) -> ir.Model:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells each operation that it cannot fold
    program = torch.onnx.export(
        trace(model),
        dynamo=True,
        opset_version=OPSET,
        input_names=["crops"],
        output_names=["score", "logit"],
        verbose=False,
    )
    assert program is not None
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.shape = ir.Shape(SHAPES[str(value.name)])
    return program.model


def _strip(model: ir.Model) -> None:
    """Takes off what names this machine or process, and the shapes within, which are in its words."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in ends:
                value.shape = value.type = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
        value.shape = value.type = None  # of the value; the tensor keeps its own


def _soften(graph: ir.Graph) -> None:
    """Computes each softmax of float16 in float32."""
    for node in [node for node in graph if node.op_type == "Softmax"]:
        scores, weights = node.inputs[0], node.outputs[0]
        if scores is None or scores.dtype != ir.DataType.FLOAT16:
            continue
        up = ir.node("Cast", [scores], {"to": ir.DataType.FLOAT})
        down = ir.node("Cast", [weights], {"to": ir.DataType.FLOAT16})
        ir.convenience.replace_all_uses_with(weights, down.outputs[0])
        down.replace_input_with(0, weights)
        node.replace_input_with(0, up.outputs[0])
        weights.dtype = up.outputs[0].dtype = ir.DataType.FLOAT
        down.outputs[0].dtype = ir.DataType.FLOAT16
        graph.insert_before(node, up)
        graph.insert_after(node, down)


def _quantised(model: ir.Model) -> ir.Model:
    """The graph with weights of 8 bits, but for the head's, which is the last product.

    Signed weights: unsigned ones take twice the time. Of 7 bits: on CPUs without VNNI sums of two
    products of 8 bits each overflow 16, and scores would be other ones there.
    """
    head = [node.name for node in model.graph if node.op_type in PRODUCTS][-1]
    with TemporaryDirectory() as folder:
        plain, low = Path(folder, "plain.onnx"), Path(folder, "low.onnx")
        _save(model, plain, QUANTISER_MARK)
        quantize_dynamic(
            plain,
            low,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[f"{head}", f"{head}_MatMul"],  # the quantiser's name of what was a Gemm
            use_external_data_format=_weights_bytes(model) > SINGLE_FILE_BYTES,
        )
        quantised = ir.load(low)
        ir.external_data.load_to_model(quantised)
    if all(node.op_type != "MatMulInteger" for node in quantised.graph):
        raise ConfigError("int8: the tower has no linear layer to store in 8 bits; leave int8 out")
    return quantised


def _weights_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _save(model: ir.Model, path: Path, marks: dict[str, str] | None = None) -> None:
    _strip(model)
    model.metadata_props.update(marks or {})
    beside = f"{path.name}.data" if _weights_bytes(model) > SINGLE_FILE_BYTES else None
    ir.save(model, path, external_data=beside)
