"""What real configurations say of their network is understood; presets, norms and preset files choose their layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.nn.attach import attach  # noqa: E402
from lorapipe_engine.settings import NetworkSettings  # noqa: E402
from lorapipe_engine.train.network.arguments import network_plan, read_network_args  # noqa: E402
from lorapipe_engine.train.network.choice import Choice, choose_layers  # noqa: E402
from lorapipe_engine.train.network.targets import is_large  # noqa: E402

from .test_families import real_family  # noqa: E402

pytestmark = pytest.mark.torch

_FULL = "preset=full rank_dropout=0 module_dropout=0 use_tucker=False"
_LOKR = f"{_FULL} algo=lokr conv_dim=100000 conv_alpha=1"
# Module, dim, alpha, dropout, arguments of configurations that people published.
CONFIGURATIONS: list[tuple[str, int | None, float | None, float, str]] = [
    ("lycoris.kohya", 128, 128, 0, "conv_dim=64 conv_alpha=64 algo=lora"),
    ("lycoris.kohya", 64, 64, 0, f"{_FULL} conv_dim=64 conv_alpha=64 algo=dylora train_norm=True"),
    ("networks.dylora", 32, 16, 0, "unit=4"),
    ("lycoris.kohya", 32, 16, 0, f"{_FULL} conv_dim=8 conv_alpha=4 algo=loha train_norm=False"),
    ("lycoris.kohya", 100000, 1, 0, "preset=attn-mlp algo=lokr factor=6"),
    ("lycoris.kohya", 64, 64, 0, f"{_FULL} conv_dim=64 conv_alpha=64 algo=lokr train_norm=False"),
    ("networks.lora_fa", 16, 8, 0, ""),
    (
        *("lycoris.kohya", 1024, 1024, 0.3),
        "preset=full conv_dim=16 conv_alpha=8 rank_dropout=0.1 module_dropout=0.1 use_tucker=False algo=ia3 "
        "train_norm=False",
    ),
    ("lycoris.kohya", 1024, 1024, 0.3, f"{_FULL} conv_dim=1 conv_alpha=1 algo=ia3 train_norm=False"),
    (
        *("lycoris.kohya", 64, 64, 0),
        f"{_FULL} conv_dim=64 conv_alpha=64 bypass_mode=False dora_wd=False factor=-1 use_cp=False use_scalar=False "
        "decompose_both=False rank_dropout_scale=False algo=lokr train_norm=False",
    ),
    ("lycoris.kohya", 100000, 1, 0, f"{_LOKR} train_norm=True"),
    ("lycoris.kohya", 100000, 1, 0, f"{_LOKR} train_norm=False"),
    ("lycoris.kohya", 16, 8, 0, "preset=attn-mlp algo=lora"),
    ("lycoris.kohya", 32, 32, 0, f"{_FULL} conv_dim=32 conv_alpha=1 algo=loha train_norm=False"),
    ("lycoris.kohya", 16, 8, 0, "conv_dim=8 conv_alpha=4 algo=full"),
    ("lycoris.kohya", None, None, 0, "preset=attn-mlp algo=full train_norm=True"),
    ("networks.oft", 4, 1e-3, 0, ""),
    ("lycoris.kohya", 32, 32, 0, "conv_dim=4 conv_alpha=4 algo=lora dropout=0"),
    (
        *("lycoris.kohya", 64, 64, 0),
        "preset=full conv_dim=64 conv_alpha=64 rank_dropout=0.1 module_dropout=0.1 use_tucker=False algo=lokr",
    ),
    ("lycoris.kohya", 32, 16, 0, f"{_FULL} conv_dim=8 conv_alpha=4 algo=diag-oft train_norm=False"),
    ("networks.loha", 16, 8, 0, ""),
]


def chosen(family: Any, **words: Any) -> Choice:
    settings = NetworkSettings(**{"network_dim": 16, "network_alpha": 8.0, **words})
    args = read_network_args(settings)
    return choose_layers(network_plan(settings, args), args, family, [*family.parts])


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=lambda row: f"{row[0]} {row[4]}"[:60])
def test_real_configurations_make_a_network(row: tuple[str, int | None, float | None, float, str]) -> None:
    module, dim, alpha, dropout, words = row
    family = real_family("sd15")
    choice = chosen(
        family,
        network_module=module,
        network_dim=dim or 64,
        network_alpha=alpha,
        network_dropout=dropout,
        network_args=tuple(words.split()),
    )
    network = attach(family.parts.values(), choice.targets, choice.plan)
    assert len(network.adapters) >= 192
    norms = [name for name, adapter in network.adapters.items() if type(adapter).__name__ == "Norm"]
    wanted = 0 if "train_norm=True" not in words else 64 if "attn-mlp" in words else 108
    assert len(norms) == wanted


def test_unused_dropouts_are_noted() -> None:
    words = ("algo=ia3", "rank_dropout=0.1", "module_dropout=0.1")
    args = read_network_args(
        NetworkSettings(network_module="lycoris.kohya", network_dropout=0.3, network_args=words)
    )
    assert args.unused == ("network_dropout", "rank_dropout")


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        ("algo=ia3 use_cp=1 decompose_both=True rescaled=False", ("use_cp", "decompose_both")),
        ("algo=diag-oft use_tucker=True use_scalar=True factor=-1", ("use_tucker", "use_scalar", "factor")),
        ("algo=loha decompose_both=True constraint=0 dropout=0.1", ("decompose_both", "dropout")),
        ("algo=locon bypass_mode=True full_matrix=False", ("bypass_mode",)),
    ],
)
def test_what_lycoris_takes_and_does_not_use_is_noted(words: str, unused: tuple[str, ...]) -> None:
    args = read_network_args(
        NetworkSettings(network_module="lycoris.kohya", network_args=tuple(words.split()))
    )
    assert args.unused == unused


def test_dropout_of_lycoris_is_that_of_the_inner_values() -> None:
    settings = NetworkSettings(
        network_module="lycoris.kohya", network_dim=8, network_args=("algo=locon", "dropout=0.2")
    )
    args = read_network_args(settings)
    assert (args.unused, network_plan(settings, args).dropouts.element) == ((), 0.2)
    with pytest.raises(ConfigError, match=r"dropout takes a number from 0 to under 1, not '1\.5'"):
        read_network_args(NetworkSettings(network_module="lycoris.kohya", network_args=("dropout=1.5",)))
    with pytest.raises(ConfigError, match="is spelt network_dropout, an option of its own"):
        read_network_args(NetworkSettings(network_args=("dropout=0.2",)))


def test_constrain_of_old_presets_is_the_constraint() -> None:
    words = ("algo=diag-oft", "constrain=0.5")
    args = read_network_args(NetworkSettings(network_module="lycoris.kohya", network_args=words))
    assert args.kind.options["constraint"] == 0.5


def test_conv_dim_0_leaves_large_kernels_as_they_are() -> None:
    """LyCORIS trains them at the rank of linear layers unless the number is given; 0 is a number."""
    kernels = []
    for words in (("algo=locon",), ("algo=locon", "conv_dim=0", "conv_alpha=0")):
        family = real_family("sd15")
        choice = chosen(family, network_module="lycoris.kohya", network_args=words)
        network = attach(family.parts.values(), choice.targets, choice.plan)
        shapes = [adapter.base.weight.shape for adapter in network.adapters.values()]
        kernels.append(sum(len(shape) == 4 and shape[-1] > 1 for shape in shapes))
    assert kernels == [52, 0]


def test_norms_of_sdxl_are_those_of_the_reference() -> None:
    choice = chosen(real_family("sdxl"), network_module="lycoris.kohya", network_args=("train_norm=1",))
    names = [target.name for target in choice.targets if choice.plan.kinds.get(target.name)]
    assert len(names) == len(set(names)) == 255
    assert "lora_unet_input_blocks_1_0_in_layers_0" in names


def test_rank_stabilised_alphas_are_what_readers_divide() -> None:
    words = ("rs_lora=True", "conv_dim=4", "conv_alpha=2")
    choice = chosen(real_family("sd15"), network_args=words)
    assert set(choice.plan.sizes.values()) == {(16, 32.0), (4, 4.0)}


PRESET = """
enable_conv = false
unet_target_module = ["Attention", "ResnetBlock2D"]
unet_target_name = ["conv_in", ".*ff[.]net[.]2"]
text_encoder_target_module = ["CLIPMLP"]
exclude_name = [".*to_v"]
[module_algo_map.Attention]
algo = "lokr"
dim = 8
factor = 4
[name_algo_map.".*attn2.*"]
algo = "loha"
dim = 2
alpha = 1
"""


def test_a_preset_file_chooses_layers_by_class_and_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PRESET)
    family = real_family("sd15")
    words = {"network_module": "lycoris.kohya", "network_args": (f"preset={path}", "train_norm=True")}
    choice = chosen(family, **words)
    network = attach(family.parts.values(), choice.targets, choice.plan)
    found = {
        name: (type(adapter).__name__, adapter.rank, adapter.alpha)
        for name, adapter in network.adapters.items()
    }
    attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    assert found[f"{attention}_attn1_to_q"] == ("Lokr", 8, 8.0)
    assert found[f"{attention}_attn2_to_out_0"] == ("Loha", 2, 1.0)
    assert found[f"{attention}_ff_net_2"] == ("Lora", 16, 8.0)
    assert found[f"{attention}_norm1"] == ("Norm", 0, 0.0)
    assert "lora_unet_down_blocks_0_resnets_0_time_emb_proj" in found
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in found
    missing = (f"{attention}_attn1_to_v", f"{attention}_ff_net_0_proj", "lora_unet_conv_in")
    assert not found.keys() & {*missing, "lora_te_text_model_encoder_layers_0_self_attn_q_proj"}
    assert choice.notes == (f"note: preset: {path}: conv_in fits no layer of this model",) or not choice.notes


def names_of(path: Path, text: str, family: Any) -> tuple[set[str], Choice]:
    """The modules that a preset of this text chooses, with their algorithms and sizes."""
    path.write_text(text)
    choice = chosen(family, network_module="lycoris.kohya", network_args=(f"preset={path}",))
    plan = choice.plan
    found = {
        f"{t.name} {plan.kinds.get(t.name, plan.kind).algorithm} {plan.size_of(t.module, t.name)}"
        for t in choice.targets
    }
    return found, choice


# The modules of the table: classes and names as diffusers has them, and as LDM and SGM do.
_DIFFUSERS = """
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out", "time_embedding[.]linear_.*"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
"""
_SGM = """
unet_target_module = ["SpatialTransformer", "ResBlock", "Downsample", "Upsample"]
unet_target_name = ["input_blocks[.]0[.]0", "out[.]2", "model[.]diffusion_model[.]time_embed[.][02]"]
text_encoder_target_module = ["CLIPSdpaAttention", "CLIPMLP"]
"""
# The same, said by diffusers' names and by SGM's.
ALIKE: dict[str, tuple[str, str]] = {
    "by class": (
        "unet_target_module = ['Attention', 'FeedForward']\n[module_algo_map.Attention]\nalgo = 'loha'\ndim = 2",
        "unet_target_module = ['MemoryEfficientCrossAttention', 'FeedForward']\n[module_algo_map.CrossAttention]\n"
        "algo = 'loha'\ndim = 2",
    ),
    "by name": (
        "unet_target_name = ['down_blocks[.]1[.]', 'up_blocks[.]0[.]', '.*conv_shortcut', '.*resnets[.].[.]conv1']\n"
        "exclude_name = ['.*time_emb_proj']\n[name_algo_map.'mid_block.*']\ndim = 3\n"
        "[name_algo_map.'down_blocks[.]1[.]attentions[.]0']\ndim = 5",
        "unet_target_name = ['input_blocks\\.[456]\\.', '^output_blocks\\.[012]\\.', '.*skip_connection', "
        "'.*in_layers[.]2']\nexclude_name = ['.*emb_layers']\n[name_algo_map.'middle_block.*']\ndim = 3\n"
        "[name_algo_map.'input_blocks[.]4[.]1']\ndim = 5",
    ),
    "as a shell": (
        "use_fnmatch = true\nunet_target_name = ['down_blocks.1.attentions.*', 'conv_out']",
        "use_fnmatch = true\nunet_target_name = ['model.diffusion_model.input_blocks.[45].1.*', 'out.2']",
    ),
}
COUNTS = {"sd15": (282, 72), "sdxl": (792, 264)}


@pytest.mark.parametrize("arch", COUNTS)
def test_preset_files_have_the_modules_of_the_table_by_either_names(arch: str, tmp_path: Path) -> None:
    family = real_family(arch)
    for number, text in enumerate((_DIFFUSERS, _SGM)):
        names, choice = names_of(tmp_path / f"{number}.toml", text, family)
        unet = sum(target.part == "unet" for target in choice.targets)
        assert (unet, len(names) - unet) == COUNTS[arch]
        assert choice.notes == ()


@pytest.mark.parametrize("arch", COUNTS)
@pytest.mark.parametrize("which", ALIKE)
def test_a_preset_in_names_of_sgm_is_the_one_in_names_of_diffusers(
    which: str, arch: str, tmp_path: Path
) -> None:
    family = real_family(arch)
    # An upsampler without attention before it is number 1 in SD 1.x's names, 2 elsewhere: both are in the pattern.
    ours, theirs = (names_of(tmp_path / "a.toml", text, family)[0] for text in ALIKE[which])
    assert ours == theirs
    assert len(ours) > 10


def test_layers_of_openclip_go_by_its_names_too(tmp_path: Path) -> None:
    family = real_family("sdxl")
    text = "text_encoder_target_name = ['conditioner[.]embedders[.]1[.]model[.]transformer[.]resblocks[.]3[.]attn']"
    names, _ = names_of(tmp_path / "a.toml", text, family)
    layer = "lora_te2_text_model_encoder_layers_3_self_attn"
    assert {name.split()[0] for name in names} == {f"{layer}_{side}_proj" for side in ("q", "k", "v", "out")}


def test_a_pattern_of_diffusers_names_is_not_held_against_sgms(tmp_path: Path) -> None:
    """`.*out` fits to_out and conv_out, and not all that lies in output_blocks."""
    names, _ = names_of(tmp_path / "a.toml", "unet_target_name = ['.*out']", real_family("sd15"))
    assert len(names) == 32 + 16 + 1  # to_out, proj_out, conv_out
    assert not any("resnets" in name for name in names)


def test_classes_and_patterns_that_fit_nothing_are_noted_by_name(tmp_path: Path) -> None:
    text = """
