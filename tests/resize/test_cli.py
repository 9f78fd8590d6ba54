"""lora-resize as users call it: files, folders, pipes, and everything that can go wrong with them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.hashes import data_hash
from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors
from lorapipe_engine.networks.describe import Network, describe_network

TOOL = Path(sys.executable).with_name("lora-resize")


def described(path: Path) -> Network:
    with open_tensors(path) as file:
        return describe_network(file)


def shell(line: str, folder: Path, **extra: Any) -> subprocess.CompletedProcess[bytes]:
    path = f"{TOOL.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, **extra)


def test_the_guides_own_options(network: Path, tmp_path: Path, resize: Any) -> None:
    output = tmp_path / "out.safetensors"
    words = "--save_precision bf16 --new_rank 32 --device cuda --dynamic_method sv_fro --dynamic_param 0.9"
    done = resize("--model", network, "--save_to", output, *words.split())
    assert (done.code, done.lines) == (0, [str(output)])
    with open_tensors(output) as file:
        assert {info.dtype for name, info in file.tensors.items() if "lora_" in name[-20:]} == {"BF16"}
        assert all(info.dtype == "F32" for name, info in file.tensors.items() if name.endswith(".alpha"))
    assert set(described(output).ranks) < set(range(2, 8))


def test_metadata_and_hashes_are_rewritten(network: Path, tmp_path: Path, resize: Any) -> None:
    fixed, dynamic = tmp_path / "fixed.safetensors", tmp_path / "dynamic.safetensors"
    resize(network, "-o", fixed, "--new-rank", 4)
    resize(network, "-o", dynamic, "--new-rank", 8, "--method", "sv_fro", "--param", 0.95)
    found = described(fixed).metadata
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2.0")
    assert found["ss_training_comment"] == "resized to 4 from 8; first run"
    assert found["sshs_model_hash"] == data_hash(fixed)
    assert found["ss_network_module"] == "networks.lora"
    found = described(dynamic).metadata
    assert found["ss_training_comment"] == "resized with sv_fro 0.95 from 8; first run"
    assert found["sshs_model_hash"] == data_hash(dynamic)


def test_equal_inputs_give_equal_bytes(network: Path, tmp_path: Path, resize: Any) -> None:
    for name in ("a", "b"):
        resize(network, "-o", tmp_path / f"{name}.safetensors", "--new-rank", 3)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_json_tells_what_was_lost(network: Path, tmp_path: Path, resize: Any) -> None:
    output = tmp_path / "out.safetensors"
    done = resize(network, "-o", output, "--new-rank", 3, "--precision", "bf16", "--json")
    record = json.loads(done.out)
    assert record["path"] == str(output)
    assert record["bytes"] == {"before": network.stat().st_size, "after": output.stat().st_size}
    rows = record["ranks"]
    assert [row["rank"] for row in rows] == [{"before": 8, "after": 3}] * 2
    for row in rows:
        kept, lost = row["retained"]["fro"], row["error"]["truncation"]
        assert kept**2 + lost**2 == pytest.approx(1)
        assert 0 < row["error"]["cast"] < 0.01 < lost
    lost = sum((row["norm"] * row["error"]["truncation"]) ** 2 for row in rows)
    total = sum(row["norm"] ** 2 for row in rows)
    assert record["error"]["truncation"] == pytest.approx((lost / total) ** 0.5)


def test_report_is_a_table_of_all_modules(network: Path, tmp_path: Path, resize: Any) -> None:
    done = resize(network, "--dry-run", "--new-rank", 3, "--report")
    assert done.code == 0
    assert "8 -> 3" in done.lines[1]
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in "".join(done.lines)
    assert done.lines[-1].startswith("total: 2 of 2 modules resized")
    assert not list(tmp_path.glob("*.tmp"))
    assert list(tmp_path.iterdir()) == [network]


@pytest.mark.parametrize("size", [3000, 4000, 5000])
def test_target_size_is_kept_and_used(size: int, network: Path, tmp_path: Path, resize: Any) -> None:
    output = tmp_path / "out.safetensors"
    done = resize(network, "-o", output, "--target-size", size)
    assert done.code == 0, done.err
    assert output.stat().st_size <= size
    # One more rank of the larger module would not have fitted.
    assert output.stat().st_size > size - 1024 - 2 * 80 - 400


def test_a_size_that_cannot_be_reached_is_an_error(network: Path, tmp_path: Path, resize: Any) -> None:
    done = resize(network, "-o", tmp_path / "out.safetensors", "--target-size", "1KB")
    assert done.code == 2
    assert "even at rank 1" in done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-size", "20 bananas"], "not a size"),
        (["--target-size", "20MB", "--method", "sv_fro", "--param", "0.9"], "leave out --dynamic-method"),
        (["--method", "sv_fro"], "--dynamic-param is missing"),
        (["--new-rank", "0"], "--new-rank"),
        (["--save-precision", "int8"], "--save-precision"),
        (["--new-renk", "4"], "--new-rank"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, network: Path, resize: Any) -> None:
    done = resize(network, "-o", network.with_name("out.safetensors"), *words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not network.with_name("out.safetensors").exists()


def test_an_output_is_needed(network: Path, resize: Any) -> None:
    assert "give -o FILE" in resize(network, "--new-rank", 4).err


# -------------------------------------------------------------------------------- folders and pipes


def test_a_folder_becomes_a_folder(network: Path, tmp_path: Path, resize: Any) -> None:
    shutil.copy(network, tmp_path / "second.safetensors")
    done = resize(tmp_path, "-o", tmp_path / "small", "--new-rank", 2)
    assert done.code == 0, done.err
    assert done.lines == [str(tmp_path / "small" / name) for name in (network.name, "second.safetensors")]
    assert all(described(Path(line)).ranks == {2: 2} for line in done.lines)


def test_folders_in_a_folder_keep_their_places(network: Path, tmp_path: Path, resize: Any) -> None:
    source, output = tmp_path / "runs", tmp_path / "runs" / "small"
    for name in ("one/a", "two/deep/a", "b"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(network, source / f"{name}.safetensors")
    done = resize(source, "--recursive", "-o", output, "--new-rank", 2)
    places = ["b.safetensors", "one/a.safetensors", "two/deep/a.safetensors"]
    assert (done.code, sorted(done.lines)) == (0, [str(output / name) for name in places])
    done = resize(source, "-r", "-o", output, "--new-rank", 2, "--force")
    assert (done.code, len(done.lines)) == (0, 3)
    assert f"note: 3 networks in {output} are results, and not resized again" in done.err
    done = resize(source / "two", "-o", output, "--new-rank", 2)
    assert done.code == 2
    assert "has no .safetensors files; -r looks into its folders" in done.err


def test_one_bad_file_does_not_stop_the_others(network: Path, tmp_path: Path, resize: Any) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    done = resize(bad, network, "-o", tmp_path / "small", "--new-rank", 2)
    assert done.code == 1
    assert done.lines == [str(tmp_path / "small" / network.name)]
    assert f"error: {bad}: " in done.err


def test_two_inputs_of_one_name_are_refused_before_any_work(
    network: Path, tmp_path: Path, resize: Any
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(network, other)
    done = resize(network, other / network.name, "-o", tmp_path / "small", "--new-rank", 2)
    assert done.code == 2
    assert "would both become" in done.err


def test_paths_and_records_come_through_stdin(network: Path, tmp_path: Path, resize: Any) -> None:
    shutil.copy(network, tmp_path / "second.safetensors")
    record = json.dumps({"path": str(tmp_path / "second.safetensors"), "verdict": "ok"})
    done = resize("-o", tmp_path / "small", "--new-rank", 2, stdin=f"{network}\n\n{record}\n".encode())
    assert done.code == 0, done.err
    assert [Path(line).name for line in done.lines] == [network.name, "second.safetensors"]


def test_nothing_on_stdin_is_an_error(tmp_path: Path, resize: Any) -> None:
    done = resize("-o", tmp_path / "small", "--new-rank", 2)
    assert done.code == 2
    assert "no networks to resize" in done.err


def test_a_stream_is_the_file(network: Path, tmp_path: Path, resize: Any) -> None:
    resize(network, "-o", tmp_path / "out.safetensors", "--new-rank", 3)
    done = resize("-", "-o", "-", "--new-rank", 3, stdin=network.read_bytes())
    assert done.out == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.slow
def test_networks_flow_through_pipes(network: Path, tmp_path: Path, resize: Any) -> None:
    first = f"lora-resize {shlex.quote(network.name)} --new-rank 4 -o -"
    line = f"{first} | lora-resize - --new-rank 2 -o 'b c.safetensors'"
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "b c.safetensors\n"
    resize(network, "-o", tmp_path / "direct.safetensors", "--new-rank", 2)
    with (
        open_tensors(tmp_path / "b c.safetensors") as piped,
        open_tensors(tmp_path / "direct.safetensors") as direct,
    ):
        for name in direct.tensors:
            assert np.allclose(np.abs(piped.read(name)), np.abs(direct.read(name)), atol=2e-3), name


@pytest.mark.slow
def test_a_list_of_names_with_spaces_is_a_pipe(network: Path, tmp_path: Path) -> None:
    shutil.copy(network, tmp_path / "another one.safetensors")
    done = shell("ls *.safetensors | lora-resize --new-rank 2 -o small/", tmp_path)
    assert done.returncode == 0, done.stderr
    written = sorted(p.name for p in (tmp_path / "small").iterdir())
    assert written == ["another one.safetensors", network.name]


@pytest.mark.slow
def test_a_full_pipe_is_one_line(network: Path, tmp_path: Path) -> None:
    done = shell(f"lora-resize -q {shlex.quote(network.name)} --new-rank 4 -o - > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert b"No space left" in done.stderr


# -------------------------------------------------------------------------------- nothing gets lost


def test_existing_files_need_force(network: Path, tmp_path: Path, resize: Any) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")
    done = resize(network, "-o", output, "--new-rank", 2)
    assert done.code != 0
    assert "--force" in done.err
    assert output.read_bytes() == b"precious"
    assert resize(network, "-o", output, "--new-rank", 2, "--force").code == 0
    assert described(output).ranks == {2: 2}


def test_the_input_itself_is_replaced_only_by_force(network: Path, resize: Any) -> None:
    before = network.read_bytes()
    done = resize(network, "-o", network, "--new-rank", 2)
    assert "is the input itself" in done.err
    assert network.read_bytes() == before
    assert resize(network, "-o", network, "--new-rank", 2, "--force").code == 0
    assert described(network).ranks == {2: 2}


def test_a_full_disk_leaves_the_old_file(
    network: Path, tmp_path: Path, resize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"precious")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    done = resize(network, "-o", output, "--new-rank", 2, "--force")
    assert done.code == 1
    assert "No space left" in done.err
    assert output.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == [network.name, output.name]


@pytest.mark.parametrize("output", ["missing/out.safetensors", "/dev/full"])
def test_outputs_that_cannot_be_are_found_before_the_work(
    output: str, network: Path, tmp_path: Path, resize: Any
) -> None:
    done = resize(network, "-o", tmp_path / output, "--new-rank", 2)
    assert done.code != 0
    assert done.err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(network: Path, tmp_path: Path, resize: Any) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    done = resize(network, "-o", folder / "out.safetensors", "--new-rank", 2)
    assert done.code == 1
    assert done.err.count("\n") == 1


def test_values_that_are_not_finite_are_named(tmp_path: Path, resize: Any) -> None:
    path, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    up = np.ones((4, 2), np.float32)
    up[1, 1] = np.inf
    down = np.ones((2, 5), np.float32)
    good = {"lora_unet_y.lora_up.weight": np.ones((4, 2), np.float32), "lora_unet_y.lora_down.weight": down}
    write_tensors(path, {"lora_unet_x.lora_up.weight": up, "lora_unet_x.lora_down.weight": down} | good)
    done = resize(path, "-o", output, "--new-rank", 1)
    assert done.code == 2
    assert "NaN or infinite values in lora_unet_x.lora_up.weight" in done.err
    assert not output.exists()
    done = resize(path, "-o", output, "--new-rank", 1, "--allow-nonfinite")
    assert done.code == 0
    assert described(output).modules["lora_unet_x"].rank == 2
    assert described(output).modules["lora_unet_y"].rank == 1


def test_values_too_large_for_fp16_are_an_error(tmp_path: Path, resize: Any) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"lora_unet_x.lora_up.weight": np.full((4, 2), 1e9, np.float32)}
    write_tensors(path, tensors | {"lora_unet_x.lora_down.weight": np.full((2, 5), 1e9, np.float32)})
    done = resize(path, "-o", tmp_path / "b.safetensors", "--new-rank", 1, "--precision", "fp16")
    assert done.code == 2
    assert "do not fit F16" in done.err
    assert resize(path, "-o", tmp_path / "b.safetensors", "--new-rank", 1, "--precision", "bf16").code == 0


def test_what_is_no_network_is_said_to_be_so(tmp_path: Path, resize: Any) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"model.diffusion_model.out.2.weight": encode(np.ones((4, 4)), "F16")})
    done = resize(path, "-o", tmp_path / "b.safetensors", "--new-rank", 1)
    assert done.code == 2
    assert f"{path}: this is" in done.err


# -------------------------------------------------------------------------------- a light command


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "numpy", "torch", "PIL"
    code = f"import sys, lorapipe_resize.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]).strip() == b"[]"


@pytest.mark.slow
def test_a_run_does_not_import_torch(network: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lorapipe_resize.cli import lora_resize\n"
        "try:\n    lora_resize.main()\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules)"
    )
    words = [str(network), "-o", str(tmp_path / "out.safetensors"), "--new-rank", "2", "--device", "cuda"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == "0 False"
