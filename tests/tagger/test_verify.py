"""``--verify``: what a model gives here against a plain run of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from .making import MODEL, PICTURES, Tag, save_model


@pytest.mark.slow
def test_a_model_that_runs_as_it_should(tag: Tag, tmp_path: Path) -> None:
    result = tag("--verify")
    assert result.code == 0, result.err
    assert result.out.decode().startswith("model on cpu, 8 pictures: right; against a plain run on the CPU")
    shutil.copy(PICTURES / "rgba.png", tmp_path)
    models = ["--model", MODEL.with_name("model_batch1"), "--model", MODEL]
    result = tag(tmp_path, "--verify", "--jsonl", *models, model=None)
    assert [(row["model"], row["pictures"], row["ok"]) for row in result.records] == [
        ("model_batch1", 1, True),
        ("model", 1, True),
    ]
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.slow
def test_a_model_that_int8_spoils(tag: Tag, tmp_path: Path) -> None:
    """One weight is so large that in int8 nothing is left of the others."""
    onnx = pytest.importorskip("onnx")
    folder = save_model(tmp_path / "m", {"general": (9, 0.5), "cat": (0, 0.1), "dog": (0, 0.1)})
    model = onnx.load(folder / "model.onnx")
    weights = np.asarray([[1000.0, 0.02, 0.03]], dtype=np.float32)
    (old,) = (tensor for tensor in model.graph.initializer if tensor.name == "weights")
    old.CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(model, folder / "model.onnx")
    assert tag("--verify", model=folder).code == 0
    result = tag("--verify", "--int8", "--jsonl", model=folder)
    assert result.code == 1
    (row,) = map(json.loads, result.out.decode().splitlines())
    assert row["ok"] is False
    assert row["score"] > 0.1
    assert row["tags_differ"] > 0
    assert "WARNING" not in result.err


def test_no_pictures_and_broken_ones(tag: Tag, tmp_path: Path) -> None:
    assert "no pictures in it" in tag(tmp_path, "--verify").err
    shutil.copy(PICTURES / "truncated.jpg", tmp_path)
    result = tag(tmp_path, "--verify")
    assert result.code == 2
    assert "truncated.jpg: broken picture" in result.err
