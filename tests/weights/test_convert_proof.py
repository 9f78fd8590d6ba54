"""``lora-convert``: biases go along or are refused, and ``--verify`` compares all that a module changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import encode, open_tensors
from support.commands import run
from support.kinds import CONV, TO_Q, Arrays, kohya, lora, module, numbers, refused, save

LYCORIS_SCHEMES, OTHER_SCHEMES = ("kohya", "comfy", "omi"), ("diffusers", "diffusers-old", "peft")
BIAS = numbers(16, seed=3)
LOHA: Arrays = {f"hada_w{n}_{s}": numbers(*((16, 2) if s == "a" else (2, 16))) for n in (1, 2) for s in "ab"}
WITH_BIAS: dict[str, Arrays] = {
    "lora": lora() | {"diff_b": BIAS},
    "loha": LOHA | {"diff_b": BIAS},
    "full": {"diff": numbers(16, 16), "diff_b": BIAS},
}


@pytest.mark.parametrize("kind", WITH_BIAS)
def test_plain_factors_keep_a_bias_or_are_refused(kind: str, tmp_path: Path) -> None:
    tensors = module(kohya(TO_Q), WITH_BIAS[kind]) | module(kohya(CONV), lora(16, 144))
    source = save(tmp_path / "in.safetensors", tensors)
    for scheme in LYCORIS_SCHEMES:
        output = tmp_path / f"{scheme}.safetensors"
        done = run("lora-convert", source, "--to", scheme, "--to-lora", "--verify", "-o", output)
        assert done.returncode == 0, done.stderr
        with open_tensors(output) as file:
            assert [file.read(key).tolist() for key in file.tensors if key.endswith("diff_b")] == [
                BIAS.tolist()
            ]
            assert not any(key.endswith((".diff", "hada_w1_a")) for key in file.tensors)
    for scheme in OTHER_SCHEMES:
        words = (source, "--to", scheme, "--to-lora")
        refused(source, words, "diff_b has no form there", tool="lora-convert")
    refused(source, (source, "--to", "peft"), "no form there", tool="lora-convert")


def test_what_depends_on_the_base_is_verified_by_its_tensors(tmp_path: Path) -> None:
    tensors = module(kohya(TO_Q), {"oft_blocks": numbers(4, 4, 4) * np.float32(0.1), "alpha": np.float32(0)})
    tensors |= module(kohya(CONV), {"weight": numbers(16) * np.float32(0.1), "on_input": np.zeros((), "?")})
    source = save(tmp_path / "in.safetensors", tensors)
    for precision in ("fp16", "bf16", "fp32"):
        words = (source, "--to", "kohya", "--save-precision", precision, "--verify", "--force")
        done = run("lora-convert", *words, "-o", tmp_path / "out.safetensors")
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stderr


def test_a_proof_that_fails_by_half_precision_says_so(tmp_path: Path) -> None:
    """Numbers around 1e-6 keep four bits in fp16."""
    tensors = module(kohya(TO_Q), {"diff": numbers(16, 16), "diff_b": BIAS * np.float32(3e-6)})
    source = save(tmp_path / "in.safetensors", {key: encode(one, "F32") for key, one in tensors.items()})
    words = (source, "--to", "kohya", "--verify", "--force", "-o", tmp_path / "out.safetensors")
    done = run("lora-convert", *words, "--save-precision", "fp16")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "too small for fp16" in line
    assert "--save-precision bf16 or fp32" in line
    for precision in ("bf16", "fp32"):
        assert run("lora-convert", *words, "--save-precision", precision).returncode == 0


def test_what_half_precision_takes_of_a_change_is_told(tmp_path: Path) -> None:
    """Factors around 1e-7 keep one digit in fp16; around 1e-9 none."""
    output = tmp_path / "out.safetensors"
    for kind in WITH_BIAS:
        for scheme in LYCORIS_SCHEMES:
            small = module(
                kohya(TO_Q), {name: one * np.float32(1e-7) for name, one in WITH_BIAS[kind].items()}
            )
            source = save(tmp_path / "in.safetensors", small)
            words = (source, "--to", scheme, "--force", "-o", output)
            done = run("lora-convert", *words, "--save-precision", "fp16")
            assert done.returncode == 0, done.stderr
            assert "1 module loses more than 1% of its change to numbers too small for fp16" in done.stderr
            assert "--save-precision bf16 or fp32 keeps it" in done.stderr
            done = run("lora-convert", *words, "--save-precision", "bf16")
            assert "loses" not in done.stderr
            source.unlink()


@pytest.mark.parametrize("tensors", [{"diff": numbers(16, 16)}, {"diff_b": BIAS}, lora(), LOHA])
def test_a_change_of_which_half_precision_makes_zeros_is_refused(tensors: Arrays, tmp_path: Path) -> None:
    small = module(kohya(TO_Q), {name: one * np.float32(1e-9) for name, one in tensors.items()})
    source = save(tmp_path / "in.safetensors", small | module(kohya(CONV), lora(16, 144)))
    words = (source, "--to", "kohya", "--save-precision", "fp16")
    refused(source, words, "too small for fp16", "--save-precision bf16 or fp32", tool="lora-convert")
