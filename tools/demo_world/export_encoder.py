"""The demo's encoder of pictures for ``lora-grid --encoder``: the tagger's convolutions but the last, as an ONNX file.

    python tools/demo_world/export_encoder.py packages/demo/src/lorapipe_demo/assets

Input ``pixels`` (N, 3, 64, 64) float32, RGB in 0..1; output ``image_embeds`` (N, 6144), 96 channels at 8 x 8 places.
The tagger has never seen the demo's character, as a user's DINO has not seen a user's. Its later layers pass over
what has no tag; docs/demo-world.md has the numbers of each. The folder's tagger/model.onnx is read, its encoder.onnx
written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
LARGEST_BYTES = 400_000


def main() -> None:
    assets = Path(sys.argv[1])
    path = assets / "encoder.onnx"
    onnx.save(build_encoder(onnx.load(assets / "tagger" / "model.onnx")), path)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > LARGEST_BYTES:
        raise SystemExit(f"{path}: {size} bytes are more than {LARGEST_BYTES}")


def build_encoder(tagger: onnx.ModelProto) -> onnx.ModelProto:
    """The tagger's convolutions but the last, for RGB in 0..1."""
    weights = {one.name: numpy_helper.to_array(one) for one in tagger.graph.initializer}
    nodes = [
        # The tagger's own levels are -1..1.
        helper.make_node("Mul", ["pixels", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["level"]),
    ]
    stored = [
        numpy_helper.from_array(np.array([value], dtype=np.float32), name)
        for name, value in (("two", 2), ("one", 1))
    ]
    last = "level"
    convolutions = [node for node in tagger.graph.node if node.op_type == "Conv"]
    channels = 0
    for at, node in enumerate(convolutions[:-1]):
        kernel, bias = (weights[f"{name}.half"] for name in node.input[1:])
        if at == 0:
            kernel = np.ascontiguousarray(kernel[:, ::-1])  # it takes blue first
        names = []
        for part, values in (("kernel", kernel), ("bias", bias)):
            names.append(f"{part}{at}")
            nodes += _widened(names[-1], values, stored)
        how = {one.name: list(one.ints) for one in node.attribute if one.name in ("strides", "pads")}
        nodes.append(helper.make_node("Conv", [last, *names], [f"conv{at}"], **how))
        nodes.append(helper.make_node("Relu", [f"conv{at}"], [f"relu{at}"]))
        last, channels = f"relu{at}", len(bias)
    nodes.append(helper.make_node("Flatten", [last], ["image_embeds"]))
    shapes = (("pixels", ["N", 3, SIDE, SIDE]), ("image_embeds", ["N", channels * 64]))
    given, answered = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes
    )
    graph = helper.make_graph(nodes, "encoder", [given], [answered], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _widened(
    name: str, values: NDArray[np.float16], stored: list[onnx.TensorProto]
) -> Iterator[onnx.NodeProto]:
    """Weights that lie in the file as float16."""
    stored.append(numpy_helper.from_array(values, f"{name}.half"))
    yield helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)


if __name__ == "__main__":
    main()
