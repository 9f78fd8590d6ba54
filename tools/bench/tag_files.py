"""Makes what the tagger's benchmark works on: 200 drawings, and networks of random weights.

    python tools/bench/tag_files.py FOLDER PICTURES [vit]

A program of its own, since the memory of the one that starts a command counts as the command's.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

PICTURES = 200
LABELS = 10861  # as the WD taggers v3 have: 4 ratings, 8106 general, 2751 characters
GENERAL = 8106
SIDE = 448
INSTANT, VIT = "models/bench_instant", "models/bench_vit"


def make_pictures(folder: Path, count: int = PICTURES) -> list[Path]:
    """Drawings of 1,000 to 1,500 px a side, every second a JPEG of quality 92, the others PNGs; made once.

    Their grain makes them as large as booru pictures of that size, 0.4 and 1.6 MB, and as slow to decode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04d}.{'jpg' if index % 2 else 'png'}" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.is_file():
            jpeg = index % 2 == 1
            picture = draw(np.random.default_rng(index), *((4.0, 1.0) if jpeg else (1.3, 0.25)))
            draft = path.with_suffix(f".tmp{path.suffix}")
            picture.save(draft, quality=92) if jpeg else picture.save(draft)
            draft.replace(path)
    return paths


def draw(rng: np.random.Generator, grain: float, share: float) -> Any:
    """A drawing with flat areas, shades and lines, and grain of so many levels on a share of its pixels."""
    from PIL import Image, ImageDraw, ImageFilter

    width, height = (int(side) for side in rng.integers(1000, 1501, 2))
    shade = np.linspace(0, 1, height)[:, None, None] * rng.integers(-90, 90, 3) + rng.integers(80, 200, 3)
    base = np.broadcast_to(np.clip(shade, 0, 255), (height, width, 3)).astype(np.uint8)
    picture = Image.fromarray(base)
    pen = ImageDraw.Draw(picture)
    for _ in range(120):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(10, 260, 2)
        colour = tuple(int(one) for one in rng.integers(0, 256, 3))
        box = [int(x - w), int(y - h), int(x + w), int(y + h)]
        if rng.random() < 0.5:
            pen.ellipse(box, fill=colour, outline=(20, 20, 30), width=3)
        else:
            pen.line(box, fill=colour, width=int(rng.integers(1, 7)))
    smooth = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    noise = rng.normal(0, grain, smooth.shape) * (rng.random((height, width, 1)) < share)
    return Image.fromarray(np.clip(np.rint(smooth + noise), 0, 255).astype(np.uint8))


def make_instant_model(folder: Path) -> Path:
    """A network that takes next to no time, for a fast GPU's: means of an 8 x 8 grid, one layer, a sigmoid.

    No character passes its threshold, since sd-scripts ends at the first one that does.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    cells = SIDE // 8
    weights = rng.normal(0, 0.15, (192, LABELS)).astype(np.float32) / 255
    bias = np.full(LABELS, -5.5, dtype=np.float32)
    bias[4 : 4 + GENERAL] += rng.normal(0, 1.2, GENERAL).astype(np.float32)
    bias[4 + GENERAL :] = -12
    nodes = [
        helper.make_node("Transpose", ["input"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["grid"], kernel_shape=[cells, cells], strides=[cells, cells]
        ),
        helper.make_node("Flatten", ["grid"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    tensors = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")]
    shapes = [("input", ["N", SIDE, SIDE, 3]), ("output", ["N", LABELS])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    graph = helper.make_graph(nodes, "instant", values[:1], values[1:], tensors)
    return _save(graph, folder)


class _Graph:
    """Nodes and random weights of a network that is being put together; each step's name is its output's."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._rng = np.random.default_rng(1)

    def constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        values = np.asarray(values)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        self.tensors.append(numpy_helper.from_array(values, name))
        return name

    def random(self, name: str, *shape: int) -> str:
        return self.constant(name, self._rng.normal(0, 0.02, shape))

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def normalise(self, name: str, value: str) -> str:
        scale = self.constant(f"{name}.scale", np.ones(self.width))
        shift = self.constant(f"{name}.shift", np.zeros(self.width))
        return self.add("LayerNormalization", [value, scale, shift], name, axis=-1)

    def project(self, name: str, value: str, inside: int, outside: int) -> str:
        product = self.add(
            "MatMul", [value, self.random(f"{name}.weight", inside, outside)], f"{name}.product"
        )
        return self.add("Add", [product, self.random(f"{name}.bias", outside)], name)

    def layer(self, p: str, state: str) -> str:
        """A transformer's layer ``p`` on (N, tokens, width)."""
        width = self.width
        normed = self.normalise(f"{p}.n1", state)
        parts = []
        for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            flat = self.project(f"{p}.{part}", normed, width, width)
            shaped = self.add("Reshape", [flat, "split"], f"{p}.{part}.heads")
            parts.append(self.add("Transpose", [shaped], f"{p}.{part}.turned", perm=order))
        fit = self.add("Mul", [self.add("MatMul", parts[:2], f"{p}.qk"), "eighth"], f"{p}.fit")
        weights = self.add("Softmax", [fit], f"{p}.weights", axis=-1)
        mixed = self.add("MatMul", [weights, parts[2]], f"{p}.mixed")
        turned = self.add("Transpose", [mixed], f"{p}.back", perm=[0, 2, 1, 3])
        merged = self.add("Reshape", [turned, "whole"], f"{p}.merged")
        state = self.add("Add", [state, self.project(f"{p}.o", merged, width, width)], f"{p}.attended")
        wide = self.project(f"{p}.up", self.normalise(f"{p}.n2", state), width, 4 * width)
        curve = self.add("Erf", [self.add("Div", [wide, "root"], f"{p}.d")], f"{p}.e")
        gate = self.add("Mul", [wide, self.add("Add", [curve, "one"], f"{p}.f")], f"{p}.g")
        active = self.add("Mul", [gate, "half"], f"{p}.gelu")
        return self.add("Add", [state, self.project(f"{p}.down", active, 4 * width, width)], f"{p}.out")


