"""Files that nobody meant to make: refused in one line with the file's name, never half done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.commands import run

BASE = Path(__file__).parents[1] / "data" / "people" / "sd1_base.safetensors"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0"
TO_K, TO_Q = (f"lora_unet_{PATH.replace('.', '_')}_{name}" for name in ("attn2_to_k", "attn1_to_q"))
Arrays = dict[str, NDArray[Any]]


def numbers(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def pair(name: str, rows: int, columns: int, alpha: float = 4, ends: str = "lora_down lora_up") -> Arrays:
    down, up = ends.split()
    found = {f"{name}.{down}.weight": numbers(4, columns), f"{name}.{up}.weight": numbers(rows, 4)}
    return found | ({f"{name}.alpha": np.asarray(alpha, np.float32)} if down == "lora_down" else {})


def loha(**parts: NDArray[Any]) -> Arrays:
    whole = {f"w{n}_{side}": numbers(*((16, 2) if side == "a" else (2, 16))) for n in (1, 2) for side in "ab"}
    return {f"{TO_Q}.hada_{name}": value for name, value in (whole | parts).items()}


CONVERT, RESIZE = ["lora-convert", "--to", "kohya"], ["lora-resize", "--new-rank", "2"]
SUM, INTO = ["lora-merge", "--networks"], ["lora-merge", str(BASE)]
TWICE = pair(TO_K, 16, 12) | pair(f"unet.{PATH}.attn2.to_k", 16, 12, ends="lora_A lora_B")


@pytest.mark.parametrize(
    ("command", "net", "text"),
    [
        (INTO, TWICE, "names one layer twice"),
        (["lora-extract"], TWICE, "names one layer twice"),
        (SUM, TWICE, "names one layer twice"),
        (RESIZE, TWICE, "names one layer twice"),
        (CONVERT, TWICE, "names one layer twice"),
        (["lora-inspect", "delta"], TWICE, "names one layer twice"),
        (CONVERT, pair(TO_K, 16, 12, np.inf), "its alpha is inf, no strength"),
        (["lora-convert", "--to", "peft"], pair(TO_K, 16, 12, np.nan), "its alpha is nan, no strength"),
        (CONVERT, pair(TO_K, 16, 12) | {f"{TO_K}.dora_scale": numbers(5, 1)}, "does not fit a layer of 16"),
        (RESIZE, pair(TO_K, 16, 12) | {f"{TO_K}.dora_scale": numbers(5, 1)}, "does not fit a layer of 16"),
        (CONVERT, loha(w2_a=numbers(16, 3)), "do not fit each other"),
        (CONVERT, {f"{TO_Q}.lokr_w1": numbers(2, 2)}, "lokr_w2_a is missing"),
        (CONVERT, pair(TO_K, 16, 12) | pair(TO_Q, 16, 16) | loha(), "not those of one known algorithm"),
        (CONVERT, {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": numbers(8, 2)}, "for Flux.1"),
    ],
)
def test_refused(command: list[str], net: Arrays, text: str, tmp_path: Path) -> None:
    source, output = tmp_path / "strange.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, net)
    tool, *words = command
    done = run(tool, *words, source, "-o", output)
    assert done.returncode in (1, 2), done.stderr
    assert text in done.stderr
    assert "strange.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["strange.safetensors"]


def test_a_module_of_no_strength_is_resized(tmp_path: Path) -> None:
    """An alpha of 0 beside others: its factors stay, at a strength of 0."""
    source, output = tmp_path / "zero.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, pair(TO_K, 16, 12, 0) | pair(TO_Q, 16, 16))
    done = run("lora-resize", source, "--new-rank", 2, "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resized"] == 2
    with open_tensors(output) as file:
        up, down = (file.read(f"{TO_K}.lora_{side}.weight") for side in ("up", "down"))
        assert up.shape == (16, 2)
        assert np.any(down)
        assert not np.any(up @ down * file.read(f"{TO_K}.alpha"))


def test_an_extraction_needs_a_base_that_fits(tmp_path: Path) -> None:
    """Of plain factors the base says the shares alone; one of other sizes is another model's."""
    for name, columns in (("fits", 16), ("other", 12)):
        write_tensors(tmp_path / f"{name}.safetensors", pair(TO_Q, 16, columns))
        done = run("lora-extract", tmp_path / f"{name}.safetensors", BASE, "-n")
        assert done.returncode == (0 if name == "fits" else 2), done.stderr
    assert "makes a change of (16, 12)" in done.stderr
    assert "of the base has (16, 16)" in done.stderr


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (TWICE, "names one layer twice"),
        (pair(TO_K, 16, 12, np.nan), "an alpha of nan"),
        (
            {f"{TO_K}.lora_up.weight": numbers(16, 0), f"{TO_K}.lora_down.weight": numbers(0, 12)},
            "its rank is 0",
        ),
        (pair(TO_Q, 16, 16, ends="lora_A lora_B") | {f"{TO_K}.alpha": np.float32(1)}, "but no such module"),
    ],
)
def test_compat_says_what_our_own_tools_refuse(net: Arrays, why: str, tmp_path: Path) -> None:
    source = tmp_path / "strange.safetensors"
    write_tensors(source, net)
    done = run("lora-inspect", "compat", source, "--json")
    ours = json.loads(done.stdout)["programs"]["lora-merge"]
    assert (ours["reads"], ours["applied"]) == ("no", 0)
    assert why in ours["why"][0]
    assert run("lora-merge", BASE, source, "-o", tmp_path / "out.safetensors").returncode == 2
    assert run("lora-inspect", "check", source).returncode == 1


