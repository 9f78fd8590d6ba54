"""Small models and pictures, and what a run of the command leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import called

DATA = Path(__file__).parents[1] / "data" / "tagger"
MODEL = DATA / "model"
PICTURES = DATA / "pictures"


class Result(called.Result[bytes]):
    """What a run of the command left."""

    @property
    def error(self) -> str:
        """The one line of an error; more lines would be a failure."""
        lines = [line for line in self.err.splitlines() if "note:" not in line]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Tag = Callable[..., Result]


def save_picture(
    path: Path, size: tuple[int, int] = (60, 40), colour: tuple[int, int, int] = (200, 30, 90)
) -> Path:
    from PIL import Image

    Image.new("RGB", size, colour).save(path)
    return path


def save_model(
    folder: Path, names: Mapping[str, tuple[int, float]], batch: int | str = "N", **shape: Any
) -> Path:
    """A model that gives each tag (name -> category, probability) the same probability for every picture.

    ``shape``: ``nchw`` for planes, ``logits`` for outputs without sigmoid, ``outputs`` for another number of them.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    chances = np.asarray([chance for _, chance in names.values()], dtype=np.float32)
    bias = np.log(chances / (1 - chances))[: shape.get("outputs", len(chances))].astype(np.float32)
    planes = [batch, 3, 448, 448] if shape.get("nchw") else [batch, 448, 448, 3]
    tensors = [
        numpy_helper.from_array(np.zeros((1, len(bias)), dtype=np.float32), "weights"),
        numpy_helper.from_array(bias, "bias"),
        numpy_helper.from_array(np.asarray([1, 2, 3]), "axes"),
        numpy_helper.from_array(np.asarray([0, 1]), "flat"),
    ]
    last = "logits" if shape.get("logits") else "output"
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("MatMul", ["column", "weights"], ["zero"]),
        helper.make_node("Add", ["zero", "bias"], ["logits"]),
        *([] if shape.get("logits") else [helper.make_node("Sigmoid", ["logits"], ["output"])]),
    ]
    tensors.append(numpy_helper.from_array(np.asarray([1]), "one"))
    values = [("input", planes), (last, [batch, len(bias)])]
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in values)
    graph = helper.make_graph(nodes, "constant", [given], [found], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    rows = [f'{at},"{name}",{category},1' for at, (name, (category, _)) in enumerate(names.items())]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")
    return folder
