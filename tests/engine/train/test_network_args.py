"""``network_args``: modules, ranks and rates by block, LoRA+; compared with the reference where there is one."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch import nn  # noqa: E402

from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.nn.attach import Network, Target, attach  # noqa: E402
from lorapipe_engine.nn.flat import FlatGroup, RateGroup  # noqa: E402
from lorapipe_engine.settings import NetworkSettings  # noqa: E402
from lorapipe_engine.train.network.arguments import (  # noqa: E402
    NetworkArgs,
    by_block,
    network_plan,
    read_network_args,
    wants_conv,
)
from lorapipe_engine.train.network.blocks import block_of, block_weights, layout_of  # noqa: E402
from lorapipe_engine.train.network.rate_groups import RateGroups  # noqa: E402
from lorapipe_engine.train.optimizers import Rates, build_optimizer, gradients_of, rates_in_force  # noqa: E402

from .test_families import real_family  # noqa: E402

DATA = Path(__file__).parents[2] / "data" / "train" / "c_groups.json.gz"
GOLDEN: dict[str, Any] = json.loads(gzip.decompress(DATA.read_bytes()))


def network_of(case: dict[str, Any], family: Any) -> tuple[Network, dict[str, float]]:
    """The network for a published architecture, on the meta device, and the rates of its parts."""
    words = tuple(f"{name}={value}" for name, value in case["network_args"].items())
    settings = NetworkSettings(
        network_dim=case["network_dim"], network_alpha=case["network_alpha"], network_args=words
    )
    args = read_network_args(settings)
    plan = network_plan(settings, args)
    rates = {
        part: case["lr_args"]["unet_lr" if part == "unet" else "text_encoder_lr"] for part in family.parts
    }
    targets = [
        Target(part, family.lora_name(part, path), module)
        for part, path, module in family.target_modules(conv=wants_conv(plan, args))
    ]
    plan = by_block(plan, args, targets, family.name)
    groups = RateGroups(args, family.name, rates)
    return attach(family.parts.values(), targets, plan, rate_of=groups), rates


@pytest.mark.parametrize("name", GOLDEN)
def test_modules_and_optimizer_groups_equal_the_reference(name: str) -> None:
    case = GOLDEN[name]
    family = real_family(case["arch"].partition("_")[0], linear="linear" in name)
    network, rates = network_of(case, family)
    found: dict[str, tuple[float, int]] = {}
    for part, group in network.groups.items():
        for run in group.ranges:
            _, count = found.get(run.group.name, (0.0, 0))
            found[run.group.name] = (rates[part] * run.group.factor, count + len(run.parameters))
    want = {
        row["name"]: (pytest.approx(row["lr"], rel=1e-6), row["tensors"]) for row in case["optimizer_groups"]
    }
    assert list(found) == list(want)
    assert found == want
    scales = Counter(str(round(a.alpha / a.rank, 6)) for a in network.adapters.values())  # type: ignore[attr-defined]
    assert scales == case["scale_histogram"]
    if "keys" in case:
        shapes = {
            f"{name}.{role}": list(tensor.shape)
            for name, adapter in network.adapters.items()
            for role, tensor in adapter.file_tensors().items()
        }
        assert shapes == case["keys"]


def test_groups_of_an_optimizer_are_runs_of_one_buffer() -> None:
    rows = [nn.Parameter(torch.randn(3, 5)) for _ in range(6)]
    before = [row.detach().clone() for row in rows]
    low, high, still = RateGroup("unet"), RateGroup("unet plus", 4.0), RateGroup("unet_block3", 0.0)
    group = FlatGroup("unet", rows, [low, high, low, high, still, low])
    assert [run.group.name for run in group.ranges] == ["unet", "unet plus", "unet_block3"]
    assert [run.stop - run.start for run in group.ranges] == [192, 128, 64]
    for run in group.ranges:
        assert run.parameter.data_ptr() == group.parameter.data_ptr() + 4 * run.start
    assert all(torch.equal(row, old) for row, old in zip(rows, before, strict=True))
    optimizer = build_optimizer("AdamW", {"weight_decay": 0.0}, {"unet": group}, Rates({"unet": 1e-2}))
    assert {key: round(value, 6) for key, value in rates_in_force(optimizer).items()} == {
        "lr/unet": 0.01,
        "lr/unet plus": 0.04,
    }
    for row in rows:
        assert row.grad is not None
        row.grad.fill_(2.0)
    assert sum(g.numel() for g in gradients_of(optimizer, {"unet": group})) == 320
    optimizer.step()
    moved = [float((row - old).abs().max()) for row, old in zip(rows, before, strict=True)]
    assert moved == pytest.approx([0.01, 0.04, 0.01, 0.04, 0.0, 0.01], rel=1e-4)


def test_curves_of_block_weights() -> None:
    found = block_weights("sine", None, "reverse_linear+.5", "sdxl", 0.0)
    assert len(found) == layout_of("sdxl").count == 23
    assert found[1:10] == pytest.approx([math.sin(math.pi * i / 16) for i in range(9)])
    assert found[10:13] == [1.0] * 3
    assert found[13:22] == pytest.approx([1.5 - i / 8 for i in range(9)])
    assert (found[0], found[22]) == (1.0, 1.0)


def test_short_lists_empty_places_and_the_threshold() -> None:
    found = block_weights("0.5,,0.05", "0.7", None, "sd1", 0.1)
    assert found[:4] == [0.5, 0.0, 0.0, 1.0]
    assert found[12] == 0.7
    assert found[13:] == [1.0] * 12


@pytest.mark.parametrize(
    ("family", "name", "block"),
    [
        ("sd1", "lora_unet_down_blocks_0_attentions_1_proj_in", 2),
        ("sd1", "lora_unet_down_blocks_2_downsamplers_0_conv", 9),
        ("sd2", "lora_unet_mid_block_resnets_0_conv1", 12),
        ("sd1", "lora_unet_up_blocks_3_attentions_2_proj_out", 24),
        ("sd1", "lora_unet_up_blocks_0_upsamplers_0_conv", 15),
        ("sd1", "lora_te_text_model_encoder_layers_0_mlp_fc1", None),
        ("sdxl", "lora_unet_input_blocks_4_1_proj_in", 5),
        ("sdxl", "lora_unet_middle_block_1_proj_in", 11),
        ("sdxl", "lora_unet_output_blocks_8_0_in_layers_2", 21),
        ("sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1", None),
    ],
)
def test_blocks_of_modules(family: str, name: str, block: int | None) -> None:
    assert block_of(family, name) == block


def test_ranks_by_block() -> None:
    dims = [0] * 25
    dims[5], dims[12], dims[17] = 8, 2, 4
    conv = [0] * 25
    conv[12] = 3
    case = {
        "network_dim": 6,
        "network_alpha": 6.0,
        "network_args": {
            "block_dims": ",".join(map(str, dims)),
            "block_alphas": ",".join(["1"] * 25),
            "conv_block_dims": ",".join(map(str, conv)),
        },
        "lr_args": {"unet_lr": 1e-4, "text_encoder_lr": 5e-5},
    }
    network, _ = network_of(case, real_family("sd15"))
    text = [a for n, a in network.adapters.items() if n.startswith("lora_te")]
    assert len(text) == 72
    assert {(a.rank, a.alpha) for a in text} == {(6, 6.0)}  # type: ignore[attr-defined]
    seen: dict[int, set[tuple[int, float]]] = {}
    for name, adapter in network.adapters.items():
        block = block_of("sd1", name)
        if block is not None:
            seen.setdefault(block, set()).add((adapter.rank, adapter.alpha))  # type: ignore[attr-defined]
    assert seen == {5: {(8, 1.0)}, 12: {(2, 1.0), (3, 1.0)}, 17: {(4, 1.0)}}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("conv_dims=4",), "did you mean 'conv_dim'?"),
        (("loraplus_ratio=4",), "did you mean 'loraplus_lr_ratio'?"),
        (("conv_dim",), "not of the form name=value"),
        (("conv_dim=4", "conv_dim=8"), "given twice"),
        (("conv_dim=1.5",), "whole number"),
        (("rank_dropout=1",), "from 0 to under 1"),
        (("rank_dropout=0.1", "rank_dropout_scale=2"), "rank_dropout_scale takes True or False"),
        (("algo=loha",), "lycoris.kohya"),
        (("down_lr_weight=cosin",), "one of sine, cosine"),
        (("down_lr_weight=1,2,x",), "'x'"),
        (("up_lr_weight=" + ",".join(["1"] * 13),), "13 numbers"),
        (("block_dims=4,4",), "2 numbers"),
        (("block_alphas=" + ",".join(["1"] * 25),), "needs block_dims"),
        (("block_lr_zero_threshold=0.1",), "needs down_lr_weight"),
    ],
)
def test_odd_words_are_told(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_network_args(NetworkSettings(network_args=words))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_network_module_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"network_module: 'networks.lore' is not trained here.*networks\.lora"
    ):
        read_network_args(NetworkSettings(network_module="networks.lore", network_dim=4))


def test_lists_are_checked_for_the_family() -> None:
    args = read_network_args(NetworkSettings(network_args=("block_dims=" + ",".join(["4"] * 23),)))
    plan = network_plan(NetworkSettings(network_dim=4), NetworkArgs())
    with pytest.raises(ConfigError, match="23 numbers, but this model has 25 blocks"):
        by_block(plan, args, [], "sd1")


@pytest.mark.parametrize(
    ("module", "words", "wanted"),
    [
        ("networks.lora", "rank_dropout=0.1", None),
        ("networks.lora", "rank_dropout=0.1 rank_dropout_scale=True", True),
        ("lycoris.kohya", "algo=loha rank_dropout=0.1 rank_dropout_scale=True", True),
        ("lycoris.kohya", "algo=lokr rank_dropout=0.1 rank_dropout_scale=False", False),
        ("lycoris.kohya", "algo=full rank_dropout=0.1 rank_dropout_scale=1", True),
    ],
)
def test_scaled_dropout_of_ranks_is_read(module: str, words: str, wanted: bool | None) -> None:
    settings = NetworkSettings(network_module=module, network_dim=4, network_args=tuple(words.split()))
    args = read_network_args(settings)
    dropouts = network_plan(settings, args).dropouts
    assert (dropouts.rank, dropouts.rank_scale, args.unused) == (0.1, wanted, ())


def test_scaled_dropout_of_ranks_without_one_is_told() -> None:
    def plan(module: str, *words: str) -> tuple[str, ...]:
        settings = NetworkSettings(network_module=module, network_dim=4, network_args=words)
        args = read_network_args(settings)
        network_plan(settings, args)
        return args.unused

    with pytest.raises(ConfigError, match="rank_dropout_scale needs rank_dropout"):
        plan("networks.lora", "rank_dropout_scale=True")
    assert plan("lycoris.kohya", "algo=loha", "rank_dropout_scale=True") == ("rank_dropout_scale",)
    assert plan("lycoris.kohya", "algo=ia3", "rank_dropout=0.1", "rank_dropout_scale=True") == (
        "rank_dropout",
        "rank_dropout_scale",
    )
    assert plan("lycoris.kohya", "algo=ia3", "rank_dropout_scale=False") == ()
    with pytest.raises(ConfigError, match="rank_dropout_scale: means nothing for oft networks"):
        plan("networks.oft", "rank_dropout_scale=True")
