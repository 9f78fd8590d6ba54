"""Several runs under a launcher: each process takes runs of its own, and none is trained twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from lorapipe_engine.train import sharing  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.launched import processes_of  # noqa: E402
from support.warm import warm_folder  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun has no gloo rendezvous there"),
]

TORCHRUN = ["torchrun", "--nproc_per_node", "2", "--no_python"]
COMMON = """
pretrained_model_name_or_path = "demo"
resolution = 64
network_dim = 2
max_token_length = 75
device = "cpu"
save_precision = "float"
"""
NAMES = ("first", "second", "third")
TIMEOUT = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=4)


def make_runs(folder: Path, data: Path, **more: str) -> list[Path]:
    """A configuration for each name, with other seeds; ``more`` lines of some."""
    files = []
    for seed, name in enumerate(NAMES):
        text = f'{COMMON}train_data_dir = "{data}"\nseed = {seed}\noutput_name = "{name}"\n'
        files.append(folder / f"{name}.toml")
        files[-1].write_text(text + more.get(name, "max_train_steps = 3\n"))
    return files


def start(launcher: list[str], files: list[Path], out: Path, *more: str) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(warm_folder()), os.environ["PATH"]))
    return subprocess.Popen(
        [*launcher, "lora-train", *(file.name for file in files), "--output_dir", str(out), *more],
        cwd=files[0].parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"},
        start_new_session=True,
    )


def run(launcher: list[str], files: list[Path], out: Path, *more: str) -> tuple[int, list[str], list[str]]:
    process = start(launcher, files, out, *more)
    try:
        said, told = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, said.splitlines(), told.splitlines()


def networks(out: Path) -> dict[str, bytes]:
    """All but what the header says of times."""
    return {path.name: path.read_bytes()[-40_000:] for path in sorted(out.glob("*.safetensors"))}


def test_each_run_is_trained_once_and_is_what_it_is_alone(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data)
    status, said, told = run(TORCHRUN, files, tmp_path / "shared")
    assert status == 0, told
    assert run([], files, tmp_path / "alone")[0] == 0
    assert networks(tmp_path / "shared") == networks(tmp_path / "alone")
    assert sorted(said) == sorted(map(str, (tmp_path / "shared").glob("*.safetensors")))
    for name in NAMES:
        assert sum(line.startswith(f"{name}.toml: run ") for line in told) == 1
        assert sum(line.startswith(f"{name}.toml  ") for line in told) == 1  # in the table
    assert sum(line.startswith("3 of 3 runs to do") for line in told) == 1

    status, again, told = run(TORCHRUN, files, tmp_path / "shared")
    assert status == 0, told
    assert sorted(again) == sorted(said)
    assert (
        sum(line.endswith("done before") for line in told) == 6
    )  # in the plan, and where they are passed by


def test_a_run_that_fails_leaves_the_others_theirs(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data, first="max_train_steps = 3\nunet_lr = 1e30\nmax_grad_norm = 0\n")
    status, _, told = run(TORCHRUN, files, tmp_path / "out")
    assert status == 1
    assert {name.partition("-")[0].partition(".")[0] for name in networks(tmp_path / "out")} >= {
        "second",
        "third",
    }
    assert sum("1 of 3 runs failed; the same command tries them again" in line for line in told) == 1, told
    assert ["first.toml", "failed"] in [line.split() for line in told], told  # in the table


def test_stopped_they_go_on_where_they_were(data: Path, tmp_path: Path) -> None:
    long = dict.fromkeys(NAMES[:2], "max_train_steps = 60\n")
    files = make_runs(tmp_path, data, **long)
    process = start(TORCHRUN, files, tmp_path / "out")
    wait_for_steps(process, tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=TIMEOUT)
    for name in NAMES[:2]:
        assert f"{name}.toml: stopped after step " in told
        assert (tmp_path / "out" / f"{name}.state").exists()
    status, _, lines = run(TORCHRUN, files, tmp_path / "out", "--max_train_steps", "60")
    assert status == 0, lines
    for name in NAMES[:2]:
        assert any(line.startswith(f"{name}.toml: going on after step ") for line in lines)


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@ON_LINUX
@pytest.mark.parametrize("worker", [None, 1])
def test_interrupted_twice_at_once_all_are_saved(worker: int | None, data: Path, tmp_path: Path) -> None:
    """By Ctrl-C twice, of which a launcher makes two signals in a row, and by a signal to one process."""
    files = make_runs(tmp_path, data, **dict.fromkeys(NAMES, "max_train_steps = 2000\n"))
    process = start(TORCHRUN, files, tmp_path / "out")
    wait_for_steps(process, tmp_path / "out")
    began = time.monotonic()
    if worker is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(process.pid, number)
    else:
        os.kill(processes_of(tmp_path / "out")[worker], signal.SIGTERM)
    _, told = process.communicate(timeout=TIMEOUT)
    assert time.monotonic() - began < 9
    for name in NAMES[:2]:
        assert f"{name}.toml: stopped after step " in told, told
        assert (tmp_path / "out" / f"{name}.state").exists()
    assert "third.toml: run" not in told


@ON_LINUX
def test_started_anew_by_the_launcher_no_run_is_left_out(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data, **dict.fromkeys(NAMES[:2], "max_train_steps = 40\n"))
    process = start([*TORCHRUN[:1], "--max_restarts", "1", *TORCHRUN[1:]], files, tmp_path / "out")
    wait_for_steps(process, tmp_path / "out")
    os.kill(processes_of(tmp_path / "out")[1], signal.SIGKILL)
    said, told = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, told
    assert {name for name in NAMES if f"{tmp_path / 'out' / name}.safetensors" in said.splitlines()} == set(
        NAMES
    )


@ON_LINUX
def test_without_the_launcher_they_end_in_a_line(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data, **dict.fromkeys(NAMES[:2], "max_train_steps = 30\n"))
    process = start(TORCHRUN, files, tmp_path / "out")
    wait_for_steps(process, tmp_path / "out")
    process.kill()
    _, told = process.communicate(timeout=TIMEOUT)  # until the last of its processes has closed its end
    assert "lora-train: error: the launcher has ended; the same command goes on" in told
    assert "unexpected error" not in told
    assert all((tmp_path / "out" / f"{name}.safetensors").exists() for name in NAMES[:2])


def wait_for_steps(process: subprocess.Popen[str], out: Path) -> None:
    """Until the first two runs have taken some steps."""
    metrics = [out / f"{name}.metrics.jsonl" for name in NAMES[:2]]
    until = time.monotonic() + TIMEOUT
    while not all(path.exists() and path.read_bytes().count(b"\n") > 3 for path in metrics):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_who_is_done_waits_for_a_run_of_days(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    clock = iter(range(0, 100 * 86400, 86400))

    def sleep(seconds: float) -> None:
        if next(clock) == 8 * 86400:
            store.add("trained", 1)

    monkeypatch.setattr(sharing, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=sleep))
    sharing.Sharing(2, 1, store).wait("trained")
    assert store.add("trained", 0) == 2


def test_a_dry_run_is_told_once(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data)
    status, said, told = run(TORCHRUN, files, tmp_path / "out", "--dry_run")
    assert (status, len(said)) == (0, 4), told
    status, said, told = run(TORCHRUN, files[:1], tmp_path / "out", "--max_train_epochs", "2", "--dry_run")
    assert status == 0, told
    assert said[0].startswith("1. first.toml: 4 steps in 2 epochs, 4 pictures")  # of two processes together


def test_what_cannot_begin_is_told_once(data: Path, tmp_path: Path) -> None:
    files = make_runs(tmp_path, data, second='max_train_steps = 3\nresume = "none.state"\n')
    status, _, told = run(TORCHRUN, files, tmp_path / "out")
    assert status != 0
    assert sum("second.toml: error: " in line for line in told) == 1, told
    assert sum("1 of 3 runs cannot begin, so none was begun" in line for line in told) == 1
    assert not any("super().main" in line for line in told)
    assert not (tmp_path / "out").exists()
