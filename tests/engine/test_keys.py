from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.models import families, keys
from lorapipe_engine.models.bases import demo_base

DATA = Path(__file__).parents[1] / "data" / "keys" / "keymap.json.gz"
GOLDEN = json.loads(gzip.decompress(DATA.read_bytes()))
FAMILY = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
COUNTS = {"sd15": 350, "sd21": 416, "sdxl": 1052}


@pytest.mark.parametrize("model", FAMILY)
def test_names_and_rows_equal_the_reference(model: str) -> None:
    expected = {name: tuple(entry) for name, entry in GOLDEN[model].items()}
    rows: dict[str, int] = {}
    for key, _, stop in expected.values():
        rows[key] = max(rows.get(key, 0), stop)
    found = {}
    for key, count in rows.items():
        for place in keys.locate(key, (count, 8), FAMILY[model]):
            name = keys.lora_name(FAMILY[model], place.part, place.path)
            found[name] = (key, place.start, place.stop)
            answers = keys.lora_names_of(key, (count, 8), FAMILY[model])
            assert answers[name] == place
    assert len(expected) == COUNTS[model]
    assert found == expected


@pytest.mark.parametrize("model", FAMILY)
def test_unet_paths_come_back(model: str) -> None:
    plain = families.get_family(FAMILY[model]).plain_up_blocks
    ldm = {
        key.removeprefix(families.UNET_PREFIX)
        for key, _, _ in GOLDEN[model].values()
        if key.startswith(families.UNET_PREFIX)
    }
    assert len(ldm) > 200
    for key in ldm:
        path = keys.unet_to_diffusers(key)
        assert path is not None
        assert keys.unet_to_ldm(path, plain_up_blocks=plain) == key


