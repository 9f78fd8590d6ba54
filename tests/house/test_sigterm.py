"""SIGTERM ends every command as Ctrl-C does, with 143: nothing is left half written.

Each command does real work and gets a real signal right before it opens or renames a file: at the first of them, at the
last, and somewhere between.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from lorapipe_engine.files.tensorfile import open_tensors
from support import terminating
from support.hostile import fill
from support.warm import warm_folder

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
COMMANDS = {
    str(command.name): command
    for command in runpy.run_path(str(ROOT / "tools/options_page.py"))["commands"]()
}
TRAIN = (
    "--base demo --train_data_dir data --resolution 64 --max_train_steps 3 --save_every_n_steps 1 --network_dim 2 "
    "--max_token_length 75 --device cpu --output_dir out --state_interval 0"
)
ROWS = {
    "lora-clean": "imgs",
    "lora-repeats": "imgs -o dataset --kind character",
    "lora-check": "imgs --html report.html",
    "lora-check buckets": "imgs",
    "lora-train": TRAIN,
    "lora-inspect zeros": "net.safetensors",
    "lora-inspect keys": "net.safetensors",
    "lora-inspect meta": "net.safetensors --set a=b -o other.safetensors",
    "lora-inspect norms": "net.safetensors",
    "lora-inspect ranks": "net.safetensors",
    "lora-inspect hash": "net.safetensors",
    "lora-inspect diff": "net.safetensors second.safetensors",
    "lora-inspect compat": "net.safetensors second.safetensors",
    "lora-inspect delta": "net.safetensors -o delta.safetensors",
    "lora-inspect check": "net.safetensors",
    "lora-inspect curves": "run.metrics.jsonl -o curves.svg",
    "lora-grid": "pictures --html page.html",
    "lora-merge": "--networks net.safetensors second.safetensors -o sum.safetensors",
    "lora-convert": "net.safetensors -o other.safetensors --to diffusers",
    "lora-resize": "net.safetensors -o small.safetensors --new-rank 1",
    "lora-extract": "tuned.safetensors base.safetensors -o made.safetensors --dim 2",
    "lora-sample": "--base demo --prompt mina --x steps:2,3 --size 64x64 --device cpu",
    "lora-tag": f"pictures --model {DATA / 'tagger/model'} --no-cache",
}


def test_every_command_has_a_row() -> None:
    assert ROWS.keys() == COMMANDS.keys()


def make_world(place: Path) -> Path:
    """Everything that the rows name."""
    fill(place / "imgs")
    fill(place / "data/2_cat")
    fill(place / "pictures")
    for path in (place / "pictures").glob("*.txt"):
        path.unlink()
    shutil.copy(DATA / "extract/base.safetensors", place)
    shutil.copy(DATA / "extract/tuned.safetensors", place)
    shutil.copy(DATA / "merge/sd15_lora_A.safetensors", place / "net.safetensors")
    shutil.copy(DATA / "merge/sd15_lora_B.safetensors", place / "second.safetensors")
    steps = (json.dumps({"step": step, "loss/average": 1 / step}) for step in range(1, 9))
    (place / "run.metrics.jsonl").write_text("\n".join(steps) + "\n")
    return place


def run(name: str, place: Path, moment: int) -> tuple[subprocess.CompletedProcess[str], int]:
    """The command in ``place``, and how many moments there were."""
    command = COMMANDS[name]
    module = str(command.callback.__module__)  # type: ignore[union-attr]
    attribute = next(key for key, value in vars(sys.modules[module]).items() if value is command)
    counted = place.parent / "moments"
    done = subprocess.run(
        [
            warm_folder() / "warm-python" if name in ("lora-train", "lora-sample") else sys.executable,
            terminating.__file__,
            module,
            attribute,
            str(moment),
            str(counted),
            *ROWS[name].split(),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={
            **os.environ,
            "XDG_STATE_HOME": str(place.parent / "state"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        timeout=300,
    )
    return done, int(counted.read_text())


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def check_whole(place: Path, before: dict[str, bytes], calm: dict[str, bytes]) -> None:
    """Every file is as it was or as the whole run leaves it; what has a clock in it can be read."""
    for name, data in contents(place).items():
        assert not name.endswith(".tmp"), name
        if data in (before.get(name), calm.get(name)):
            continue
        # What lora-clean keeps of the files that it changes has a name of the clock's.
        if "/.lorapipe/" in name and (data in before.values() or name.endswith(".jsonl")):
            continue
        assert name not in before, name
        if name.endswith((".safetensors", ".state")):
            with open_tensors(place / name) as file:
                assert file.tensors
        else:
            # Logs, which grow.
            assert name == "out/last.metrics.jsonl" or "tfevents" in name, name


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
@pytest.mark.parametrize("name", ROWS)
def test_terminated_anywhere(name: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    before = contents(world)
    place = shutil.copytree(world, tmp_path / "place")
    done, moments = run(name, place, 0)
    assert done.returncode in (0, 1), done.stderr
    assert "error:" not in done.stderr
    assert moments
    calm = contents(place)
    between = random.SystemRandom().randint(1, moments)
    for wanted in sorted({1, between, moments}):
        moment, reached = wanted, 0
        for _ in range(5):
            if reached >= moment:
                break
            # Threads may come by fewer files than in the calm run; then it is the last that was reached.
            moment = reached or wanted
            shutil.rmtree(place)
            shutil.copytree(world, place)
            done, reached = run(name, place, moment)
            assert reached, done.stderr
        told = f"moment {moment} of {moments}: {done.stderr}"
        # Other threads may come by more files while the signal is on its way.
        assert reached >= moment, told
        assert done.returncode == 143, told
        assert done.stderr.splitlines()[-1] == f"{name}: terminated", told
        assert "Traceback" not in done.stderr
        check_whole(place, before, calm)