unet_target_module = ["SpatialTransformer", "TimestepEmbedSequential", "WanAttentionBlock"]
unet_target_name = ["label_emb[.]0[.]0"]
exclude_name = ["input_blocks[.]99"]
[module_algo_map.SelfAttention]
dim = 4
[name_algo_map."output_blocks[.]77"]
dim = 4
"""
    _, choice = names_of(tmp_path / "a.toml", text, real_family("sdxl"))
    (note,) = choice.notes
    for name in ("TimestepEmbedSequential", "WanAttentionBlock", "label_emb", "blocks[.]99", "SelfAttention"):
        assert name in note
    assert "blocks[.]77" in note
    assert "SpatialTransformer" not in note


def test_patterns_and_classes_that_earlier_ones_hide_are_noted(tmp_path: Path) -> None:
    text = """
unet_target_module = ["Attention"]
[module_algo_map.Attention]
dim = 2
[module_algo_map.Transformer2DModel]
dim = 3
[name_algo_map.".*attn2.*"]
dim = 4
[name_algo_map.".*attn2.to_out.*"]
dim = 5
[name_algo_map.".*attn[12].to_q"]
dim = 6
[name_algo_map."nothing"]
dim = 7
"""
    _, choice = names_of(tmp_path / "a.toml", text, real_family("sd15"))
    unfit, hidden = choice.notes
    assert unfit.endswith("a.toml: nothing fits no layer of this model")
    assert "a.toml: Transformer2DModel, .*attn2.to_out.* does nothing: an earlier pattern or" in hidden


@pytest.mark.parametrize(
    ("words", "kernels", "noted"),
    [
        ({"algorithm": "lokr", "network_args": ("conv_dim=8", "conv_alpha=4")}, 52, False),
        ({"algorithm": "loha", "network_args": ("conv_dim=0",)}, 0, False),
        ({"algorithm": "loha", "network_args": ("conv_dim=8", "preset=attn-mlp")}, 0, True),
        ({"network_module": "lycoris.kohya", "network_args": ("conv_dim=8", "preset=attn-mlp")}, 0, True),
        ({"network_args": ("conv_dim=8",)}, 50, False),
    ],
)
def test_conv_dim_trains_convolutions_or_says_that_it_does_not(
    words: dict[str, Any], kernels: int, noted: bool
) -> None:
    choice = chosen(real_family("sd15"), **words)
    sizes = [
        choice.plan.size_of(target.module, target.name)
        for target in choice.targets
        if is_large(target.module)
    ]
    assert len([size for size in sizes if size is not None]) == kernels
    assert ("conv_dim does nothing: no convolution above 1x1" in "".join(choice.notes)) == noted
    assert ("preset=full has them" in "".join(choice.notes)) == noted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("unet_target_modul = []", "did you mean 'unet_target_module'?"),
        ("unet_target_module = ['Nothing']", "fits a layer of this model: Nothing"),
        ("enable_conv = 1", "enable_conv takes true or false"),
        ("unet_target_name = ['(']", "is no pattern"),
        (
            "unet_target_module = ['Attention']\n[module_algo_map.Attention]\nalgo = 'lohka'",
            "did you mean 'loha'?",
        ),
        (
            "unet_target_module = ['Attention']\n[module_algo_map.Attention]\nfactr = 1\nalgo = 'lokr'",
            "did you mean 'factor'?",
        ),
        (
            "unet_target_module = ['Attention']\n[module_algo_map.Attention]\ndim = 0",
            "dim takes a whole number",
        ),
        ("", "names no class and no layer"),
        ("x =", "not TOML"),
    ],
)
def test_bad_preset_files_are_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        chosen(real_family("sd15"), network_module="lycoris.kohya", network_args=(f"preset={path}",))
    assert told in str(error.value)