@pytest.mark.parametrize("model", FAMILY)
def test_names_of_a_model_are_unique(model: str) -> None:
    owner: dict[str, tuple[str, int]] = {}
    for key, _, stop in GOLDEN[model].values():
        rows = 3 * (stop // 3) if "in_proj" in key else stop
        for name, place in keys.lora_names_of(key, (rows, 8), FAMILY[model]).items():
            assert owner.setdefault(name, (key, place.start))[0] == key


@pytest.mark.parametrize(
    ("ldm", "layers", "path"),
    [
        ("input_blocks.0.0.weight", 2, "conv_in.weight"),
        ("out.2.bias", 2, "conv_out.bias"),
        ("time_embed.2.weight", 2, "time_embedding.linear_2.weight"),
        ("label_emb.0.0.weight", 2, "add_embedding.linear_1.weight"),
        ("input_blocks.1.0.in_layers.0.weight", 2, "down_blocks.0.resnets.0.norm1.weight"),
        ("input_blocks.3.0.emb_layers.1", 1, "down_blocks.1.resnets.0.time_emb_proj"),
        ("input_blocks.2.0.op.weight", 1, "down_blocks.0.downsamplers.0.conv.weight"),
        ("input_blocks.4.0.op.bias", 3, "down_blocks.0.downsamplers.0.conv.bias"),
        ("output_blocks.7.2.conv.weight", 3, "up_blocks.1.upsamplers.0.conv.weight"),
        ("output_blocks.14.1.proj_in", 2, "up_blocks.4.attentions.2.proj_in"),
        ("middle_block.2.out_layers.3", 2, "mid_block.resnets.1.conv2"),
        ("middle_block.1.norm.weight", 2, "mid_block.attentions.0.norm.weight"),
        ("output_blocks.0.0.skip_connection.bias", 2, "up_blocks.0.resnets.0.conv_shortcut.bias"),
        ("input_blocks.4.1", 2, "down_blocks.1.attentions.0"),
    ],
)
def test_unet_paths(ldm: str, layers: int, path: str) -> None:
    assert keys.unet_to_diffusers(ldm, layers) == path
    assert keys.unet_to_ldm(path, layers) == (
        ldm if "upsamplers" not in path else "output_blocks.7.2.conv.weight"
    )


def test_an_upsampler_without_attention_is_number_one() -> None:
    path = keys.unet_to_diffusers("output_blocks.2.1.conv.weight")
    assert path == "up_blocks.0.upsamplers.0.conv.weight"
    assert keys.unet_to_ldm(path, plain_up_blocks={0}) == "output_blocks.2.1.conv.weight"


@pytest.mark.parametrize(
    ("ldm", "levels", "path"),
    [
        ("encoder.conv_in.weight", 4, "encoder.conv_in.weight"),
        ("encoder.norm_out.bias", 4, "encoder.conv_norm_out.bias"),
        ("quant_conv.weight", 4, "quant_conv.weight"),
        ("post_quant_conv.bias", 4, "post_quant_conv.bias"),
        (
            "encoder.down.1.block.0.nin_shortcut.weight",
            4,
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        ),
        ("encoder.down.2.downsample.conv.weight", 4, "encoder.down_blocks.2.downsamplers.0.conv.weight"),
        ("decoder.up.3.block.2.norm1.weight", 4, "decoder.up_blocks.0.resnets.2.norm1.weight"),
        ("decoder.up.1.upsample.conv.bias", 3, "decoder.up_blocks.1.upsamplers.0.conv.bias"),
        ("decoder.up.0.block.0.conv1.bias", 3, "decoder.up_blocks.2.resnets.0.conv1.bias"),
        ("encoder.mid.block_1.conv1.weight", 4, "encoder.mid_block.resnets.0.conv1.weight"),
        ("decoder.mid.block_2.conv2.weight", 4, "decoder.mid_block.resnets.1.conv2.weight"),
        ("decoder.mid.attn_1.norm.weight", 4, "decoder.mid_block.attentions.0.group_norm.weight"),
        ("decoder.mid.attn_1.q.weight", 4, "decoder.mid_block.attentions.0.to_q.weight"),
        ("encoder.mid.attn_1.proj_out.bias", 4, "encoder.mid_block.attentions.0.to_out.0.bias"),
    ],
)
def test_vae_paths(ldm: str, levels: int, path: str) -> None:
    assert keys.vae_to_diffusers(ldm, levels) == path
    assert keys.vae_to_ldm(path, levels) == ldm


def test_older_vae_attention_names() -> None:
    assert (
        keys.vae_to_ldm("encoder.mid_block.attentions.0.proj_attn.weight")
        == "encoder.mid.attn_1.proj_out.weight"
    )


@pytest.mark.parametrize(
    "path",
    ["", "weight", "input_blocks.x.0", "encoder.layers.0.mlp.fc1.weight", "decoder.up.4.block.0.conv1"],
)
def test_other_paths_have_no_name(path: str) -> None:
    assert keys.unet_to_diffusers(path) is None
    assert keys.unet_to_ldm(path) is None
    assert keys.vae_to_diffusers(path) is None
    assert keys.vae_to_ldm(path) is None


def test_old_sd1_files_lack_text_model() -> None:
    old = keys.locate("cond_stage_model.transformer.encoder.layers.3.mlp.fc1.weight", (8, 4), "sd1")
    new = keys.locate(
        "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.weight", (8, 4), "sd1"
    )
    assert old == new == (keys.Place("te1", "text_model.encoder.layers.3.mlp.fc1", "weight", 0, 8),)
    position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert keys.locate(position_ids, (1, 77), "sd1") == ()


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
        ("transformer.resblocks.31.ln_1.weight", "text_model.encoder.layers.31.layer_norm1.weight"),
        ("transformer.resblocks.0.mlp.c_proj.bias", "text_model.encoder.layers.0.mlp.fc2.bias"),
        ("transformer.resblocks.7.attn.out_proj.bias", "text_model.encoder.layers.7.self_attn.out_proj.bias"),
    ],
)
def test_openclip_keys(key: str, tensor: str) -> None:
    for prefix, family, part in (
        ("cond_stage_model.model.", "sd2", "te1"),
        ("conditioner.embedders.1.model.", "sdxl", "te2"),
    ):
        (place,) = keys.locate(prefix + key, (6, 4), family)
        assert (place.part, place.tensor, place.start, place.stop) == (part, tensor, 0, 6)
        assert not place.transposed


