"""Files that people hold: each is read right, refused in one line that names it, or left alone with a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.networks.describe import describe_network
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
