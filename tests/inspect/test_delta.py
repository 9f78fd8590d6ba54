"""``lora-inspect delta`` against the golden networks, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.commands import run

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDEN = sorted((DATA / "networks").glob("*.safetensors"))
NEEDY = ("dora", "oft", "glora", "ia3")


def delta(*words: object) -> subprocess.CompletedProcess[str]:
    return run("lora-inspect", "delta", *words)


def split(golden: Path, folder: Path) -> dict[str, Array]:
    """The golden file as a network and a base of their own; the changes by name and multiplier."""
    network, base, changes = {}, {}, {}
    with open_tensors(golden) as file:
        prefix = next(key for key in file.tensors if key.startswith(("lora_unet_", "oft_unet_"))).split("_")[
            0
        ]
        for key in file.tensors:
            first, *rest = key.split(".")
            if first == "base":
                base[f"{prefix}_unet_{rest[0]}.{rest[1]}"] = file.read(key)
            elif first.startswith(f"{prefix}_unet_"):
                network[key] = file.read(key)
            elif "lycoris_training_rule" not in key:
                suffix = ".bias" if rest[1] == "delta_b" else ""
                changes[f"{prefix}_unet_{rest[0]}{suffix}{'@0.7' if key.endswith('.m0.7') else ''}"] = (
                    file.read(key)
                )
    write_tensors(folder / "net.safetensors", network)
    write_tensors(folder / "base.safetensors", base)
    return changes


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_golden(golden: Path, tmp_path: Path) -> None:
    changes = split(golden, tmp_path)
    for multiplier, ending in (("1", ""), ("0.7", "@0.7")):
        wanted = {
            name.removesuffix("@0.7"): row for name, row in changes.items() if ("@" in name) == bool(ending)
        }
        if not wanted:
            continue
        out = tmp_path / f"out{multiplier}.safetensors"
        done = delta(
            tmp_path / "net.safetensors",
            "--base",
            tmp_path / "base.safetensors",
            "--multiplier",
            multiplier,
            "-o",
            out,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{out}\n"
        tolerance = 2e-5 if "oft" in golden.stem else 1e-5
        with open_tensors(out) as found:
            assert set(found.tensors) == set(wanted)
            for name, row in wanted.items():
                assert found.tensors[name].shape == row.shape
                assert np.abs(found.read(name) - row).max() <= tolerance * np.abs(row).max(), name


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_without_a_base(golden: Path, tmp_path: Path) -> None:
    changes = split(golden, tmp_path)
    out = tmp_path / "out.safetensors"
    done = delta(tmp_path / "net.safetensors", "-o", out)
    if any(word in golden.stem for word in NEEDY):
        assert done.returncode == 2
        assert "--base" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not out.exists()
        return
    assert done.returncode == 0, done.stderr
    with open_tensors(out) as found:
        for name, row in changes.items():
            if "@" not in name:
                np.testing.assert_allclose(
                    found.read(name).reshape(row.shape), row, atol=1e-5 * np.abs(row).max()
                )


@pytest.mark.parametrize("golden", GOLDEN[:1], ids=lambda path: path.stem)
def test_what_programs_read(golden: Path, tmp_path: Path) -> None:
    split(golden, tmp_path)
    network, base, out = (
        tmp_path / "net.safetensors",
        tmp_path / "base.safetensors",
        tmp_path / "out.safetensors",
    )
    done = delta(network, "--base", base, "-o", out, "--json")
    record = json.loads(done.stdout)
    with open_tensors(out) as file:
        assert record == {
            "path": str(out),
            "source": str(network),
            "base": str(base),
            "multiplier": 1.0,
            "precision": "fp32",
            "changes": len(file.tensors),
        }
    done = delta(network, "--base", base, "--json", "-n")
    assert json.loads(done.stdout) == record | {"path": None}


def test_a_checkpoint_as_base(tmp_path: Path) -> None:
    """Names are brought together as in a merge, also for the rows of a fused tensor."""
    case = DATA / "merge"
    out = tmp_path / "out.safetensors"
    done = delta(case / "sd21_lora_A.safetensors", "--base", case / "sd21_base_fp16.safetensors", "-o", out)
    assert done.returncode == 0, done.stderr
    with open_tensors(out) as found, open_tensors(case / "sd21_lora_A.safetensors") as network:
        assert len(found.tensors) == sum(key.endswith("lora_up.weight") for key in network.tensors)
        assert all(info.dtype == "F32" for info in found.tensors.values())


def test_a_folder_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    done = delta(tmp_path / "runs", "-n")
    assert done.returncode == 2
    assert done.stderr.endswith("runs: has no .safetensors files\n")


def test_refusals(tmp_path: Path) -> None:
    network, base = DATA / "merge" / "sd15_lora_A.safetensors", DATA / "merge" / "sd15_base_fp16.safetensors"
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    for words, status, told in (
        ((network, "-o", out), 1, "exists already"),
        ((base, "-o", out, "--force"), 2, "not a LoRA"),
        ((network, "--base", tmp_path / "no.safetensors", "-o", out, "--force"), 2, "no such file"),
        ((network, "-o", tmp_path / "no" / "out.safetensors"), 1, "does not exist"),
    ):
        done = delta(*words)
        assert done.returncode == status, done.stderr
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    assert out.read_text() == "old"
    assert delta(network, "-o", tmp_path / "new.safetensors", "--dry-run").returncode == 0
    assert not (tmp_path / "new.safetensors").exists()
    assert "changes at 1" in delta(network, "-n").stderr
    done = delta(network)
    assert (done.returncode, "give the file to write" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--multiplier", "nan"), "multiplier: nan is not a usable number"),
        (("--multiplier", "1e400"), "multiplier: inf is not a usable number"),
        (("--multiplier", "0,7"), "multiplier: expected a number, got '0,7'"),
        (
            ("--multiplier", "1e38", "--save-precision", "fp16"),
            "does not fit F16; give --save-precision bf16",
        ),
    ],
)
def test_changes_that_are_no_numbers_are_not_written(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    split(next(path for path in GOLDEN if path.stem.startswith("lora")), tmp_path)
    for more in ((), ("--dry-run",)):
        out = tmp_path / "out.safetensors"
        done = delta(tmp_path / "net.safetensors", "-o", out, *words, *more)
        assert done.returncode == 2
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not out.exists()


def test_values_of_a_file_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    split(next(path for path in GOLDEN if path.stem.startswith("lora")), tmp_path)
    with open_tensors(tmp_path / "net.safetensors") as file:
        tensors = {key: file.read(key) for key in file.tensors}
    key = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[key] = np.full_like(tensors[key], np.nan)
    write_tensors(tmp_path / "burnt.safetensors", tensors)
    done = delta(tmp_path / "burnt.safetensors", "-o", tmp_path / "out.safetensors")
    assert done.returncode == 2
    assert f"'{key.partition('.')[0]}': its change has values that are not finite numbers" in done.stderr


def test_help_shows_a_number_without_bounds_as_one() -> None:
    text = delta("--help").stdout
    assert "--multiplier FLOAT" in text
    assert "<=" not in text
