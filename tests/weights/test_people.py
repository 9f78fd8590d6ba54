"""Files that people hold: each is read right, refused in one line that names it, or left alone with a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.delta import dense_delta
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.read import read_module
from support.commands import run

PEOPLE = Path(__file__).parents[1] / "data" / "people"
TO_Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
LDM_TO_Q = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def tensors(path: Path) -> dict[str, NDArray[Any]]:
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.tensors}


@pytest.mark.parametrize("word", ["peft_adapter", "peft_adapter/adapter_model.safetensors"])
def test_an_adapters_configuration_counts(word: str, tmp_path: Path) -> None:
    """r 4, lora_alpha 16: four times the product of the factors."""
    output = tmp_path / "o.safetensors"
    done = run(
        "lora-merge", PEOPLE / "sd1_base.safetensors", PEOPLE / word, "--save-precision", "fp32", "-o", output
    )
    assert done.returncode == 0, done.stderr
    net = tensors(PEOPLE / "peft_adapter/adapter_model.safetensors")
    up, down = (net[f"{LDM_TO_Q}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    change = tensors(output)[TO_Q] - tensors(PEOPLE / "sd1_base.safetensors")[TO_Q].astype(np.float64)
    assert np.allclose(change, 4 * up @ down, atol=1e-5)


def test_peft_without_strengths_is_refused(tmp_path: Path) -> None:
    """The tensors of PEFT's own dictionary say nothing of r and alpha; a pipeline's without alphas mean 1."""
    source = (PEOPLE / "peft_adapter/adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter.safetensors").write_bytes(source)
    done = run(
        "lora-merge",
        PEOPLE / "sd1_base.safetensors",
        tmp_path / "adapter.safetensors",
        "-o",
        tmp_path / "o.safetensors",
    )
    assert done.returncode == 2
    assert "put the adapter_config.json that PEFT wrote" in done.stderr
    for command in (["check"], ["norms"], ["ranks"], ["keys", "--modules"]):
        done = run("lora-inspect", *command, PEOPLE / "peft_adapter_named.safetensors")
        assert done.returncode == 0, done.stderr
        assert "Stable Diffusion 1.x" in done.stdout or "sd1" in done.stdout or "11 modules" in done.stdout


def test_magnitudes_of_peft_go_by_outputs(tmp_path: Path) -> None:
    """(1, out, 1, 1) on a square convolution could be taken for input columns."""
    output = tmp_path / "o.safetensors"
    words = [PEOPLE / "sd1_base.safetensors", PEOPLE / "dora_peft_conv_square.safetensors"]
    done = run("lora-merge", *words, "--save-precision", "fp32", "-o", output)
    assert done.returncode == 0, done.stderr
    net, layer = tensors(words[1]), "unet.down_blocks.0.resnets.0.conv1"
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    base = tensors(words[0])[key].astype(np.float64)
    up, down = (net[f"{layer}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    moved = base + np.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    norm = np.sqrt(np.square(moved).sum(axis=(1, 2, 3)))
    wanted = moved * (net[f"{layer}.lora_magnitude_vector"].reshape(-1) / norm)[:, None, None, None]
    assert np.allclose(tensors(output)[key], wanted, atol=1e-4)


@pytest.mark.parametrize(("file", "title"), [("flux_diffusers", "Flux.1"), ("sd3", "Stable Diffusion 3")])
def test_other_families_are_known_by_name(file: str, title: str, tmp_path: Path) -> None:
    path = PEOPLE / f"{file}.safetensors"
    done = run("lora-merge", PEOPLE / "sdxl_base.safetensors", path, "-o", tmp_path / "o.safetensors")
    assert done.returncode == 1
    assert f"is for {title}, the base is Stable Diffusion XL" in done.stderr
    assert title in run("lora-inspect", "check", path).stdout
    compat = run("lora-inspect", "compat", path).stdout
    assert title in compat
    assert "yes" not in compat
    assert run("lora-resize", path, "--new-rank", 2, "-o", tmp_path / "r.safetensors").returncode == 0


def test_every_part_of_old_processors_is_resized(tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    done = run("lora-resize", PEOPLE / "diffusers_attn_procs_017.safetensors", "--new-rank", 1, "-o", output)
    assert done.returncode == 0, done.stderr
    with open_weights(output) as file:
        assert dict(describe_network(file).ranks) == {1: 4}


def test_strangers_are_named(tmp_path: Path) -> None:
    words = [PEOPLE / "net_with_strangers.safetensors", "--new-rank", 2, "-o", tmp_path / "o.safetensors"]
    done = run("lora-resize", *words)
    assert done.returncode == 0
    assert "note: copied 2 tensors that belong to no module" in done.stderr


def test_embeddings_get_the_same_note_everywhere(tmp_path: Path) -> None:
    emb, base = PEOPLE / "onetrainer_bundle_emb.safetensors", PEOPLE / "sdxl_base.safetensors"
    for words in ([base, emb], ["--networks", PEOPLE / "sdxl_kohya.safetensors", emb]):
        done = run("lora-merge", *words, "-o", tmp_path / f"{len(words)}.safetensors")
        assert done.returncode == 0, done.stderr
        assert (
            "its embeddings are left out: bundle_emb.mychar.clip_l, bundle_emb.mychar.clip_g" in done.stderr
        )


@pytest.mark.slow
def test_onetrainers_omi_is_added_under_kohyas_names(tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    words = [PEOPLE / "onetrainer_omi_sdxl.safetensors", PEOPLE / "sdxl_kohya.safetensors"]
    done = run("lora-merge", "--networks", *words, "--save-precision", "fp32", "-o", output)
    assert done.returncode == 0, done.stderr
    assert "7 modules, 7 of them in more than one network" in done.stderr
    base = PEOPLE / "sdxl_base.safetensors"
    one, both = tmp_path / "one.safetensors", tmp_path / "both.safetensors"
    assert run("lora-merge", base, output, "--save-precision", "fp32", "-o", one).returncode == 0
    assert run("lora-merge", base, *words, "--save-precision", "fp32", "-o", both).returncode == 0
    for key, value in tensors(one).items():
        assert np.allclose(value, tensors(both)[key], atol=1e-5), key


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("lora-merge", ["sd1_base.safetensors", "r0.safetensors"]),
        ("lora-merge", ["--networks", "r0.safetensors", "r4.safetensors"]),
        ("lora-resize", ["r0.safetensors", "--new-rank", 2]),
        ("lora-inspect norms", ["r0.safetensors"]),
        ("lora-inspect ranks", ["r0.safetensors"]),
    ],
)
def test_rank_0_is_refused_with_the_files_name(command: str, words: list[Any], tmp_path: Path) -> None:
    tool, *rest = command.split()
    more = [] if rest else ["-o", tmp_path / "o.safetensors"]
    done = run(tool, *rest, *words, *more, cwd=PEOPLE)
    assert done.returncode == 2
    assert "r0.safetensors" in done.stderr
    assert "rank" in done.stderr
    assert done.stderr.count("\n") == 1


def test_rank_0_is_a_problem() -> None:
    done = run("lora-inspect", "check", PEOPLE / "r0.safetensors")
    assert done.returncode == 1
    assert "lora_unet_down_blocks_0_attentions_0_proj_in has rank 0" in done.stdout


@pytest.mark.parametrize(
    ("words", "text", "code"),
    [
        (
            ["base_nan.safetensors", "r4.safetensors"],
            "base_nan.safetensors: has NaN or infinite values in",
            1,
        ),
        (
            ["sd1_base.safetensors", "r4.safetensors", "--ratio", "nan"],
            "--ratio: nan is not a usable number",
            2,
        ),
        (
            ["sd1_base.safetensors", "r4.safetensors", "--ratio", "inf"],
            "--ratio: inf is not a usable number",
            2,
        ),
        (["sd1_base.safetensors", "r4.safetensors:nan"], "not a finite number", 2),
        (["sd1_base.safetensors", "updown.safetensors"], "updown.safetensors", 2),
    ],
)
def test_one_line_that_names_the_file(words: list[str], text: str, code: int, tmp_path: Path) -> None:
    done = run("lora-merge", *words, "-o", tmp_path / "o.safetensors", cwd=PEOPLE)
    assert done.returncode == code
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_unet_alone_takes_a_network_for_the_unet(tmp_path: Path) -> None:
    words = ["unet_diffusers_single.safetensors", "lora_unet_only.safetensors", "--verify"]
    done = run("lora-merge", *words, "-o", tmp_path / "o.safetensors", cwd=PEOPLE)
    assert done.returncode == 0, done.stderr
    assert "merged 9 of 9 modules" in done.stderr
    assert "verified: 9 changed tensors" in done.stderr


def test_broken_metadata_do_not_matter_where_alphas_tell(tmp_path: Path) -> None:
    for name in ("meta_broken_json", "updown"):
        assert (PEOPLE / f"{name}.safetensors").is_file()
    words = [PEOPLE / "sd1_base.safetensors", PEOPLE / "meta_broken_json.safetensors"]
    assert run("lora-merge", *words, "-o", tmp_path / "o.safetensors").returncode == 0


def change_of(path: Path) -> dict[str, NDArray[Any]]:
    """up @ down of each module of a file of kohya's names, times alpha / rank."""
    net = tensors(path)
    found = {}
    for name in {key.split(".")[0] for key in net}:
        up, down = (net[f"{name}.lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
        scale = float(net[f"{name}.alpha"]) / down.shape[0]
        found[name] = scale * up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
    return found


@pytest.mark.parametrize("tool", ["networks", "resize", "convert"])
def test_an_adapters_configuration_counts_in_every_tool(tool: str, tmp_path: Path) -> None:
    source, output = PEOPLE / "peft_adapter", tmp_path / "o.safetensors"
    fp32 = ["--save-precision", "fp32", "-o", output]
    words: dict[str, list[Any]] = {
        "networks": ["lora-merge", "--networks", source, *fp32],
        "resize": ["lora-resize", source / "adapter_model.safetensors", "--new-rank", 4, *fp32],
        "convert": ["lora-convert", source, "--to", "kohya", *fp32],
    }
    done = run(*words[tool])
    assert done.returncode == 0, done.stderr
    net = tensors(PEOPLE / "peft_adapter/adapter_model.safetensors")
    up, down = (net[f"{LDM_TO_Q}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    if tool == "resize":  # keeps the names that the file has
        done = run("lora-convert", output, "--to", "kohya", "-o", tmp_path / "k.safetensors")
        assert done.returncode == 0, done.stderr
        output = tmp_path / "k.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert np.allclose(change_of(output)[name], 4 * up @ down, atol=1e-4)


def test_scaled_numbers_of_8_bits_are_no_weights(tmp_path: Path) -> None:
    """Refused with the command that makes a plain base of it, into which the network then goes."""
    words = [
        "alpha_missing.safetensors",
        "--ratio",
        ".8",
        "--save-precision",
        "fp16",
        "-o",
        tmp_path / "o.safetensors",
    ]
    done = run("lora-merge", "base_scaled_fp8.safetensors", *words, cwd=PEOPLE)
    assert done.returncode == 2
    assert (
        "lora-merge --models base_scaled_fp8.safetensors --save-precision fp16 -o plain.safetensors"
        in done.stderr
    )
    plain = tmp_path / "plain.safetensors"
    done = run(
        *("lora-merge", "--models", "base_scaled_fp8.safetensors", "--save-precision", "fp32", "-o", plain),
        cwd=PEOPLE,
    )
    assert done.returncode == 0, done.stderr
    before, after = tensors(PEOPLE / "base_scaled_fp8.safetensors"), tensors(plain)
    scales = {key: value for key, value in before.items() if key.endswith(".scale_weight")}
    assert scales
    assert not any("scale" in key for key in after)
    for key, scale in scales.items():
        weight = key.replace("scale_weight", "weight")
        assert np.allclose(after[weight], before[weight].astype(np.float64) * float(scale), rtol=1e-6)
    assert run("lora-merge", plain, *words, cwd=PEOPLE).returncode == 0


def test_old_processors_are_merged(tmp_path: Path) -> None:
    words = [PEOPLE / "sd1_base.safetensors", PEOPLE / "diffusers_attn_procs_017.safetensors"]
    done = run("lora-merge", *words, "--save-precision", "fp32", "--verify", "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert "merged 4 of 4 modules" in done.stderr


@pytest.mark.parametrize("name", ["peft_adapter", "diffusers_attn_procs_unet_noprefix.safetensors"])
def test_names_without_a_part_tell_the_family(name: str, tmp_path: Path) -> None:
    done = run(
        *("lora-merge", "--networks", PEOPLE / name, PEOPLE / "r4.safetensors"),
        *("--verify", "-o", tmp_path / "o.safetensors"),
    )
    assert done.returncode == 0, done.stderr
    assert "verified: " in done.stderr


def test_a_nearly_flat_network_keeps_one_rank(tmp_path: Path) -> None:
    """As sd-scripts counts since its pull request 2194; its option for randomised spectra gets one note."""
    words = ["--new-rank", 4, "--dynamic-method", "sv_fro", "--dynamic-param", 0.9]
    output = tmp_path / "o.safetensors"
    done = run(
        "lora-resize", PEOPLE / "nearly_rank1.safetensors", *words, "--svd_lowrank_niter", 2, "-o", output
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("svd_lowrank_niter") == 1
    with open_weights(output) as file:
        assert set(describe_network(file).ranks) == {1}


def test_mixed_alphas_are_said_and_mended(tmp_path: Path) -> None:
    """diffusers' loader takes the commonest alpha of a part: one alpha is what a resized file has, unless told."""
    source = PEOPLE.parent / "formats" / "sd1" / "kohya.safetensors"
    words = ["--new-rank", 4, "--dynamic-method", "sv_fro", "--dynamic-param", 0.8]
    for name, more in (("one", []), ("many", ["--keep-alphas"])):
        path = tmp_path / f"{name}.safetensors"
        assert run("lora-resize", source, *words, *more, "-o", path).returncode == 0
        done = run("lora-inspect", "compat", path)
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith("diffusers"))
        assert ("commonest alpha" in line) == (name == "many")
        assert ("34/34" in line) == (name == "one")


def test_omis_names_are_read_by_few(tmp_path: Path) -> None:
    done = run("lora-inspect", "compat", PEOPLE / "onetrainer_omi_sdxl.safetensors")
    assert done.returncode == 1
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:] if "mend:" not in line}
    assert {name for name, reads in lines.items() if reads == "yes"} == {"lora-merge"}
    assert "lora-convert" in done.stdout


def test_biases_of_factors_stay_as_strong_as_they_were(tmp_path: Path) -> None:
    source = PEOPLE.parent / "formats" / "variants" / "peft_lora_bias"
    output = tmp_path / "o.safetensors"
    words = [source / "adapter_model.safetensors", "--new-rank", 16, "--save-precision", "fp32", "-o", output]
    done = run("lora-resize", *words)
    assert done.returncode == 0, done.stderr
    with open_weights(source / "adapter_model.safetensors") as old, open_weights(output) as new:
        before, after = describe_network(old).modules, describe_network(new).modules
        for name, module in before.items():
            one, two = read_module(old, module), read_module(new, after[name])
            assert np.allclose(one["diff_b"], two["diff_b"], rtol=1e-5), name
            first, second = (dense_delta(table, name=name).weight for table in (one, two))
            assert first is not None
            assert second is not None
            assert np.allclose(first, second, atol=1e-5), name
