"""``lora-train --doctor``: broken set-ups, each made for real or told by a stub, and what is said of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.doctor.card import capability, has_kernels
from lorapipe_engine.doctor.hub import hub_cache
from lorapipe_engine.doctor.tested import NEWEST_PYTHON, OLDEST_PYTHON, TRAINING, is_older, numbers

ROOT = Path(__file__).resolve().parents[2]
START = "from lorapipe_engine.cli import train_main; train_main()"
# What a torch tells of itself; the real one takes seconds to import.
TORCH = """
__version__ = "2.13.0"
class version: cuda, hip = {cuda!r}, None
class cuda:
    def is_available(): return {cards!r} != []
    def get_arch_list(): return ["sm_75", "sm_90"]
    def device_count(): return len({cards!r})
    def mem_get_info(number): return 5 * 2**30, 8 * 2**30
    def get_device_properties(number):
        class row: name, major, minor, total_memory = {cards!r}[number]
        return row
class backends:
    class mps:
        def is_available(): return False
"""


class Machine:
    """A machine that can be broken: what lies in ``stubs`` is found before all else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stubs = folder, folder / "stubs"
        self.stubs.mkdir()
        (folder / "bin").mkdir()
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.stubs), os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        self.torch()

    def torch(self, cuda: str | None = None, cards: Any = ()) -> None:
        """Put a torch of this kind in the place of the real one."""
        (self.stubs / "torch.py").write_text(TORCH.format(cuda=cuda, cards=list(cards)))

    def at_start(self, code: str) -> None:
        """Run this before every Python."""
        (self.stubs / "sitecustomize.py").write_text(code)

    def driver(self, number: str) -> None:
        """Put a card with a driver of this number in."""
        program = self.folder / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, {number}'\n")
        program.chmod(0o755)

    def examined(self, *words: str) -> dict[str, dict[str, str]]:
        """What the doctor finds, by name; the exit status is checked against it."""
        out = self.folder / "out"
        command = [sys.executable, "-c", START, "--doctor", "--json", "--output_dir", str(out), *words]
        ended = subprocess.run(command, capture_output=True, text=True, env=self.env, check=False)
        assert ended.stdout, ended.stderr
        told = json.loads(ended.stdout)
        assert not out.exists()
        stops = [row for row in told["findings"] if row["state"] == "stop"]
        assert ended.returncode == (1 if stops else 0), ended.stderr
        assert told["sound"] is not bool(stops)
        assert all("\n" not in row["text"] and (row["mend"] or row["name"] == "base") for row in stops)
        return {row["name"]: row for row in told["findings"]}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.slow
def test_no_torch(machine: Machine) -> None:
    machine.at_start("import sys; sys.modules['torch'] = None")
    rows = machine.examined("--base", "demo")
    assert rows["torch"]["state"] == "stop"
    assert "ModuleNotFoundError" in rows["torch"]["text"]
    assert rows["trial"]["text"].startswith("left out")


@pytest.mark.slow
def test_a_torch_that_is_too_old(machine: Machine) -> None:
    about = machine.stubs / "torch-1.13.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n")
    command = [sys.executable, "-c", START, "--doctor", "--output_dir", str(machine.folder), "--base", "demo"]
    ended = subprocess.run(command, capture_output=True, text=True, env=machine.env, check=False)
    assert ended.returncode == 1
    assert "stop  torch: 1.13.1 is older than 2.8; pip install 'torch>=2.8' --upgrade\n" in ended.stdout


@pytest.mark.slow
def test_a_torch_that_ends_python_at_its_import(machine: Machine) -> None:
    (machine.stubs / "torch.py").write_text("import os; os._exit(3)")
    rows = machine.examined("--base", "demo")
    assert rows["torch"]["text"] == "cannot be imported (Python itself ended with 3 at its import)"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stub is a shell's script")
