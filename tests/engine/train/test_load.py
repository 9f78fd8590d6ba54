"""Base models from files and folders: the answers of the modules they came from, or one clear line."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from support.tiny import VOCABULARY, Tiny, build, checkpoint_tensors, save_checkpoint, save_folder  # noqa: E402

FAMILIES = ("sd1", "demo", "sd2", "sdxl")


@pytest.fixture(scope="module")
def models() -> dict[str, Tiny]:
    return {name: build(name) for name in FAMILIES}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def same(base: Any, tiny: Tiny) -> None:
    """The loaded model answers exactly as the modules do."""
    family = open_family(base, max_token_length=75)
    torch.manual_seed(3)
    with torch.inference_mode():
        ids = torch.randint(0, VOCABULARY - 2, (2, 77))
        ids[:, 30] = VOCABULARY - 1
        for loaded, source in zip(base.text_encoders, tiny.text_encoders, strict=True):
            assert type(loaded) is type(source)
            ours, theirs = (encoder(ids, output_hidden_states=True) for encoder in (loaded, source))
            assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))
            assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        pixels = torch.rand(1, 3, 32, 32)
        mean, _ = family.encode_images(pixels)
        assert torch.equal(mean, tiny.vae.encode(pixels).latent_dist.mean)
        assert torch.equal(base.vae.decode(mean).sample, tiny.vae.decode(mean).sample)
        assert base.vae.config.scaling_factor == tiny.vae.config.scaling_factor
        conditioning = family.text.encode(family.text.tokenize(["red cat"]))
        steps = torch.tensor([500])
        geometry = family.plain_geometry(1, 32, 32)
        ours = family.predict(mean, steps, conditioning, geometry)
        added = None
        if geometry is not None:
            added = {"text_embeds": conditioning.pooled, "time_ids": geometry}
        theirs = tiny.unet(mean, steps, conditioning.hidden, added_cond_kwargs=added).sample
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_gives_the_same_answers(
    name: str, suffix: str, models: dict[str, Tiny], tmp_path: Path
) -> None:
    path = save_checkpoint(models[name], tmp_path / f"model{suffix}")
    base = load_base(path)
    assert base.family == models[name].family
    assert base.path == path
    assert base.prediction_type == (None if name == "sd2" else "epsilon")
    assert [t.size for t in base.tokenizers] == [VOCABULARY] * len(base.text_encoders)
    same(base, models[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_diffusers_folder_gives_the_same_answers(
    name: str, models: dict[str, Tiny], tmp_path: Path
) -> None:
    base = load_base(save_folder(models[name], tmp_path / "model"))
    assert base.family == models[name].family
    assert base.hashes is None
    same(base, models[name])


def test_variants_and_shards_of_a_folder(models: dict[str, Tiny], tmp_path: Path) -> None:
    same(load_base(save_folder(models["sd1"], tmp_path / "variant", variant="fp16")), models["sd1"])
    folder = save_folder(models["sdxl"], tmp_path / "shards", shard="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    same(load_base(folder), models["sdxl"])


def test_linear_projection_stays_as_in_the_file(tmp_path: Path) -> None:
    conv, linear = build("sd2", linear=False), build("sd2", linear=True)
    assert (
        load_base(
            save_checkpoint(conv, tmp_path / "a" / "conv.safetensors")
        ).denoiser.config.use_linear_projection
        is False
    )
    same(load_base(save_checkpoint(linear, tmp_path / "b" / "linear.safetensors")), linear)
    base = load_base(save_folder(linear, tmp_path / "folder"))
    assert base.denoiser.config.use_linear_projection is True
    same(base, linear)


def test_old_names_and_leftovers_load(models: dict[str, Tiny], tmp_path: Path) -> None:
    """Files from before 2023 lack ``text_model.``; programs leave projections, losses and schedules in."""
    tensors = {
        name.replace("transformer.text_model.", "transformer."): tensor.clone()
        for name, tensor in checkpoint_tensors(models["sd1"]).items()
    }
    tensors["cond_stage_model.transformer.text_projection.weight"] = torch.ones(64, 64)
    tensors["cond_stage_model.logit_scale"] = torch.ones(1)
    tensors["first_stage_model.loss.logvar"] = torch.ones(1)
    tensors["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(1)
    save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    same(load_base(tmp_path / "model.safetensors"), models["sd1"])


def test_sd2_with_only_the_layers_that_run(tmp_path: Path) -> None:
    """Files converted from diffusers hold 23 layers instead of 24: none of them may go."""
    from lorapipe_engine.train.base.ldm import trim_text

    for layers, left in ((24, 23), (23, 23), (4, 3)):
        parts: Any = {
            "te1": {f"text_model.encoder.layers.{n}.layer_norm1.weight": None for n in range(layers)}
        }
        trim_text(parts, "sd2")
        assert len(parts["te1"]) == left


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_are_converted(dtype: Any, models: dict[str, Tiny], tmp_path: Path) -> None:
    path = save_checkpoint(models["sdxl"], tmp_path / "model.safetensors")
    base = load_base(path, dtype=dtype)
    for module in (base.denoiser, base.vae, *base.text_encoders):
        assert {tensor.dtype for tensor in module.state_dict().values()} == {dtype}
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        assert not any(parameter.requires_grad for parameter in module.parameters())
    weight = base.denoiser.conv_in.weight
    assert torch.equal(weight, models["sdxl"].unet.conv_in.weight.to(dtype))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_types_are_read(stored: Any, models: dict[str, Tiny], tmp_path: Path) -> None:
    path = save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    save_file({name: tensor.to(stored) for name, tensor in load_file(path).items()}, path)
    weight = load_base(path).denoiser.conv_in.weight
    assert torch.equal(weight, models["sd1"].unet.conv_in.weight.to(stored).float())


def test_the_vae_can_be_replaced(models: dict[str, Tiny], tmp_path: Path) -> None:
    other = build("sd1", seed=5).vae
    path = save_checkpoint(models["sdxl"], tmp_path / "model.safetensors")
    renamed = {name: tensor.clone() for name, tensor in checkpoint_tensors(models["sdxl"]).items()}
    states = {
        "diffusers": dict(other.state_dict()),
        "older diffusers": {
            name.replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value")
            .replace("to_out.0", "proj_attn"): tensor
            for name, tensor in other.state_dict().items()
        },
        "bare": {
            name.removeprefix("first_stage_model."): tensor.clone()
            for name, tensor in checkpoint_tensors(
                Tiny("sd1", models["sd1"].unet, other, models["sd1"].text_encoders)
            ).items()
            if name.startswith("first_stage_model.")
        },
    }
    states["prefixed"] = {f"first_stage_model.{name}": tensor for name, tensor in states["bare"].items()}
    states["a checkpoint"] = {**renamed, **states["prefixed"]}
    other.save_pretrained(tmp_path / "vae folder")
    for name, state in states.items():
        save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / f"{name}.safetensors")
    for name in ("vae folder", *(f"{name}.safetensors" for name in states)):
        base = load_base(path, vae=tmp_path / name)
        assert base.vae_path == tmp_path / name
        assert base.vae.config.scaling_factor == 0.13025, "the UNet's scale stays"
        for key, tensor in other.state_dict().items():
            assert torch.equal(base.vae.state_dict()[key], tensor), (name, key)


@pytest.mark.parametrize(
    ("metadata", "extra", "said"),
    [
        ({}, {}, None),
        ({}, {"v_pred": torch.zeros(0)}, "v_prediction"),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, {}, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, {}, "epsilon"),
    ],
)
def test_the_prediction_type_is_taken_from_what_the_file_says(
    metadata: dict[str, str], extra: dict[str, Any], said: str | None, models: dict[str, Tiny], tmp_path: Path
) -> None:
    path = save_checkpoint(models["sd2"], tmp_path / "model.safetensors", metadata, **extra)
    assert load_base(path).prediction_type == said


def test_the_first_sd2_base_is_known_by_its_steps(models: dict[str, Tiny], tmp_path: Path) -> None:
    for steps, said in ((875000, "epsilon"), (140000, None)):
        path = save_checkpoint(models["sd2"], tmp_path / "model.ckpt", steps=steps)
        assert load_base(path).prediction_type == said


def test_a_folder_tells_its_prediction_type(models: dict[str, Tiny], tmp_path: Path) -> None:
    folder = save_folder(models["sd2"], tmp_path / "model")
    assert load_base(folder).prediction_type is None
    (folder / "scheduler").mkdir()
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    base = load_base(folder)
    assert (base.prediction_type, base.zero_terminal_snr) == ("v_prediction", True)


def test_marks_and_metadata_of_a_file(models: dict[str, Tiny], tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    metadata = {"modelspec.encoder_layer": "2", "modelspec.title": "mine"}
    base = load_base(save_checkpoint(models["sdxl"], tmp_path / "model.safetensors", metadata, **marks))
    assert (base.prediction_type, base.zero_terminal_snr, base.encoder_layer) == ("v_prediction", True, 2)
    assert base.metadata["modelspec.title"] == "mine"


def test_hashes_are_those_of_the_file(models: dict[str, Tiny], tmp_path: Path) -> None:
    import hashlib

    path = save_checkpoint(models["sdxl"], tmp_path / "model.safetensors")
    data = path.read_bytes()
    short = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert load_base(path).hashes == (short, hashlib.sha256(data).hexdigest())


def test_a_model_in_the_hub_cache_needs_no_network(models: dict[str, Tiny], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--somebody--tiny"
    save_folder(models["sd1"], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    same(load_base("somebody/tiny"), models["sd1"])
    other = build("sd1", seed=5).vae
    other.save_pretrained(tmp_path / "hub" / "models--somebody--vae" / "snapshots" / "abc")
    shutil.copytree(repository / "refs", tmp_path / "hub" / "models--somebody--vae" / "refs")
    loaded = load_base("somebody/tiny", vae="somebody/vae").vae
    assert torch.equal(loaded.quant_conv.weight, other.quant_conv.weight)
    refused("somebody/vae", "not a diffusers folder")


def test_files_of_the_hub_are_chosen() -> None:
    from lorapipe_engine.train.base.hub import choose_files

    stem = "unet/diffusion_pytorch_model"
    files = [
        *("model_index.json", "unet/config.json", "tokenizer/vocab.json", "README.md", "model.ckpt"),
        *(f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin", f"{stem}.non_ema.safetensors"),
        *("vae/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"),
        *(f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)),
        "text_encoder/model.safetensors.index.json",
    ]
    small = ["model_index.json", "unet/config.json", "tokenizer/vocab.json"]
    rest = ["vae/diffusion_pytorch_model.bin", *files[-3:]]
    assert choose_files(files, half=False) == [*small, f"{stem}.safetensors", *rest]
    assert choose_files(files, half=True) == [*small, f"{stem}.fp16.safetensors", *rest]
    assert choose_files(["model.safetensors"], half=True) == []
    vae = ["README.md", "config.json", "diffusion_pytorch_model.safetensors", "more/model.safetensors"]
    assert choose_files(vae, half=True) == vae[1:3]


def test_loading_says_nothing(models: dict[str, Tiny], tmp_path: Path) -> None:
    """Libraries that diffusers imports talk; none of it reaches the user."""
    path = save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    lines = (
        "import pathlib, sys, torch",
        "from lorapipe_engine.train.families import open_family",
        "from lorapipe_engine.train.base.load import load_base",
        "open_family(load_base(pathlib.Path(sys.argv[1])), dtype=torch.bfloat16)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ------------------------------------------------------------ what does not


def refused(source: Any, *words: str, **settings: Any) -> None:
    """Loading ends in one line with all of the words."""
    with pytest.raises(InputError) as caught:
        load_base(source, **settings)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "none.safetensors", "no such file or folder")
    refused("models/none.safetensors", "no such file or folder")
    refused("nobody/nothing", "nobody/nothing", "not to be had from the hub")
    refused(tmp_path, "not a diffusers folder")


def test_a_lora_is_no_base(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8)}, path)
    refused(path, "a LoRA for Stable Diffusion 1.x, not a base model")


def test_parts_of_models_are_no_base(models: dict[str, Tiny], tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in checkpoint_tensors(models["sd1"]).items()}

    def kept(*prefixes: str) -> Path:
        path = tmp_path / "part.safetensors"
        save_file({name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}, path)
        return path

    save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    refused(kept("first_stage_model."), "a VAE, not a base model", "--vae")
    refused(kept("cond_stage_model."), "a text encoder alone")
    refused(kept("model.diffusion_model."), "a UNet alone")
    refused(kept("model.diffusion_model.", "cond_stage_model."), "no VAE in it", "--vae")
    refused(kept("model.diffusion_model.", "first_stage_model."), "no text encoder")
    loaded = load_base(
        kept("model.diffusion_model.", "cond_stage_model."), vae=tmp_path / "model.safetensors"
    )
    assert torch.equal(loaded.vae.quant_conv.weight, models["sd1"].vae.quant_conv.weight)
    refused(tmp_path / "model.safetensors", "no VAE in this file", vae=kept("cond_stage_model."))


def test_other_models_are_no_base(models: dict[str, Tiny], tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in checkpoint_tensors(models["sdxl"]).items()}
    path = tmp_path / "model.safetensors"
    refiner = {
        name.replace("embedders.1.", "embedders.0."): tensor
        for name, tensor in tensors.items()
        if not name.startswith("conditioner.embedders.0.")
    }
    save_file(refiner, path)
    refused(path, "SDXL refiner")
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(4, 4)}, path)
    refused(path, "nothing that is known here, not a base model of Stable Diffusion")
    tensors = {name: tensor.clone() for name, tensor in checkpoint_tensors(models["sd1"]).items()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(32, 9, 3, 3)
    save_checkpoint(models["sd1"], path)
    save_file(tensors, path)
    refused(path, "inpainting")


def test_v2_insists(models: dict[str, Tiny], tmp_path: Path) -> None:
    refused(save_checkpoint(models["sd1"], tmp_path / "model.safetensors"), "1.x", "--v2", v2=True)
    assert load_base(save_checkpoint(models["sd2"], tmp_path / "model.safetensors"), v2=True).family == "sd2"


def test_missing_spare_and_misshapen_tensors(models: dict[str, Tiny], tmp_path: Path) -> None:
    path = save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    whole = load_file(path)
    block = "model.diffusion_model.input_blocks.1.1."
    save_file({name: tensor for name, tensor in whole.items() if name != f"{block}proj_out.weight"}, path)
    refused(path, "UNet: 1 of", "missing", "proj_out.weight")
    save_file(whole | {f"{block}extra.weight": torch.ones(1)}, path)
    refused(path, "UNet: 1 tensors have no place", "extra.weight")
    save_file(whole | {"model.diffusion_model.strange.weight": torch.ones(1)}, path)
    refused(path, "1 tensors have no place", "model.diffusion_model.strange.weight")
    save_file(whole | {f"{block}proj_out.bias": torch.ones(5)}, path)
    refused(path, "another shape", "proj_out.bias")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
@example(seed=22793)  # a sampler of the first block
def test_a_damaged_checkpoint_loads_or_is_refused_in_one_line(
    seed: int, models: dict[str, Tiny], tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = random.Random(seed)
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    save_checkpoint(models["sd1"], path)
    tensors = load_file(path)
    for name in draw.sample(sorted(tensors), draw.randint(1, 3)):
        tensor = tensors.pop(name)
        match draw.choice(("drop", "grow", "flatten", "rename")):
            case "grow":
                shape = [max(0, size + draw.choice((-1, 0, 1, 8))) for size in tensor.shape]
                tensors[name] = torch.zeros(shape)
            case "flatten":
                tensors[name] = torch.zeros(draw.choice(((), (3,), (2, 2), (0,), (1, 2, 3, 4, 5))))
            case "rename":
                tensors[name.replace(draw.choice("0123"), draw.choice("0123"))] = tensor
    save_file(tensors, path)
    try:
        load_base(path)
    except InputError:
        refused(path, str(path))


def test_a_text_encoder_of_another_width(models: dict[str, Tiny], tmp_path: Path) -> None:
    mixed = Tiny("sd1", models["sd1"].unet, models["sd1"].vae, models["demo"].text_encoders)
    refused(save_checkpoint(mixed, tmp_path / "model.safetensors"), "128 wide", "reads 64")


def test_no_tokenizer(models: dict[str, Tiny], tmp_path: Path) -> None:
    path = save_checkpoint(models["sd1"], tmp_path / "model.safetensors")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    refused(path, "vocab.json and merges.txt", "--tokenizer_dir")


def test_a_file_cut_short(models: dict[str, Tiny], tmp_path: Path) -> None:
    for suffix in (".safetensors", ".ckpt"):
        path = save_checkpoint(models["sd1"], tmp_path / f"model{suffix}")
        path.write_bytes(path.read_bytes()[:-1000])
        refused(path, path.name)
        path.write_bytes(b"")
        refused(path, path.name)


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_does_not(models: dict[str, Tiny], tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    for name, write in (
        ("zip.ckpt", torch.save),
        ("plain.ckpt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        write({"state_dict": Bomb(mark)}, tmp_path / name)
        refused(tmp_path / name, name)
    bomb = {"state_dict": checkpoint_tensors(models["sd1"]), "callbacks": Bomb(mark)}
    torch.save(bomb, save_checkpoint(models["sd1"], tmp_path / "model.ckpt"))
    same(load_base(tmp_path / "model.ckpt"), models["sd1"])
    assert not mark.exists()


def test_broken_folders(models: dict[str, Tiny], tmp_path: Path) -> None:
    folder = save_folder(models["sd1"], tmp_path / "model", shard="200KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listing = json.loads(index.read_text())
    name = next(iter(listing["weight_map"]))
    listing["weight_map"][name] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(listing))
    refused(folder, "is not in its folder")
    index.write_text("{")
    refused(folder, "not JSON")
    index.unlink()
    refused(folder, "no weights in it")
