"""One checkpoint: cast, pruned, repaired, and turned from a single file into a folder and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from support import tiny  # noqa: E402
from support.commands import run  # noqa: E402

PEOPLE = Path(__file__).parents[1] / "data" / "people"
PARTS = (
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
    "text_encoder_2/model",
)
Tensors = dict[str, torch.Tensor]


def turn(*words: object, code: int = 0, cwd: Path | None = None) -> str:
    done = run("lora-merge", "--models", *words, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stderr


def same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert torch.equal(found[key], value), key


def parts(folder: Path) -> dict[str, Tensors]:
    return {name: load_file(path) for name in PARTS if (path := folder / f"{name}.safetensors").is_file()}


def text_names(table: Tensors) -> Tensors:
    """Names as of transformers up to 4: from version 5 on its first encoder saves without a level."""
    return {
        key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}": value
        for key, value in table.items()
        if not key.endswith("position_ids")
    }


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_file_becomes_a_folder_and_a_file_again(family: str, tmp_path: Path) -> None:
    made = tiny.build(family, linear=family != "sd1")
    single = tiny.save_checkpoint(made, tmp_path / "single.safetensors")
    folder = tiny.save_folder(made, tmp_path / "theirs")
    told = turn(single, "-o", tmp_path / "ours")
    assert "no place in a folder and are left out: " in told
    assert "no tokenizer" in told
    found, wanted = parts(tmp_path / "ours"), parts(folder)
    assert found.keys() == wanted.keys()
    for name, table in wanted.items():
        same(found[name], text_names(table) if name.startswith("text") else table)
    turn(tmp_path / "ours", "-o", tmp_path / "again.safetensors")
    before, after = load_file(single), load_file(tmp_path / "again.safetensors")
    gone = {"model_ema.decay", "alphas_cumprod", *(key for key in before if key.endswith("logit_scale"))}
    if family == "sd2":  # the last layer is a copy of the one before, for no program runs it
        gone.add("cond_stage_model.model.text_projection")
        spare = "cond_stage_model.model.transformer.resblocks.3."
        for key in [key for key in before if key.startswith(spare)]:
            assert torch.equal(after[key], before[key.replace("blocks.3.", "blocks.2.")])
            before[key] = after[key]
    same(after, {key: value for key, value in before.items() if key not in gone})


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_programs_load_the_folder(family: str, tmp_path: Path) -> None:
    """The written configurations build the same modules, and all tensors find their place."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    made = tiny.build(family, linear=family != "sd1")
    turn(tiny.save_checkpoint(made, tmp_path / "single.safetensors"), "-o", tmp_path / "ours")
    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }
    if family == "sdxl":
        classes["text_encoder_2"] = CLIPTextModelWithProjection
    wanted = {"unet": made.unet, "vae": made.vae}
    wanted |= dict(zip(("text_encoder", "text_encoder_2"), made.text_encoders, strict=False))
    for name, cls in classes.items():
        loaded, info = cls.from_pretrained(tmp_path / "ours" / name, output_loading_info=True)
        assert not info["missing_keys"], name
        assert not info["unexpected_keys"], name
        same(loaded.state_dict(), wanted[name].state_dict())
    assert classes["unet"].from_pretrained(tmp_path / "ours/unet").config.attention_head_dim == list(
        made.unet.config.attention_head_dim
        if isinstance(made.unet.config.attention_head_dim, tuple | list)
        else [made.unet.config.attention_head_dim] * len(made.unet.config.block_out_channels)
    )
    assert DDIMScheduler.from_pretrained(tmp_path / "ours/scheduler").config.prediction_type == "epsilon"
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert index["_class_name"] == (
        "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    )


def test_a_folder_of_a_flow_model_says_so(tmp_path: Path) -> None:
    from lorapipe_engine.train.base.load import load_base

    said = {"modelspec.prediction_type": "flow"}
    single = tiny.save_checkpoint(tiny.build("sd1"), tmp_path / "single.safetensors", said)
    assert "predicts flow" in turn(single, "-o", tmp_path / "ours")
    tiny.write_tokenizer(tmp_path / "ours/tokenizer")
    assert load_base(tmp_path / "ours").prediction_type == "flow_prediction"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_folder_whose_scheduler_says_v(family: str, tmp_path: Path) -> None:
    """The file that is made of it says so too, by mark or kind, and so does a folder that is made of that."""
    from lorapipe_engine.train.base.load import load_base

    made = tiny.build(family, linear=family != "sd1")
    folder = tiny.save_folder(made, tmp_path / "theirs")
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    turn(folder, "-o", tmp_path / "single.safetensors")
    tiny.write_tokenizer(tmp_path / "tokenizer")
    base = load_base(tmp_path / "single.safetensors")
    assert (base.prediction_type, base.zero_terminal_snr) == ("v_prediction", True)
    assert ("v_pred" in load_file(tmp_path / "single.safetensors")) is (family != "sd2")
    assert "no place in a folder" not in turn(tmp_path / "single.safetensors", "-o", tmp_path / "ours")
    # A folder to copy from says epsilon: the model knows better.
    plain = tiny.save_folder(made, tmp_path / "plain")
    (plain / "scheduler").mkdir()
    (plain / "scheduler/scheduler_config.json").write_text('{"prediction_type": "epsilon", "beta_end": 0.5}')
    told = turn(tmp_path / "single.safetensors", "--configs", plain, "-o", tmp_path / "copied")
    assert "the model predicts v_prediction" in told
    for name in ("ours", "copied"):
        said = json.loads((tmp_path / name / "scheduler/scheduler_config.json").read_text())
        assert said["prediction_type"] == "v_prediction"
        assert said["rescale_betas_zero_snr"]
    assert said["beta_end"] == 0.5


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    words = (PEOPLE / "sd1_base.safetensors", "--ema", "use", "-o", tmp_path / "o.safetensors")
    assert "there are no averages" in turn(*words, code=2)
    assert not (tmp_path / "o.safetensors").exists()


def test_configurations_of_another_folder(tmp_path: Path) -> None:
    made = tiny.build("sd1")
    single = tiny.save_checkpoint(made, tmp_path / "single.safetensors")
    folder = tiny.save_folder(made, tmp_path / "theirs")
    turn(single, "--configs", folder, "-o", tmp_path / "ours")
    for name in ("unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "model_index.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    other = tiny.save_folder(tiny.build("sd2", linear=True), tmp_path / "other")
    assert "is of another model" in turn(single, "--configs", other, "-o", tmp_path / "two", code=2)
    assert not (tmp_path / "two").exists()


def test_repairs(tmp_path: Path) -> None:
    """Averages, a trainer's states, damaged places of tokens, and the names of an old text encoder."""
    tensors = load_file(PEOPLE / "sd1_base.safetensors")
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    key = "model.diffusion_model.time_embed.0.weight"
    wanted = {**tensors, ids: torch.arange(77)[None]}
    damaged = {
        name.replace("transformer.text_model.", "transformer."): value for name, value in tensors.items()
    }
    damaged[ids.replace("text_model.", "")] = (torch.arange(77)[None] * 0.998).half()
    average = tensors[key] * 2
    extra = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): average,
        "optimizer_states.0": torch.ones(3),
        "betas": torch.ones(10),
        "lora_te_text_model_encoder": torch.ones(2),
        "control_model.x": torch.ones(2),
    }
    save_file(damaged | extra, tmp_path / "old.safetensors")
    told = turn("old.safetensors", "--prune", "-o", "new.safetensors", cwd=tmp_path)
    assert "5 tensors are left out: " in told
    assert "position_ids were damaged" in told
    same(load_file(tmp_path / "new.safetensors"), wanted)
    told = turn("old.safetensors", "--prune", "--ema", "use", "-o", "ema.safetensors", cwd=tmp_path)
    assert "weights of the UNet have an average, which is used; the others stay" in told
    same(load_file(tmp_path / "ema.safetensors"), {**wanted, key: average})
    turn("old.safetensors", "-o", "all.safetensors", cwd=tmp_path)
    same(load_file(tmp_path / "all.safetensors"), wanted | extra)


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", ["one", "rows", "blocks"])
def test_scaled_numbers(suffix: str, kind: str, tmp_path: Path) -> None:
    """W = stored x scale, marks left out; a merge into stored numbers is refused with the mend."""
    tensors = load_file(PEOPLE / "sd1_base.safetensors")
    layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    weight = tensors[f"{layer}.weight"].float()
    rows, columns = weight.shape
    scale = {
        "one": torch.tensor(0.02),
        "rows": torch.linspace(0.01, 0.03, rows)[:, None],
        "blocks": torch.tensor([[0.01, 0.02], [0.03, 0.04]]),
    }[kind]
    spread = (
        scale.repeat_interleave(rows // 2, 0).repeat_interleave(columns // 2, 1)
        if kind == "blocks"
        else scale
    )
    stored = (weight / spread).to(torch.float8_e4m3fn)
    marks = {f"{layer}.{suffix}": scale, "scaled_fp8": torch.zeros(2), f"{layer}.input_scale": torch.ones(1)}
    save_file(tensors | {f"{layer}.weight": stored} | marks, tmp_path / "fp8.safetensors")
    told = turn("fp8.safetensors", "--save-precision", "fp32", "-o", "plain.safetensors", cwd=tmp_path)
    assert "1 weight was stored divided by a scale" in told
    found = load_file(tmp_path / "plain.safetensors")
    assert found.keys() == tensors.keys()
    assert np.allclose(found[f"{layer}.weight"].numpy(), (stored.float() * spread).numpy(), rtol=1e-6)
    done = run(
        "lora-merge", "fp8.safetensors", PEOPLE / "r4.safetensors", "-o", "m.safetensors", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "lora-merge --models fp8.safetensors --save-precision fp16 -o plain.safetensors" in done.stderr
    assert "first: lora-merge --models" in turn(
        "fp8.safetensors", "fp8.safetensors", "-o", "m.safetensors", code=2, cwd=tmp_path
    )
    assert not (tmp_path / "m.safetensors").exists()


def test_types(tmp_path: Path) -> None:
    """Layers are cast; marks and schedules stay; too large numbers are refused."""
    tensors = load_file(PEOPLE / "sd1_base.safetensors") | {
        "v_pred": torch.zeros(0),
        "alphas_cumprod": torch.ones(9),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    turn("a.safetensors", "--save-precision", "fp32", "-o", "b.safetensors", cwd=tmp_path)
    found = load_file(tmp_path / "b.safetensors")
    for key, value in tensors.items():
        is_layer = value.is_floating_point() and key not in ("v_pred", "alphas_cumprod")
        assert torch.equal(found[key], value.float() if is_layer else value), key
        assert found[key].dtype == (torch.float32 if is_layer else value.dtype), key
    key = "model.diffusion_model.time_embed.0.weight"
    found[key][0, 0] = 1e6
    found["model.diffusion_model.time_embed.2.weight"][0, 0] = 1e-12
    save_file(found, tmp_path / "large.safetensors")
    told = turn("large.safetensors", "--save-precision", "fp16", "-o", "c.safetensors", code=1, cwd=tmp_path)
    assert f"{key}: values are too large for F16" in told
    assert not (tmp_path / "c.safetensors").exists()
    told = turn("large.safetensors", "--save-precision", "bf16", "-o", "c.safetensors", cwd=tmp_path)
    found[key][0, 0] = 1.0
    save_file(found, tmp_path / "small.safetensors")
    told = turn("small.safetensors", "--save-precision", "fp16", "-o", "d.safetensors", cwd=tmp_path)
    assert "of 1 tensor 1 number is too small for its type" in told


def test_another_vae(tmp_path: Path) -> None:
    one, two = tiny.build("sd1"), tiny.build("sd1", seed=5)
    single = tiny.save_checkpoint(one, tmp_path / "single.safetensors")
    folder = tiny.save_folder(two, tmp_path / "two")
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    turn(single, "--vae", vae, "-o", tmp_path / "new.safetensors")
    wanted = {
        key: value
        for table, first in ((tiny.checkpoint_tensors(one), False), (tiny.checkpoint_tensors(two), True))
        for key, value in table.items()
        if key.startswith("first_stage_model.") == first
    }
    same(load_file(tmp_path / "new.safetensors"), wanted)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_merge_into_a_folder_as_one_file(family: str, tmp_path: Path) -> None:
    """The same file as the merge into the single file of that model."""
    made = tiny.build(family)
    single = tiny.save_checkpoint(made, tmp_path / "single.safetensors")
    folder = tiny.save_folder(made, tmp_path / "folder")
    rng = np.random.default_rng(0)
    layer = "unet.mid_block.attentions.0.proj_in"
    width = int(made.unet.state_dict()["mid_block.attentions.0.proj_in.weight"].shape[0])
    factors = {
        f"{layer}.lora_A.weight": torch.tensor(rng.standard_normal((2, width)), dtype=torch.float32),
        f"{layer}.lora_B.weight": torch.tensor(rng.standard_normal((width, 2)), dtype=torch.float32),
    }
    save_file(factors, tmp_path / "lora.safetensors")
    for base, name in ((single, "a"), (folder, "b")):
        done = run(
            "lora-merge", base, "lora.safetensors", "-o", f"{name}.safetensors", "--verify", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    found, wanted = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "a.safetensors")
    same(found, {key: value for key, value in wanted.items() if key in found})
    assert all(
        key.endswith(("decay", "alphas_cumprod", "logit_scale")) for key in wanted.keys() - found.keys()
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_two_variants(tmp_path: Path) -> None:
    words = [PEOPLE / "dif_both", PEOPLE / "r4.safetensors", "-o", tmp_path / "both"]
    done = run("lora-merge", *words)
    assert done.returncode == 0, done.stderr
    assert (
        "not in the result, since they keep the weights as they were: text_encoder/model.fp16" in done.stderr
    )
    done = run("lora-merge", PEOPLE / "dif_plain", *words[1:2], "-o", tmp_path / "single.safetensors")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "single.safetensors").is_file()
    assert "the VAE is left out: vae/diffusion_pytorch_model.safetensors is too short" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["r4.safetensors", "-o", "o.safetensors"], "this is a LoRA"),
        (
            ["sd1_base.safetensors", "--ratio", "0.5", "-o", "o.safetensors"],
            "--ratio has no use with a single model",
        ),
        (["sd1_base.safetensors", "--method", "slerp", "-o", "o.safetensors"], "--method has no use"),
        (
            ["sd1_base.safetensors", "--configs", ".", "-o", "o.safetensors"],
            "--configs has a use only for a folder",
        ),
        (
            ["sd1_base.safetensors", "sd1_base.safetensors", "--configs", ".", "-o", "o.safetensors"],
            "--configs has",
        ),
        (["sd1_base.safetensors", "-o", "o.ckpt"], "under another format's name"),
        (["sd1_base.safetensors", "-o", "o.txt"], "a folder has no ending"),
        (["dif_plain", "--ema", "use", "-o", "o.safetensors"], "--ema use"),
        (["unet_diffusers_single.safetensors", "-o", "folder"], "so it makes no whole folder"),
    ],
)
def test_refused(words: list[str], text: str, tmp_path: Path) -> None:
    for name in ("r4.safetensors", "sd1_base.safetensors", "unet_diffusers_single.safetensors"):
        shutil.copy(PEOPLE / name, tmp_path / name)
    shutil.copytree(PEOPLE / "dif_plain", tmp_path / "dif_plain")
    before = set(tmp_path.iterdir())
    told = turn(*words, code=2, cwd=tmp_path)
    assert text in told
    assert told.count("\n") == 1
    assert set(tmp_path.iterdir()) == before