def test_a_torch_for_the_cpu_beside_a_card(machine: Machine) -> None:
    machine.driver("580.82")
    rows = machine.examined("--base", "demo")
    assert rows["torch"]["state"] == "stop"
    assert "built for the CPU, and would not use the NVIDIA GeForce RTX 3060" in rows["torch"]["text"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stub is a shell's script")
def test_an_old_driver(machine: Machine) -> None:
    machine.driver("470.199.02")
    machine.torch(cuda="12.8")
    rows = machine.examined("--base", "demo")
    assert rows["driver"]["state"] == "stop"
    assert "470.199.02 of the NVIDIA GeForce RTX 3060 is older than 525.60" in rows["driver"]["text"]
    assert "no CUDA toolkit is needed" in rows["driver"]["mend"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the stub is a shell's script")
def test_a_card_that_torch_has_no_kernels_for_and_one_that_it_has(machine: Machine) -> None:
    machine.driver("580.82")
    machine.torch(cuda="13.0", cards=[("GTX 1080", 6, 1, 8 * 2**30), ("RTX 2070", 7, 5, 8 * 2**30)])
    rows = machine.examined("--base", "demo")
    assert rows["card 0"]["state"] == "stop"
    assert "cu126" in rows["card 0"]["mend"]
    assert rows["card 1"]["mend"].startswith("close what else uses the card, and try --vram auto")


@pytest.mark.slow
def test_no_room_on_the_disk(machine: Machine) -> None:
    machine.at_start(
        "import shutil; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(2**30, 2**30, 1000)"
    )
    rows = machine.examined("--base", "demo")
    assert rows["output_dir"]["state"] == "stop"
    assert "has only 0.00 GiB free" in rows["output_dir"]["text"]


@pytest.mark.slow
def test_no_hub(machine: Machine) -> None:
    del machine.env["HF_HUB_OFFLINE"]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        machine.env.pop(name, None)
    machine.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    rows = machine.examined("--base", "nobody/nothing")
    assert rows["hub"]["state"] == "stop"
    assert rows["hub"]["text"].startswith(
        "http://127.0.0.1:9 does not answer: Connection refused; and nobody/nothing"
    )
    machine.env["https_proxy"] = "http://me:secret@127.0.0.1:9"
    rows = machine.examined("--base", "demo")
    assert rows["hub"]["state"] == "note"
    assert "https by http://127.0.0.1:9" in rows["hub"]["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["--optimizer_type", "AdamW8bit"], "stop"),
        (["--quantize_base", "nf4"], "stop"),
        ([], "note"),
    ],
)
def test_no_bitsandbytes(machine: Machine, words: list[str], state: str) -> None:
    machine.at_start("import sys; sys.modules['bitsandbytes'] = None")
    rows = machine.examined("--base", "demo", *words)
    assert rows["bitsandbytes"]["state"] == state
    assert rows["bitsandbytes"]["mend"].startswith("pip install bitsandbytes")


@pytest.mark.slow
def test_packages_of_two_installations(machine: Machine) -> None:
    (machine.stubs / "torch.py").unlink()
    (machine.stubs / "torch").mkdir()
    (machine.stubs / "torch" / "__init__.py").write_text("import os; os._exit(3)")
    rows = machine.examined("--base", "demo")
    assert rows["mixed packages"]["state"] == "note"
    assert f"torch from {machine.stubs}" in rows["mixed packages"]["text"]
    assert "--system-site-packages" in rows["mixed packages"]["mend"]


@pytest.mark.slow
def test_no_tokenizer(machine: Machine) -> None:
    base = machine.folder / "base.safetensors"
    base.touch()
    rows = machine.examined("--base", str(base))
    assert rows["tokenizer"]["state"] == "stop"
    (machine.folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (machine.folder / "tokenizer" / name).touch()
    assert machine.examined("--base", str(base))["tokenizer"]["state"] == "ok"


@pytest.mark.slow
def test_no_right_to_write(machine: Machine) -> None:
    closed = machine.folder / "closed"
    closed.mkdir(mode=0o500)
    place = Path("/sys/kernel") if hasattr(os, "geteuid") and os.geteuid() == 0 else closed
    if not place.is_dir():
        pytest.skip("root may write everywhere here")
    rows = machine.examined("--base", "demo", "--output_dir", str(place / "run"))
    assert rows["output_dir"]["state"] == "stop"
    assert f"{place} cannot be written to" in rows["output_dir"]["text"]


@pytest.mark.slow
def test_a_python_that_is_too_old(machine: Machine) -> None:
    machine.at_start("import sys; sys.version_info = (3, 10, 4, 'final', 0)")
    rows = machine.examined("--base", "demo")
    assert rows["python"]["state"] == "stop"
    assert rows["python"]["text"] == "3.10.4 is too old"


@pytest.mark.slow
def test_a_base_that_is_not_there(machine: Machine) -> None:
    assert machine.examined("--base", "nowhere.safetensors")["base"]["state"] == "stop"


@pytest.mark.slow
def test_a_sound_machine_trains_two_steps(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lorapipe_demo")
    command = [sys.executable, "-c", START, "--doctor", "--base", "demo", "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout
    assert re.search(
        r"ok    trial: two steps on the demo base took \d+ s\nnothing will stop a run\n$", ended.stdout
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_the_doctor_excludes(machine: Machine) -> None:
    for words in (["--json"], ["--doctor", "--dry-run"], ["--doctor", "--vary", "network_dim=4,8"]):
        ended = subprocess.run(
            [sys.executable, "-c", START, *words], capture_output=True, env=machine.env, check=False
        )
        assert ended.returncode == 2


# ------------------------------------------------------------------------ what it knows


def test_tested_versions_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower().replace("_", "-"): number for name, number in pinned.items()}
    project = tomllib.loads((ROOT / "packages/engine/pyproject.toml").read_text())["project"]
    rows = [*project["optional-dependencies"]["train"], *project["dependencies"]]
    least = dict(row.split(">=") for row in rows)
    assert {one.name: one.tested for one in TRAINING} == {one.name: pinned[one.name] for one in TRAINING}
    assert {one.name: one.least for one in TRAINING} == {one.name: least[one.name] for one in TRAINING}
    assert {one.name for one in TRAINING} == {*least} - {"click", "tqdm"}
    assert project["requires-python"] == f">={'.'.join(map(str, OLDEST_PYTHON))}"
    assert NEWEST_PYTHON >= OLDEST_PYTHON


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [("2.8.0", "2.8", False), ("2.13.0+cpu", "2.8", False), ("2.7.1", "2.8", True), ("10.1", "9.9", False)],
)
def test_versions(version: str, least: str, older: bool) -> None:
    assert is_older(version, least) is older
    assert numbers("2.8.0a1+cu128") == (2, 8, 0)


@pytest.mark.parametrize(
    ("architectures", "card", "runs"),
    [
        (["sm_75", "sm_80", "sm_90"], (8, 6), True),
        (["sm_75", "sm_80", "sm_90"], (6, 1), False),
        (["sm_75", "sm_86"], (8, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["sm_90a", "sm_100"], (10, 0), True),
        (["sm_90"], (12, 0), False),
    ],
)
def test_kernels_of_a_card(architectures: list[str], card: tuple[int, int], runs: bool) -> None:
    assert has_kernels(architectures, *card) is runs


def test_what_a_capability_means() -> None:
    assert capability(8, 6, triton=True).startswith("bf16, fp8 as a form of weights only")
    assert "no bf16, fp8 as a form of weights only, no Triton, 8-bit optimizers" in capability(
        6, 1, triton=True
    )
    assert "no 8-bit optimizers" in capability(5, 2, triton=True)
    assert "fp8 counted too" in capability(8, 9, triton=True)


def test_the_hub_cache_is_where_the_client_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "own"))
    assert hub_cache() == tmp_path / "own"
