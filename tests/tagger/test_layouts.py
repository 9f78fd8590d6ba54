"""Each family's layout with a network that gives back its pixels: order of channels, padding, scaling, activation.

The network averages two places of its input, in the middle (the picture) and at the upper edge (the padding), channel
by channel: six outputs. What they must be follows from the family's description and the colours of the picture alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapipe_engine.errors import InputError
from lorapipe_tagger.models.labels import read_labels
from lorapipe_tagger.models.names import find_model
from lorapipe_tagger.scoring.picture import Preparation, read_picture
from lorapipe_tagger.scoring.session import Network

from .making import Tag, save_model, save_picture

RED = (250, 120, 30)  # red, green and blue that differ: an order of channels shows
NAMES = ("one", "two", "three", "four", "five", "six")
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CSV = "tag_id,name,category,count\n" + "".join(f"{at},{name},0,1\n" for at, name in enumerate(NAMES))


def probe(path: Path, side: int, *, planes: bool, logits: bool, scale: float, opset: int = 18) -> None:
    """The network; ``scale`` brings its values into 0..1 where it has no logits."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    shape = ["N", 3, side, side] if planes else ["N", side, side, 3]
    axes = [2, 3] if planes else [1, 2]
    nodes, constants = [], [numpy_helper.from_array(np.asarray(axes), "axes")]
    constants.append(numpy_helper.from_array(np.float32(scale).reshape(1), "scale"))
    # A strip in the middle, and one at the upper edge.
    for name, start, stop in (("middle", side // 2 - 2, side // 2 + 2), ("edge", 0, 2)):
        bounds = {f"{name}_from": [start], f"{name}_to": [stop], f"{name}_axis": [axes[0]]}
        constants += [numpy_helper.from_array(np.asarray(value), key) for key, value in bounds.items()]
        nodes.append(helper.make_node("Slice", ["input", *bounds], [f"{name}_part"]))
        nodes.append(helper.make_node("ReduceMean", [f"{name}_part", "axes"], [name], keepdims=0))
    nodes.append(helper.make_node("Concat", ["middle", "edge"], ["joined"], axis=1))
    nodes.append(helper.make_node("Mul", ["joined", "scale"], ["logits" if logits else "prediction"]))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("logits" if logits else "prediction", TensorProto.FLOAT, ["N", 6])
    graph = helper.make_graph(nodes, "probe", [given], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)


def vocabulary() -> str:
    return json.dumps(
        {"idx_to_tag": dict(enumerate(NAMES)), "tag_to_category": dict.fromkeys(NAMES, "General")}
    )


def metadata() -> str:
    mapping = {"idx_to_tag": dict(enumerate(NAMES)), "tag_to_category": dict.fromkeys(NAMES, "general")}
    return json.dumps({"dataset_info": {"tag_mapping": mapping}})


def timm(*steps: dict[str, Any]) -> str:
    ends = [{"type": "maybe_to_tensor"}, {"type": "normalize", "mean": MEAN, "std": STD}]
    return json.dumps({"test": [{"type": "convert_rgb"}, *steps, *ends]})


PAD = timm(
    {"type": "pad_to_size", "size": [96, 96], "background_color": "white", "interpolation": "bilinear"},
    {"type": "resize", "size": 64, "interpolation": "bicubic"},
    {"type": "center_crop", "size": [64, 64]},
)
STYLES = "tag_id,name,category,count\n"
STYLES += "".join(
    f"{at},{name},{category},1\n" for at, name, category in zip(range(6), NAMES, "013459", strict=True)
)
SPLIT = json.dumps({"tags": NAMES, "tags_split": [["general", 3], ["style", 1], ["rating", len(NAMES) - 4]]})
IPS, OWN = CSV.replace("count\n", "count,ips\n"), CSV.replace("count\n", "count,best_threshold\n")
MAPPING = json.dumps({at: {"tag": name, "category": "General"} for at, name in enumerate(NAMES)})
ANIMETIMM_FILES = {"selected_tags.csv": OWN, "preprocess.json": PAD}
CAMIE, CAMIE_DATA = "camie-tagger-v2.onnx", "camie-tagger-v2-metadata.json"
HALF, PLAIN = ((0.5,) * 3, (0.5,) * 3), (None, None)
# Files, network, planes, logits, order of channels, padding (None: squashed), mean and std in 0..1 (None: as they are).
LAYOUTS: dict[str, tuple[dict[str, str], str, bool, bool, str, Any, tuple[Any, Any]]] = {
    "wd": ({"selected_tags.csv": CSV}, "model.onnx", False, False, "BGR", WHITE, PLAIN),
    "z3d-e621": ({"tags-selected.csv": CSV}, "model.onnx", False, False, "BGR", WHITE, PLAIN),
    "pixai": ({"selected_tags.csv": IPS}, "model.onnx", True, False, "RGB", None, HALF),
    "pixai-v1": ({"selected_tags.csv": STYLES}, "model_fp16.onnx", True, True, "RGB", BLACK, HALF),
    "pixai-v1 by its own list": ({"config.json": SPLIT}, "model.onnx", True, True, "RGB", BLACK, HALF),
    "cl": ({"tag_mapping.json": MAPPING}, "model_optimized.onnx", True, True, "BGR", WHITE, HALF),
    "cl-v2": ({"model_vocabulary.json": vocabulary()}, "model.onnx", True, True, "RGB", None, HALF),
    "camie": ({CAMIE_DATA: metadata()}, CAMIE, True, True, "RGB", (124, 116, 104), (MEAN, STD)),
    "camie-v1": (
        {"metadata.json": metadata()},
        "model_initial.onnx",
        True,
        True,
        "RGB",
        BLACK,
        ((0.0,) * 3, (1.0,) * 3),
    ),
    "animetimm": (ANIMETIMM_FILES, "model.onnx", True, True, "RGB", WHITE, (MEAN, STD)),
}


def expected(colour: Sequence[int], channels: str, mean: Any, std: Any) -> list[float]:
    if mean is None:
        values = [level / 255 for level in colour]
    else:
        values = [(level / 255 - m) / s for level, m, s in zip(colour, mean, std, strict=True)]
    return values[::-1] if channels == "BGR" else values


@pytest.mark.parametrize("family", LAYOUTS)
def test_layout(tmp_path: Path, family: str) -> None:
    pytest.importorskip("onnxruntime")
    files, network, planes, logits, channels, padding, (mean, std) = LAYOUTS[family]
    side = 64
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # Without logits the outputs must be probabilities: pixels are scaled down, and signs are lost with PixAI's.
    scale = 1.0 if logits else 1 / 255 if mean is None else 0.5
    probe(tmp_path / network, side, planes=planes, logits=logits, scale=scale)
    found = find_model(str(tmp_path), revision=None, model_dir=None, offline=True)
    assert found.adapter.name == family.partition(" ")[0]
    ready = Network(found.network, found.adapter, "cpu", len(read_labels(found.labels)))
    # All levels above the middle, so that no value is below 0 where no sigmoid comes behind.
    colour = (250, 190, 140) if family == "pixai" else RED
    picture = save_picture(tmp_path / "wide.png", (128, 64), colour)
    adapter = found.adapter
    preparation = Preparation(
        size=ready.input.size, padding=adapter.padding, geometry=adapter.geometry, channels=adapter.channels
    )
    scores = ready.scores(list(read_picture(picture, [preparation]).pixels))[0]
    wanted = np.asarray(
        [*expected(colour, channels, mean, std), *expected(padding or colour, channels, mean, std)]
    )
    if logits:
        wanted = 1 / (1 + np.exp(-wanted))
    elif mean is not None:
        wanted = wanted * scale
    assert np.allclose(scores, wanted, atol=0.01), (scores, wanted)


def test_thresholds_of_tags_and_categories(tag: Tag, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    names = {"low": (0, 0.30), "high": (0, 0.80), "plain": (0, 0.40), "someone": (4, 0.60)}
    folder = save_model(tmp_path / "model", names, nchw=True, logits=True)
    own = {"low": "0.25", "high": "0.9", "plain": "", "someone": "0.5"}
    rows = [f"{at},{name},{category},1,{own[name]}" for at, (name, (category, _)) in enumerate(names.items())]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count,best_threshold", *rows]))
    (folder / "preprocess.json").write_text(timm({"type": "resize", "size": [448, 448]}))
    picture = save_picture(tmp_path / "a.png")

    def caption(*words: object) -> str:
        result = tag(picture, "--no-txt", "--jsonl", *words, model=folder)
        assert result.code == 0, result.err
        return str(result.records[0]["caption"])

    assert caption() == "plain, low, someone"
    assert caption("--general", 0.5) == "high, someone"
    assert caption("--threshold", 0.2, "--character", "off") == "high, plain, low"


def test_categories_of_e621(tag: Tag, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    names = {"fur": (0, 0.9), "wolf": (5, 0.8), "rem": (4, 0.9), "hi_res": (7, 0.7), "male_(lore)": (8, 0.6)}
    folder = save_model(tmp_path / "model", names)
    (folder / "selected_tags.csv").rename(folder / "tags-selected.csv")
    result = tag(save_picture(tmp_path / "a.png"), "--no-txt", "--jsonl", model=folder)
    (record,) = result.records
    assert record["species"] == {"wolf": 0.8}
    assert record["caption"] == "fur, rem, wolf"
    everything = ("--meta", 0.5, "--lore", 0.5, "--species", "off")
    (record,) = tag(tmp_path / "a.png", "--no-txt", "--jsonl", *everything, model=folder).records
    assert set(record["caption"].split(", ")) == {"fur", "rem", "hi res", "male (lore)"}


@pytest.mark.parametrize("word", ["RedRocket/JTP-3", "jtp-3-hydra"])
def test_hydra_is_refused_by_name(tag: Tag, tmp_path: Path, word: str) -> None:
    result = tag(save_picture(tmp_path / "a.png"), "--offline", model=word)
    assert result.code == 2
    assert "JTP-3 (Hydra) comes as PyTorch weights without an ONNX network" in result.error


def test_files_that_are_no_model(tag: Tag, tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 378536310\n"
    for name, content, words in (
        ("model.onnx", pointer, "a git-lfs pointer, not the network itself; run git lfs pull"),
        ("model.onnx", "<!doctype html><html>", "a web page, not a network"),
        ("selected_tags.csv", pointer, "a git-lfs pointer, not the list itself; run git lfs pull"),
    ):
        folder = save_model(tmp_path / "model", {"one": (0, 0.9)})
        (folder / name).write_text(content)
        result = tag(picture, "--no-txt", model=folder)
        assert result.code == 2
        assert words in result.error


def test_a_newer_opset_is_named_with_the_mend(tag: Tag, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = save_model(tmp_path / "model", {"one": (0, 0.9)})
    for change in ({"ir_version": 99}, {"opset": 99}):
        model = onnx.load(folder / "model.onnx")
        if "opset" in change:
            model.ir_version = 9
            model.opset_import[0].version = change["opset"]
        else:
            model.ir_version = change["ir_version"]
        onnx.save(model, folder / "model.onnx")
        result = tag(save_picture(tmp_path / "a.png"), "--no-txt", model=folder)
        assert result.code == 2
        assert "99, this onnxruntime knows up to" in result.error
        assert "pip install --upgrade onnxruntime" in result.error


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"type": "random_erasing"}], "'random_erasing'"),
        ([{"type": "resize", "size": 480}, {"type": "center_crop", "size": 448}], "480 cut to 448"),
        ([{"type": "resize", "size": [448, 224]}], "no square"),
    ],
)
def test_unknown_preparations_are_refused(tmp_path: Path, steps: list[dict[str, Any]], words: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "selected_tags.csv").write_text("name,category,best_threshold\na,0,0.3\n")
    with pytest.raises(InputError, match=r"preprocess\.json: is needed"):
        find_model(str(tmp_path), revision=None, model_dir=None, offline=True)
    (tmp_path / "preprocess.json").write_text(timm(*steps))
    with pytest.raises(InputError, match=words):
        find_model(str(tmp_path), revision=None, model_dir=None, offline=True)


def test_what_hangs_over_is_cut_off(tmp_path: Path) -> None:
    image = Image.new("RGB", (120, 40), "red")
    image.paste((0, 0, 255), (40, 0, 80, 40))
    image.save(tmp_path / "a.png")
    (pixels,) = read_picture(
        tmp_path / "a.png", [Preparation(size=40, geometry="crop", channels="RGB")]
    ).pixels
    assert (pixels[:, 4:-4] == (0, 0, 255)).all()