def test_no_command_mends_a_file_that_is_not_understood(tmp_path: Path) -> None:
    source = tmp_path / "strange.safetensors"
    write_tensors(source, TWICE)
    assert "mend: " not in run("lora-inspect", "compat", source).stdout


def test_alphas_alone_are_a_problem(tmp_path: Path) -> None:
    source = tmp_path / "strange.safetensors"
    write_tensors(source, {f"{TO_K}.alpha": np.asarray(4, np.float32)})
    done = run("lora-inspect", "check", source)
    assert done.returncode == 1
    assert "tensors named as a network's, of which none belongs to a known algorithm" in done.stdout


@pytest.mark.parametrize(
    ("family", "blocks", "text"),
    [
        ("sd1", "", "--blocks has 0 numbers"),
        ("sd1", "TE2=0", "Stable Diffusion 1.x has no block TE2"),
        ("sdxl", "IN01=1,IN09=0", "Stable Diffusion XL has no block IN09"),
    ],
)
@pytest.mark.parametrize("mode", ["base", "--networks", "--models"])
def test_blocks_that_would_weigh_nothing(
    mode: str, family: str, blocks: str, text: str, tmp_path: Path
) -> None:
    """A word that no block answers to leaves the merge as it would be without it."""
    base = BASE.with_name(f"{family}_base.safetensors")
    net = BASE.with_name("r4.safetensors" if family == "sd1" else "sdxl_kohya.safetensors")
    words = {"base": [base, net], "--networks": ["--networks", net], "--models": ["--models", base, base]}
    output = tmp_path / "out.safetensors"
    done = run("lora-merge", *words[mode], "--blocks", blocks, "-o", output)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert not output.exists()


def test_one_is_said_as_one(tmp_path: Path) -> None:
    source, output = tmp_path / "one.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, pair(TO_Q, 16, 16))
    for command, text in (
        (INTO, "merged 1 of 1 module into 1 tensor of"),
        (SUM, ": 1 module, 0 of them"),
        (RESIZE, ": 1 module, rank"),
        (CONVERT, ": 1 module as kohya"),
        (["lora-extract"], ": 1 module, rank"),
    ):
        output.unlink(missing_ok=True)
        tool, *words = command
        done = run(tool, *words, source, "-o", output)
        assert done.returncode == 0, done.stderr
        assert text in done.stderr
