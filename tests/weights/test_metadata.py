"""What resized and added networks say of themselves, as the web UIs' lists show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import encode, write_tensors
from support.commands import run

KOHYA = Path(__file__).parents[1] / "data" / "formats" / "sd1" / "kohya.safetensors"


def network(path: Path, **metadata: str) -> Path:
    with open_weights(KOHYA) as file:
        write_tensors(path, {key: encode(file.read(key), "F32") for key in file.tensors}, metadata)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with open_weights(path) as file:
        return dict(file.metadata)


def test_a_resized_network_has_a_name_of_its_own(tmp_path: Path) -> None:
    source = network(tmp_path / "a.safetensors", ss_output_name="a", ss_epoch="3")
    assert run("lora-resize", source, "--new-rank", 2, "-o", tmp_path / "small.safetensors").returncode == 0
    found = metadata_of(tmp_path / "small.safetensors")
    assert (found["ss_output_name"], found["ss_epoch"]) == ("small", "3")


@pytest.mark.parametrize("other", ["512x768", "768x768"])
def test_added_networks_carry_what_all_agree_on(other: str, tmp_path: Path) -> None:
    one = network(
        tmp_path / "one.safetensors", ss_output_name="one", ss_resolution="(512, 768)", ss_clip_skip="2"
    )
    more = {"modelspec.resolution": other, "modelspec.encoder_layer": "2"}
    two = network(tmp_path / "two.safetensors", **more)
    done = run("lora-merge", "--networks", one, two, "-o", tmp_path / "both.safetensors")
    assert done.returncode == 0, done.stderr
    found = metadata_of(tmp_path / "both.safetensors")
    assert found["ss_output_name"] == "both"
    assert found["modelspec.encoder_layer"] == "2"
    assert found.get("modelspec.resolution") == ("512x768" if other == "512x768" else None)
    assert found["modelspec.date"]


def test_dotted_names_are_said_not_to_be_read(tmp_path: Path) -> None:
    source = KOHYA.with_name("diffusers_0_20.safetensors")
    done = run("lora-resize", source, "--new-rank", 2, "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0
    assert "note: 34 modules keep dotted names, which A1111 does not read" in done.stderr
    assert "--to kohya writes those that they read" in done.stderr
    done = run("lora-resize", KOHYA, "--new-rank", 2, "-o", tmp_path / "p.safetensors")
    assert "dotted" not in done.stderr