def make_vit_model(folder: Path, width: int = 768, depth: int = 12) -> Path:
    """A vision transformer of random weights, by default of ViT-B's size: 784 patches of 16 px, 360 MB."""
    from onnx import TensorProto, helper

    graph = _Graph(width)
    tokens = (SIDE // 16) ** 2
    graph.constant("split", [0, tokens, width // 64, 64])
    graph.constant("whole", [0, tokens, width])
    for name, value in {"eighth": 0.125, "root": 2**0.5, "half": 0.5, "one": 1.0, "unit": 1 / 255}.items():
        graph.constant(name, value)
    scaled = graph.add("Mul", ["input", "unit"], "scaled")
    planes = graph.add("Transpose", [scaled], "planes", perm=[0, 3, 1, 2])
    patches = graph.add(
        "Conv", [planes, graph.random("patch", width, 3, 16, 16)], "patches", strides=[16, 16]
    )
    rows = graph.add("Reshape", [patches, graph.constant("rows_shape", [0, width, tokens])], "rows")
    state = graph.add("Transpose", [rows], "tokens", perm=[0, 2, 1])
    for layer in range(depth):
        state = graph.layer(f"l{layer}", state)
    last = graph.normalise("last", state)
    pooled = graph.add("ReduceMean", [last, graph.constant("axis", [1])], "pooled", keepdims=0)
    # Random logits lie around 0; no character is to pass, as in the instant model.
    lower = np.where(np.arange(LABELS) < 4 + GENERAL, 0, -12)
    head = graph.project("head", pooled, width, LABELS)
    graph.add(
        "Sigmoid", [graph.add("Add", [head, graph.constant("lower", lower * 1.0)], "lowered")], "output"
    )
    shapes = [("input", ["N", SIDE, SIDE, 3]), ("output", ["N", LABELS])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
    return _save(helper.make_graph(graph.nodes, "vit", values[:1], values[1:], graph.tensors), folder)


def _save(graph: Any, folder: Path) -> Path:
    import onnx
    from onnx import helper

    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    with (folder / "selected_tags.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        ratings = ("general", "sensitive", "questionable", "explicit")
        for index in range(LABELS):
            category = 9 if index < 4 else 0 if index < 4 + GENERAL else 4
            rows.writerow(
                [index, ratings[index] if index < 4 else f"tag_number_{index}", category, LABELS - index]
            )
    return folder


def main() -> None:
    """Make what is not there yet in FOLDER."""
    folder, count, *more = sys.argv[1:]
    make_pictures(Path(folder, "pictures"), int(count))
    if not Path(folder, INSTANT, "selected_tags.csv").is_file():
        make_instant_model(Path(folder, INSTANT))
    if more and not Path(folder, VIT, "selected_tags.csv").is_file():
        make_vit_model(Path(folder, VIT))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    main()
