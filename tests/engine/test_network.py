from __future__ import annotations

import importlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import find_rule, rules
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import TensorFile, open_tensors, write_tensors
from lorapipe_engine.models import keys
from lorapipe_engine.networks.algorithms import ALGORITHMS, find_algorithm, known_suffixes
from lorapipe_engine.networks.describe import Network, describe_network, find_modules, part_of
from lorapipe_engine.networks.names import read_name

DATA = Path(__file__).parents[1] / "data" / "networks"
# By name of the file: algorithm, variants, ranks of the three layers.
EXPECTED: dict[str, tuple[str, tuple[str, ...], set[int]]] = {
    "lora": ("locon", (), {4}),  # with a 3x3 layer
    "locon": ("locon", (), {4}),
    "locon_rslora": ("locon", (), {4}),
    "locon_scalar": ("locon", (), {4}),
    "locon_tucker": ("locon", ("tucker",), {4}),
    "dylora": ("locon", (), {4}),  # the same tensors; see below
    "dora_in": ("locon", ("dora",), {4}),
    "dora_out": ("locon", ("dora",), {4}),
    "dora_out_tucker": ("locon", ("dora", "tucker"), {4}),
    "loha": ("loha", (), {4}),
    "loha_tucker": ("loha", ("tucker",), {4}),
    "loha_dora_out": ("loha", ("dora",), {4}),
    "lokr_auto": ("lokr", (), {2}),
    "lokr_decompose_both": ("lokr", (), {1}),
    "lokr_factor": ("lokr", (), {4}),
    "lokr_factor_tucker": ("lokr", ("tucker",), {4}),
    "lokr_full_matrix": ("lokr", (), set()),
    "lokr_unbalanced": ("lokr", (), {4}),
    "lokr_dora_out": ("lokr", ("dora",), {4}),
    "ia3_in": ("ia3", (), set()),
    "ia3_out": ("ia3", (), set()),
    "full": ("full", (), set()),
    "norm": ("norm", (), set()),
    "glora": ("glora", (), {4}),
    "kohya_oft": ("oft", (), set()),
    "diag_oft": ("oft", (), set()),
    "diag_oft_constraint": ("oft", (), set()),
    "diag_oft_rescaled": ("oft", (), set()),
    "boft": ("boft", (), set()),
    "boft_rescaled": ("boft", (), set()),
}


