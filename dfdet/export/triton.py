"""A model repository for Triton, and KServe's manifest that serves it.

``<name>/config.pbtxt`` beside ``<name>/1/model.onnx``. With ``max_batch_size`` above 0 the batch
dimension is not written: crops ``[N, H, W, 3]`` are ``dims: [ -1, -1, 3 ]``. Scores ``[N]`` have no
dimension left, and Triton takes no empty ``dims``: they are ``[ 1 ]`` reshaped to ``[ ]``. Triton
batches requests whose crops are of one side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from dfdet.errors import DfdetError

MAX_BATCH = 32
QUEUE_DELAY_US = 2000
CONFIG = "config.pbtxt"
TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}
"""Triton's names of types and onnxruntime's."""

CONFIG_TEXT = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [
  {{
    name: "crops"
    data_type: TYPE_UINT8
    dims: [ -1, -1, 3 ]
  }}
]
output [
  {{
    name: "score"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape {{ shape: [ ] }}
  }},
  {{
    name: "logit"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape {{ shape: [ ] }}
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
}}
instance_group [
  {{
    count: 1
    kind: KIND_AUTO
  }}
]
"""
KSERVE_TEXT = """\
# KServe (v2 protocol): copy the folder triton/ to a storage that the cluster reads, and name it below.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      storageUri: pvc://models/triton
      resources:
        requests:
          cpu: "2"
          memory: {memory}Gi
"""


class TritonError(DfdetError):
    """A ``config.pbtxt`` that the graph beside it does not fit."""


def model_name(name: str) -> str:
    """A name that is one of Triton and of Kubernetes: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "dfdet"


def write(folder: Path, name: str, graph: Path) -> Path:
    """Writes the repository with the graph hard-linked into it, and checks it; gives the model's folder.

    Args:
        folder: Of the repository; made here.
        name: Of the bundle.
        graph: The ONNX file; data that lies beside it as ``<file>.data`` is linked too.

    Raises:
        TritonError: Configuration and graph do not fit one another.
        OSError: The disk is full or not writable.
    """
    model = folder / model_name(name)
    version = model / "1"
    version.mkdir(parents=True)
    for file in sorted(graph.parent.glob(f"{graph.name}*")):
        os.link(file, version / file.name)
    text = CONFIG_TEXT.format(name=model.name, max_batch=MAX_BATCH, delay=QUEUE_DELAY_US)
    (model / CONFIG).write_text(text, encoding="utf-8")
    check(model)
    return model


def kserve(name: str, graph_bytes: int) -> str:
    """``kserve.yaml``: what is to be filled in is the storage."""
    return KSERVE_TEXT.format(name=model_name(name), memory=2 + 2 * -(-graph_bytes // 2**30))


def check(model: Path) -> None:
    """Compares names, types and ranks of a model folder's configuration with its graph.

    Raises:
        TritonError: They differ, or the configuration cannot be read.
    """
    config = parse((model / CONFIG).read_text(encoding="utf-8"))
    if config.get("name") != [model.name]:
        raise TritonError(f"{model / CONFIG}: names {config.get('name')}, but its folder is {model.name}")
    batched = int(config.get("max_batch_size", [0])[0]) > 0
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for kind, graph in (("input", session.get_inputs()), ("output", session.get_outputs())):
        told = {str(entry["name"][0]): _signature(entry, batched) for entry in config.get(kind, [])}
        found = {each.name: (each.type, _shape(each.shape)) for each in graph}
        if told != found:
            raise TritonError(
                f"{model / CONFIG}: its {kind}s {told} are not those of the graph, {found}; export again"
            )


def _signature(entry: dict[str, Any], batched: bool) -> tuple[str, list[int]]:
    """onnxruntime's type and shape of an input or output."""
    reshaped = entry["reshape"][0].get("shape", []) if "reshape" in entry else entry.get("dims", [])
    shape = [int(size) for size in reshaped]
    return TYPES.get(str(entry["data_type"][0]), "unknown"), [-1] * batched + shape


def _shape(sizes: Sequence[object]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in sizes]


_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<token>"[^"]*"|[\w.+-]+|[:{}\[\],])')


def parse(text: str) -> dict[str, list[Any]]:
    """Protobuf's text format, as far as ``config.pbtxt`` uses it: every field as the list of its values.

    Raises:
        TritonError: It is none.
    """
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise TritonError(f"{CONFIG}: {text[place : place + 20]!r} is no protobuf text")
        place = match.end()
        tokens += [match["token"]] if match["token"] else []
    try:
        message, end = _message([*tokens, "}"], 0)
    except IndexError as error:
        raise TritonError(f"{CONFIG}: ends within a field") from error
    if end != len(tokens) + 1:
        raise TritonError(f"{CONFIG}: a bracket is closed that was not opened")
    return message


def _message(tokens: Sequence[str], place: int) -> tuple[dict[str, list[Any]], int]:
    """The fields up to a closing brace, and the place after it."""
    fields: dict[str, list[Any]] = {}
    while tokens[place] != "}":
        name, place = tokens[place], place + 1
        place += tokens[place] == ":"
        values, place = _values(tokens, place)
        fields.setdefault(name, []).extend(values)
        place += tokens[place] == ","
    return fields, place + 1


def _values(tokens: Sequence[str], place: int) -> tuple[list[Any], int]:
    """One value, or those of a list, and the place after them."""
    if tokens[place] == "[":
        values, place = [], place + 1
        while tokens[place] != "]":
            found, place = _values(tokens, place)
            values += found
            place += tokens[place] == ","
        return values, place + 1
    if tokens[place] == "{":
        message, place = _message(tokens, place + 1)
        return [message], place
    if tokens[place] in "}]:,":
        raise TritonError(f"{CONFIG}: {tokens[place]!r} where a value is due")
    return [tokens[place].strip('"')], place + 1
