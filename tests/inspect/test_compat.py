"""``lora-inspect compat`` against what the programs' own loaders did with the same files, module by module."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorapipe_engine.files.picklefile import open_weights
from lorapipe_inspect.measure.programs import Answer, examine
from support.commands import run

FORMATS = Path(__file__).parents[1] / "data" / "formats"
NETWORKS = Path(__file__).parents[1] / "data" / "networks"
# Modules applied as meant and wrongly, by diffusers 0.42.1, ComfyUI a125cd8 and A1111 1.10's names; x: file refused.
MEASURED = {
    "sd1/kohya": ("28+6w", "34", "34"),
    "sdxl/kohya": ("29+4w", "33", "33"),
    "sdxl/onetrainer_legacy": ("28+4w", "33", "31"),
    "sd1/onetrainer_diffusers": ("34", "27", "0"),
    "sdxl/onetrainer_diffusers": ("33", "27", "0"),
    "sd1/diffusers_0_20": ("34", "34", "0"),
    "sdxl/diffusers_0_20": ("33", "33", "0"),
    "sd1/diffusers_0_17": ("15", "7", "0"),
    "sdxl/diffusers_0_17": ("14", "6", "0"),
    "sd1/diffusers_save_lora_weights": ("27", "0+15w", "0"),
    "sdxl/diffusers_save_lora_weights": ("27", "0+21w", "0"),
    "sd1/diffusers_save_lora_adapter": ("0", "0+15w", "0"),
    "sd1/onetrainer_comfy": ("x", "34", "0"),
    "sdxl/onetrainer_comfy": ("x", "33", "0"),
    "sd1/comfyui_lorasave": ("x", "34", "0"),
    "sdxl/comfyui_lorasave": ("x", "33", "0"),
    "sd1/onetrainer_omi": ("x", "0", "0"),
    "sdxl/onetrainer_omi": ("x", "0", "0"),
    "sd1/onetrainer_original_unet": ("x", "0", "0"),
    "sd1/lycoris_prefix_unet": ("x", "22", "0"),
    "sd1/peft_unet/adapter_model": ("0", "0", "0"),
    "sdxl/peft_text_encoder_2/adapter_model": ("0", "0", "0"),
}


def look(path: Path) -> dict[str, Answer]:
    with open_weights(path) as file:
        return examine(file, str(path))


def told(answer: Answer) -> str:
    if answer.refused:
        return "x"
    return f"{answer.applied}+{answer.wrong}w" if answer.wrong else str(answer.applied)


@pytest.mark.parametrize("name", MEASURED)
def test_is_what_the_loaders_did(name: str) -> None:
    answers = look(FORMATS / f"{name}.safetensors")
    assert tuple(told(answers[program]) for program in ("diffusers", "ComfyUI", "A1111")) == MEASURED[name]
    total = {answer.applied + answer.wrong + answer.dropped for answer in answers.values()}
    assert len(total) == 1
    assert (answers["PEFT"].reads == "yes") == ("peft" in name)
    assert answers["lora-merge"].reads == "yes"


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("lokr_factor_tucker", {"ComfyUI": "in part", "A1111": "yes", "Forge": "no", "diffusers": "no"}),
        ("ia3_in", {"ComfyUI": "no", "Forge": "no", "LyCORIS": "yes", "sd-scripts": "no"}),
        ("full", {"ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "diffusers": "no"}),
    ],
)
def test_algorithms(name: str, reads: dict[str, str]) -> None:
    path = NETWORKS / f"{name}.safetensors"
    answers = look(path)
    assert {program: answers[program].reads for program in reads} == reads
    assert all(
        answer.mend
        for program, answer in answers.items()
        if answer.reads != "yes" and program != "lora-merge"
    )


def test_forge_refuses_what_it_has_too_many_unknown_tensors_of() -> None:
    answers = look(FORMATS / "sd1" / "onetrainer_diffusers.safetensors")
    assert answers["ComfyUI"].reads == "in part"
    assert answers["Forge"].refused
    assert not answers["ComfyUI"].refused


@pytest.mark.parametrize("program", ["A1111", "ComfyUI", "diffusers", "PEFT", "sd-scripts", "Forge"])
@pytest.mark.parametrize("name", ["kohya", "diffusers_save_lora_weights", "onetrainer_omi", "diffusers_0_17"])
def test_the_mend_mends(program: str, name: str, tmp_path: Path) -> None:
    """The command as it is printed makes a file of which compat says yes."""
    shutil.copy(FORMATS / "sd1" / f"{name}.safetensors", tmp_path / "a.safetensors")
    done = run("lora-inspect", "compat", "a.safetensors", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)["programs"][program]
    if answer["reads"] == "yes":
        assert answer["mend"] is None
        return
    tool, *words = answer["mend"].split()
    assert tool == "lora-convert"
    done = run(tool, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / words[-1]
    for path in sorted(output.rglob("*.safetensors")) if output.is_dir() else [output]:
        assert look(path)[program].reads == "yes"


def test_strengths_that_are_nowhere() -> None:
    answers = look(FORMATS / "sd1" / "peft_text_encoder_named.safetensors")
    assert answers["lora-merge"].refused
    assert answers["diffusers"].mend == "put PEFT's adapter_config.json beside the file"


def test_text(tmp_path: Path) -> None:
    shutil.copy(FORMATS / "sd1" / "kohya.safetensors", tmp_path / "a b.safetensors")
    done = run("lora-inspect", "compat", "a b.safetensors", cwd=tmp_path)
    assert done.returncode == 0
    assert (
        "  diffusers   in part  28/34       applies wrongly 6: takes the commonest alpha of the part"
        in done.stdout
    )
    assert (
        "mend: lora-convert 'a b.safetensors' --to kohya --one-alpha -o converted.safetensors" in done.stdout
    )


def test_one_word_for_one_algorithm() -> None:
    path = FORMATS / "sd1" / "kohya.safetensors"
    said = [run("lora-inspect", word, path).stdout.splitlines()[0] for word in ("compat", "check", "ranks")]
    assert [" locon," in line for line in said] == [True] * 3
    assert "convolutions" not in said[0]