def file_of(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> TensorFile:
    stream = io.BytesIO()
    write_tensors(stream, {name: np.asarray(array, np.float32) for name, array in tensors.items()}, metadata)
    return open_tensors(io.BytesIO(stream.getvalue()))


def describe(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Network:
    with file_of(tensors, metadata) as file:
        return describe_network(file)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_algorithm_is_recognised_by_its_tensors(name: str) -> None:
    with open_tensors(DATA / f"{name}.safetensors") as file:
        network = describe_network(file)
        own = {key for key in file.tensors if key.startswith(("lora_unet", "oft_unet"))}
    assert (network.algorithm, network.variants, set(network.ranks)) == EXPECTED[name]
    layers = ["layernorm", "groupnorm"] if name == "norm" else ["linear", "conv1x1", "conv3x3"]
    prefix = "oft_unet" if name == "kohya_oft" else "lora_unet"
    assert set(network.modules) == {f"{prefix}_{layer}" for layer in layers}
    assert network.parts == Counter(unet=len(layers))
    # The base weights and deltas beside the network are no part of it, and nothing is lost.
    assert {key for module in network.modules.values() for key in module.keys.values()} == own
    assert own.isdisjoint(network.others)
    for module in network.modules.values():
        assert find_rule(module.name, module.keys).name == ("oft" if "oft" in name else module.algorithm)


def test_no_file_of_the_golden_set_is_left_out() -> None:
    assert {path.stem for path in DATA.glob("*.safetensors")} == set(EXPECTED)


def test_alpha_kernel_and_names() -> None:
    with open_tensors(DATA / "locon.safetensors") as file:
        network = describe_network(file)
    conv, linear = network.modules["lora_unet_conv3x3"], network.modules["lora_unet_linear"]
    assert (conv.kernel, linear.kernel, network.modules["lora_unet_conv1x1"].kernel) == ((3, 3), (), ())
    assert conv.alpha == conv.effective_alpha == 2.5
    assert (
        conv.keys["lora_mid.weight" if conv.tucker else "lora_up.weight"]
        == "lora_unet_conv3x3.lora_up.weight"
    )


def test_a_missing_alpha_is_the_rank() -> None:
    network = describe(
        {"lora_te_x.lora_down.weight": np.ones((3, 5)), "lora_te_x.lora_up.weight": np.ones((4, 3))}
    )
    (module,) = network.modules.values()
    assert (module.alpha, module.effective_alpha, module.rank, module.part) == (None, 3, 3, "te1")
    assert network.algorithm == "lora"


@pytest.mark.parametrize(
    ("metadata", "algorithm"),
    [
        ({"ss_network_module": "networks.dylora"}, "dylora"),
        ({"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "dylora"}'}, "dylora"),
        ({"ss_network_module": "lycoris.kohya", "ss_network_args": "{broken"}, "lora"),
        ({"ss_network_args": "[1]"}, "lora"),
    ],
)
def test_dylora_is_known_by_the_metadata_alone(metadata: dict[str, str], algorithm: str) -> None:
    assert describe({"lora_unet_x.lora_down.weight": np.ones((3, 5))}, metadata).algorithm == algorithm


def test_norms_beside_layers_and_several_algorithms() -> None:
    lora = {"lora_unet_a.lora_down.weight": np.ones((2, 3)), "lora_unet_a.lora_up.weight": np.ones((3, 2))}
    assert describe({**lora, "lora_unet_b.w_norm": np.ones(3)}).algorithm == "lora"
    assert describe({**lora, "lora_unet_b.diff": np.ones((3, 3))}).algorithm == "mixed"
    network = describe(
        {**lora, "lora_unet_b.diff_b": np.ones(3), "lora_unet_c.alpha": 1.0, "lora_unet_d.new": 1.0}
    )
    assert [module.algorithm for module in network.modules.values()] == ["lora", "full", "unknown"]
    assert network.others == ("lora_unet_d.new",)


@pytest.mark.parametrize(
    ("name", "module", "suffix"),
    [
        ("lora_unet_x.lora_down.weight", "lora_unet_x", "lora_down.weight"),
        ("oft_unet_x.oft_blocks", "oft_unet_x", "oft_blocks"),
        ("lycoris_unet_x.weight", "lycoris_unet_x", "weight"),
        ("unet.mid_block.x.to_q.lora_A.weight", "unet.mid_block.x.to_q", "lora_down.weight"),
        ("unet.x.to_q.lora_B.default.weight", "unet.x.to_q", "lora_up.weight"),
        ("base_model.model.down_blocks.0.x.lora_A.weight", "unet.down_blocks.0.x", "lora_down.weight"),
        ("text_model.encoder.x.lora_A.weight", "text_encoder.text_model.encoder.x", "lora_down.weight"),
        ("text_encoder_2.encoder.x.lora_B.weight", "text_encoder_2.text_model.encoder.x", "lora_up.weight"),
        (
            "text_encoder.text_model.x.lora_linear_layer.up.weight",
            "text_encoder.text_model.x",
            "lora_up.weight",
        ),
        (
            "unet.up_blocks.1.attn1.processor.to_out_lora.down.weight",
            "unet.up_blocks.1.attn1.to_out.0",
            "lora_down.weight",
        ),
        ("unet.x.lora_magnitude_vector", "unet.x", "dora_scale"),
        ("unet.x.lokr_w1", "unet.x", "lokr_w1"),
    ],
)
def test_names_of_tensors(name: str, module: str, suffix: str) -> None:
    known = read_name(name)
    assert known is not None
    assert (known.module, known.suffix) == (module, suffix)


@pytest.mark.parametrize(
    "name", ["", "alpha", "a.weight", "base.linear.weight", "locon.linear.delta", "lora_unet_x.y"]
)
def test_other_names(name: str) -> None:
    assert read_name(name) is None
    assert find_modules([name]) == ([], [name])


def test_modules_have_the_names_that_the_key_table_answers() -> None:
    path, text = (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_model.encoder.layers.0.mlp.fc1",
    )
    for family in ("sd1", "sd2", "sdxl"):
        for part, layer in (("unet", path), ("te1", text)) + ((("te2", text),) if family == "sdxl" else ()):
            for name in keys.lora_names(family, part, layer):
                suffix = "lora_A.weight" if "." in name else "lora_down.weight"
                known = read_name(f"{name}.{suffix}")
                assert known is not None
                assert (known.module, known.suffix) == (name, "lora_down.weight")
                assert part_of(name) == part


def test_one_tensor_in_two_spellings_is_not_lost() -> None:
    modules, others = find_modules(["unet.x.lora_A.weight", "unet.x.lora.down.weight"])
    assert modules[0].keys == {"lora_down.weight": "unet.x.lora_A.weight"}
    assert others == ["unet.x.lora.down.weight"]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": np.ones(1),
                "cond_stage_model.transformer.x": np.ones(1),
            },
            "1.x",
        ),
        ({"encoder.down.0.block.0.conv1.weight": np.ones(1), "x.alpha": 1.0}, "a VAE"),
        ({"anything": np.ones(1)}, "nothing that is known"),
        ({}, "nothing that is known"),
    ],
)
def test_files_of_other_kinds_are_named(tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        describe(tensors)


def test_an_alpha_of_many_numbers() -> None:
    with pytest.raises(InputError, match="not one number"):
        describe({"lora_unet_x.lora_down.weight": np.ones((2, 2)), "lora_unet_x.alpha": np.ones(3)})


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_agrees_with_the_rules_of_the_changes() -> None:
    assert [row.name for row in ALGORITHMS] == list(rules())
    assert all(find_rule("x", {mark, "alpha"}).name == row.name for row in ALGORITHMS for mark in row.marks)
    assert all(set(row.ranks) <= row.marks for row in ALGORITHMS)
    assert find_algorithm({"lora_up.weight", "diff"}) is None
    assert find_algorithm(set()) is None
    assert len(known_suffixes()) == sum(len(row.marks | row.others) for row in ALGORITHMS) + 3


@pytest.mark.torch
@pytest.mark.parametrize("row", [row for row in ALGORITHMS if row.adapter], ids=lambda row: row.name)
def test_adapters_are_where_the_table_says(row: Any) -> None:
    pytest.importorskip("torch")
    module, _, name = row.adapter.partition(":")
    assert isinstance(getattr(importlib.import_module(module), name), type)
