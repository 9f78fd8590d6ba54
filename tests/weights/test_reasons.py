"""What tools say of a network is so: they name what the file has, and the reason that keeps a module out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.commands import run
from support.kinds import SD1, TO_OUT, TO_Q, kohya, lora, module, numbers, read, refused, save

WRAPPED = f"lycoris_{TO_Q.replace('.', '_')}"  # as LyCORIS' wrapper around the UNet alone has it


def test_changes_are_named_as_the_wrappers_modules(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", module(WRAPPED, lora() | {"diff_b": numbers(16)}))
    assert run("lora-inspect", "delta", source, "-o", tmp_path / "out.safetensors").returncode == 0
    assert read(tmp_path / "out.safetensors").keys() == {WRAPPED, f"{WRAPPED}.bias"}


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("lora-inspect", ("delta",)),
        ("lora-convert", ("--to", "kohya")),
        ("lora-merge", ("--networks",)),
        ("lora-extract", ()),
    ],
)
def test_a_layer_that_is_there_twice_is_named_as_in_the_file(
    tool: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    source = save(tmp_path / "in.safetensors", module(WRAPPED, lora()) | module(kohya(TO_Q), lora()))
    told = f"names one layer twice, as {kohya(TO_Q)} and as {WRAPPED}"
    refused(source, (*words, source), told, tool=tool)


def test_a_bias_that_the_layer_lacks_is_the_reason(tmp_path: Path) -> None:
    bias = module(kohya(TO_Q), {"diff_b": numbers(16)})
    source = save(tmp_path / "in.safetensors", bias)
    why = f"it has no bias where the network changes one, as of {kohya(TO_Q)}"
    refused(source, (SD1, source), f"no module fits {SD1}: {why}; nothing was written")
    source = save(tmp_path / "more.safetensors", bias | module(kohya(TO_OUT), lora()))
    refused(source, (SD1, source), f"1 without a place in {SD1.name}", f"({why})", "--allow-unmatched")


def test_a_bias_alone_becomes_no_lora(tmp_path: Path) -> None:
    bias = save(tmp_path / "bias.safetensors", module(kohya(TO_OUT), {"diff_b": numbers(16)}))
    plain = save(tmp_path / "plain.safetensors", module(kohya(TO_OUT), lora()))
    output = tmp_path / "out.safetensors"
    done = run("lora-merge", "--networks", f"{bias}:0.5", plain, "-o", output, "--verify")
    assert done.returncode == 0, done.stderr
    assert "plain LoRA" not in done.stderr
    assert np.allclose(read(output)[f"{kohya(TO_OUT)}.diff_b"], 0.5 * numbers(16), atol=1e-6)
