"""The trained tagger as an ONNX file and a list of tags, in the form of the WD14 taggers.

Input ``input`` (N, 64, 64, 3) float32, BGR in 0..255; output ``output`` (N, tags) after the sigmoid. Weights lie in the
file as float16, half the size, and are widened when it is loaded.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

if TYPE_CHECKING:
    from train_tagger import TaggerNetwork

SIDE = 64
LARGEST_BYTES = 2_000_000


class Graph:
    """Nodes and weights of a network that is being put together; the last node's output is ``last``."""

    def __init__(self, start: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = start

    def add(self, kind: str, *weights: Tensor, **attributes: object) -> None:
        """Put a node behind the last one."""
        name = f"{kind.lower()}{len(self.nodes)}"
        places = [self._weight(f"{name}.{at}", weight) for at, weight in enumerate(weights)]
        self._node(kind, [self.last, *places], name, **attributes)
        self.last = name

    def _weight(self, name: str, weight: Tensor) -> str:
        self.weights.append(numpy_helper.from_array(weight.numpy().astype(np.float16), f"{name}.half"))
        return self._node("Cast", [f"{name}.half"], name, to=TensorProto.FLOAT)

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output


def write_tagger(folder: Path, network: TaggerNetwork, rows: Sequence[tuple[str, int, int]]) -> None:
    """Write model.onnx and selected_tags.csv. ``rows``: name, category and count of each output.

    Raises ValueError if together they are larger than what may be shipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, labels = folder / "model.onnx", folder / "selected_tags.csv"
    onnx.save(build_model(network, len(rows)), model)
    with labels.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["tag_id", "name", "category", "count"])
        table.writerows([at, *row] for at, row in enumerate(rows))
    size = model.stat().st_size + labels.stat().st_size
    print(f"{folder}: {size:,} bytes")
    if size > LARGEST_BYTES:
        raise ValueError(f"{folder}: {size} bytes are more than {LARGEST_BYTES}")


def build_model(network: TaggerNetwork, tags: int) -> onnx.ModelProto:
    """The network with its norms folded into its convolutions."""
    graph = Graph("input")
    graph.add("Transpose", perm=[0, 3, 1, 2])
    graph.add("Div", Tensor([127.5]))
    graph.add("Sub", Tensor([1.0]))
    for convolution, norm in zip(network.convolutions, network.norms, strict=True):
        graph.add("Conv", *fold(convolution, norm), strides=list(convolution.stride), pads=[1, 1, 1, 1])
        graph.add("Relu")
    graph.add("Flatten")
    graph.add("Gemm", network.hidden.weight.detach(), network.hidden.bias.detach(), transB=1)
    graph.add("Relu")
    graph.add("Gemm", network.head.weight.detach(), network.head.bias.detach(), transB=1)
    graph.add("Sigmoid")
    graph.nodes[-1].output[0] = "output"
    shapes = (("input", ["N", SIDE, SIDE, 3]), ("output", ["N", tags]))
    given, answered = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes
    )
    whole = helper.make_graph(graph.nodes, "tagger", [given], [answered], graph.weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what the two do after training."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = convolution.weight * scale[:, None, None, None]
    return weight.detach(), (norm.bias - norm.running_mean * scale).detach()