def test_openclip_projection_is_transposed_and_the_fused_bias_has_three_parts() -> None:
    names = keys.lora_names_of("conditioner.embedders.1.model.text_projection", (6, 4), "sdxl")
    assert next(iter(names)) == "lora_te2_text_projection"
    assert names["lora_te2_text_projection"] == keys.Place("te2", "text_projection", "weight", 0, 6, True)
    bias = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    places = keys.locate(bias, (12,), "sd2")
    assert [(place.tensor[-11:], place.start, place.stop) for place in places] == [
        ("q_proj.bias", 0, 4),
        ("k_proj.bias", 4, 8),
        ("v_proj.bias", 8, 12),
    ]


def test_every_naming_of_a_layer_is_accepted() -> None:
    key = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
    sdxl, sd1 = (list(keys.lora_names_of(key, (8, 8), family)) for family in ("sdxl", "sd1"))
    ldm, diffusers = "lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in"
    peft = "unet.down_blocks.1.attentions.0.proj_in"
    of_oft = [name.replace("lora_unet", "oft_unet") for name in (ldm, diffusers)]
    assert sdxl == [ldm, diffusers, peft, *of_oft]
    assert sd1 == [diffusers, ldm, peft, *of_oft]
    text = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert list(keys.lora_names_of(text, (8, 8), "sd1")) == [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    ]


@pytest.mark.parametrize(
    "key", ["model_ema.decay", "v_pred", "betas", "model.diffusion_model.double_blocks.0.x"]
)
def test_keys_of_no_layer_have_no_names(key: str) -> None:
    assert dict(keys.lora_names_of(key, (), "sdxl")) == {}


def test_the_vae_has_places_but_no_lora_names() -> None:
    key = "first_stage_model.decoder.up.0.block.0.conv1.weight"
    assert keys.locate(key, (8, 8, 3, 3), "sd1")[0].tensor == "decoder.up_blocks.3.resnets.0.conv1.weight"
    assert not keys.lora_names_of(key, (8, 8, 3, 3), "sd1")
    small = keys.Layout(vae_levels=2)
    assert keys.locate(key, (8,), "sd1", small)[0].path == "decoder.up_blocks.1.resnets.0.conv1"


def test_layout_is_read_from_the_keys() -> None:
    unet = families.UNET_PREFIX
    assert keys.find_layout([]) == keys.Layout(2, 4)
    for nonsense in (0, 1):
        assert keys.find_layout([f"{unet}input_blocks.{nonsense}.0.op.weight"]) == keys.Layout(2, 4)
    assert keys.find_layout([f"{unet}input_blocks.2.0.op.weight", f"{unet}input_blocks.4.0.op.weight"]) == (
        keys.Layout(1, 4)
    )
    one_level = [f"{unet}input_blocks.{number}.0.in_layers.0.weight" for number in (1, 2, 3)]
    vae = ["first_stage_model.encoder.down.2.block.0.conv1.weight"]
    assert keys.find_layout(one_level + vae) == keys.Layout(3, 3)


def test_a_wrong_family_is_named() -> None:
    with pytest.raises(InputError, match="sd9"):
        keys.lora_name("sd9", "unet", "conv_in")


# -------------------------------------------------------------------------------------------- recognising


def _checkpoint(model: str) -> dict[str, tuple[int, ...]]:
    """Names of a whole checkpoint as the golden file has them, with widths unlike the published ones."""
    return {key: (12, 8) for key, _, _ in GOLDEN[model].values()}


def _lora(model: str, keep: str = "") -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_down.weight": (4, 8) for name in GOLDEN[model] if name.startswith(keep)}


@pytest.mark.parametrize("model", FAMILY)
def test_checkpoints_and_loras_are_recognised_whatever_their_width(model: str) -> None:
    family = FAMILY[model]
    assert families.recognise(_checkpoint(model)) == families.Recognised("checkpoint", family)
    assert families.recognise(_lora(model)) == families.Recognised("lora", family)
    assert families.recognise(_lora(model, "lora_te")) == families.Recognised("lora", family)


