"""Two runs into one output: one trains, the other is refused; a dead run keeps nobody out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.errors import ConfigError, OutputError  # noqa: E402
from lorapipe_engine.settings import RunSettings  # noqa: E402
from lorapipe_engine.train.results import claim  # noqa: E402
from lorapipe_engine.train.results.claim import claim_file, claimed  # noqa: E402

TIMES = int(os.environ.get("LORAPIPE_STARTS", "2"))
TIMEOUT = 180.0
needs_signals = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=3, repeats=1, seed=3)
    return root


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = (
        "--base demo --max_token_length 75 --network_dim 2 --device cpu --output_name net --resolution 64 "
        "--save_every_n_steps 1 --state_interval 0 --save_precision float"
    )
    code = "import sys; from lorapipe_engine.cli import train_main; sys.argv[0] = 'lora-train'; train_main()"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            *words.split(),
            "--train_data_dir",
            str(data),
            "--output_dir",
            str(out),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(out: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + TIMEOUT
    while not list(out.glob(pattern)):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"no {pattern}: {process.communicate()[1]}")
        time.sleep(0.01)


@pytest.mark.slow
def test_two_started_at_once(data: Path, tmp_path: Path) -> None:
    calm = start(data, tmp_path / "calm", "--max_train_steps", "8")
    assert calm.communicate(timeout=TIMEOUT)[1] is not None
    assert calm.returncode == 0
    expected = load_file(tmp_path / "calm/net.safetensors")
    for number in range(TIMES):
        out = tmp_path / str(number)
        both = [start(data, out, "--max_train_steps", "8", "--overwrite") for _ in range(2)]
        told = {process.pid: process.communicate(timeout=TIMEOUT)[1] for process in both}
        first, second = sorted(both, key=lambda process: process.returncode)
        assert (first.returncode, second.returncode) == (0, 2), told
        assert f"process {first.pid} of this machine ({socket.gethostname()}), begun 20" in told[second.pid]
        rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [*range(1, 9)]
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "calm").iterdir()}
        assert len(list((out / "logs").iterdir())) == 1
        tensors = load_file(out / "net.safetensors")
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.slow
@needs_signals
def test_a_killed_run_keeps_nobody_out(data: Path, tmp_path: Path) -> None:
    words = ["--max_train_steps", "2000"]
    killed = start(data, tmp_path, *words)
    wait_for(tmp_path, "net.state", killed)
    refused = start(data, tmp_path, *words)
    assert f"process {killed.pid} " in refused.communicate(timeout=TIMEOUT)[1]
    assert refused.returncode == 2
    killed.kill()
    killed.communicate()
    assert claim_file(RunSettings(output_dir=tmp_path, output_name="net")).exists()
    left = set(tmp_path.glob("*.tmp"))  # of the file that it was writing; it stays for some hours
    next_one = start(data, tmp_path, *words)
    wait_for(tmp_path, "logs/*/*", next_one)
    lines = []
    assert next_one.stderr
    for line in next_one.stderr:
        lines.append(line)
        if "going on after step" in line:
            break
    next_one.send_signal(signal.SIGTERM)
    _, rest = next_one.communicate(timeout=TIMEOUT)
    assert next_one.returncode == 143, (lines, rest)
    assert not claim_file(RunSettings(output_dir=tmp_path, output_name="net")).exists()
    assert set(tmp_path.glob("*.tmp")) <= left


# ------------------------------------------------------------------------------------------ shared folders


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    monkeypatch.setattr(claim, "WATCH", 0.6)
    monkeypatch.setattr(claim, "BEAT", 0.05)
    monkeypatch.setattr(claim, "SETTLE", 0.2)
    return RunSettings(output_dir=tmp_path, output_name="net")


def elsewhere(run: RunSettings, beat: int = 0) -> None:
    row = {"process": 7, "host": "far", "began": "2026-01-02 03:04:05+00:00", "token": "00", "beat": beat}
    claim_file(run).write_text(json.dumps(row))


def test_an_output_is_claimed_once(run: RunSettings) -> None:
    with claimed(run):
        with (
            pytest.raises(
                ConfigError, match=rf"net: process {os.getpid()} of this machine .*another --output_name"
            ),
            claimed(run),
        ):
            pass
        with claimed(RunSettings(output_dir=run.output_dir, output_name="other")):
            pass
    with claimed(run):
        pass
    assert not list(run.output_dir.iterdir())


def test_another_machine_that_gives_signs_of_life_is_respected(run: RunSettings) -> None:
    """Its lock is not seen here, as on a network file system without locks across machines."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.05):
            count += 1
            elsewhere(run, count)

    elsewhere(run)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="process 7 of the machine far, begun 2026-01-02"), claimed(run):
            pass
    finally:
        ended.set()
        thread.join()


def test_another_machine_that_has_died_is_not(run: RunSettings, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere(run)
    with claimed(run):
        assert json.loads(claim_file(run).read_text())["host"] == socket.gethostname()
    assert "process 7 of the machine far" in capsys.readouterr().err


def test_without_locks_signs_of_life_decide(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "try_lock_file", lambda _: None)
    with claimed(run), pytest.raises(ConfigError, match="trains into this output"), claimed(run):
        pass
    elsewhere(run)
    with claimed(run):
        pass


def test_without_locks_one_of_two_at_once_has_it(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "try_lock_file", lambda _: None)
    both, refused = threading.Barrier(2), []

    def take() -> None:
        both.wait()
        try:
            with claimed(run):
                time.sleep(0.5)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"process": "x"}', "\udcff", "0" * 9000, "[" * 4000])
def test_what_others_left_under_the_name(text: str, run: RunSettings) -> None:
    claim_file(run).write_bytes(os.fsencode(text))
    with claimed(run):
        pass
    assert not claim_file(run).exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_no_link_is_followed(run: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> None:
    victim = tmp_path_factory.mktemp("home") / "precious"
    victim.write_text("precious")
    claim_file(run).symlink_to(victim)
    with ExitStack() as stack, pytest.raises(OutputError, match="not a file that these tools made"):
        stack.enter_context(claimed(run))
    assert victim.read_text() == "precious"