@pytest.mark.parametrize(("model", "width"), [("sd15", 768), ("sd21", 1024), ("sdxl", 2048)])
@pytest.mark.parametrize("naming", [0, 1, 2])
def test_a_lora_of_the_unet_alone(model: str, width: int, naming: int) -> None:
    if naming == 1 and model != "sdxl":
        naming = 0  # SD 1.x and 2.x in checkpoint names would pass for SDXL
    named = {}
    for key, _, stop in GOLDEN[model].values():
        names = list(keys.lora_names_of(key, (stop, 8), FAMILY[model]))
        if key.startswith(families.UNET_PREFIX):
            shape = (4, width) if "attn2.to_k" in key else (4, 8)
            named[f"{names[naming]}.lora_{'A' if naming == 2 else 'down'}.weight"] = shape
    assert families.recognise(named) == families.Recognised("lora", FAMILY[model])


def test_files_of_one_part() -> None:
    unet = {key: shape for key, shape in _checkpoint("sd15").items() if key.startswith(families.UNET_PREFIX)}
    conv = {key: (8, 8, 1, 1) if key.endswith("proj_in.weight") else shape for key, shape in unet.items()}
    assert families.recognise(conv) == families.Recognised("unet", "sd1")
    assert families.recognise(unet) == families.Recognised("unet", "sd2")
    labels = {**unet, f"{families.UNET_PREFIX}label_emb.0.0.weight": (8, 8)}
    assert families.recognise(labels) == families.Recognised("unet", "sdxl")
    assert families.recognise({"down_blocks.0.attentions.0.proj_in.weight": (8, 8, 1, 1)}).family == "sd1"
    for key in (
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "decoder.up_blocks.0.resnets.0.conv1.bias",
    ):
        assert families.recognise({key: (8,)}) == families.Recognised("vae")
    for key in ("text_model.encoder.layers.0.mlp.fc1.weight", "transformer.resblocks.0.ln_1.bias"):
        assert families.recognise({key: (8,)}) == families.Recognised("text_encoder")


def test_the_refiner_and_strangers() -> None:
    unet = {f"{families.UNET_PREFIX}middle_block.0.in_layers.0.weight": (8,)}
    refiner = {**unet, "conditioner.embedders.0.model.ln_final.weight": (8,)}
    assert families.recognise(refiner) == families.Recognised("refiner")
    flux = {"model.diffusion_model.double_blocks.0.img_mod.lin.weight": (8, 8), "first_stage_model.x": (1,)}
    assert families.recognise(flux) == families.Recognised("unknown")
    assert families.recognise({"emb_params": (4, 768)}) == families.Recognised("unknown")
    assert families.recognise({}) == families.Recognised("unknown")
    flux_lora = {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": (4, 8)}
    assert families.recognise(flux_lora) == families.Recognised("lora", None)


def test_every_tensor_of_a_narrow_checkpoint_has_its_place() -> None:
    """The demo's base: three levels, unusual widths."""
    pytest.importorskip("lorapipe_demo")
    with open_weights(demo_base()) as file:
        shapes = {key: info.shape for key, info in file.tensors.items()}
    layout = keys.find_layout(shapes)
    assert layout == keys.Layout(2, 3)
    assert families.recognise(shapes) == families.Recognised("checkpoint", "sd1")
    places = [place for key, shape in shapes.items() for place in keys.locate(key, shape, "sd1", layout)]
    assert len({(place.part, place.tensor) for place in places}) == len(shapes)
    assert {place.part for place in places} == {"unet", "vae", "te1"}


def test_a_unet_alone_of_published_widths() -> None:
    for width, linear, family in ((768, False, "sd1"), (1024, True, "sd2"), (1024, False, "sd2")):
        root = "model.diffusion_model.input_blocks.1.1."
        shapes = {
            f"{root}proj_in.weight": (320, 320) if linear else (320, 320, 1, 1),
            f"{root}transformer_blocks.0.attn2.to_k.weight": (320, width),
        }
        assert families.recognise(shapes) == families.Recognised("unet", family)
