"""The processes of a launcher wait for each other: not in silence, not for ever, and not against a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from lorapipe_engine.cli import lora_train
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sample_cli import lora_sample
from lorapipe_engine.train import meeting
from lorapipe_engine.train.processes import GONE, Processes, ProcessLost, reason_of
from support.called import status_of
from support.dataset import draw_data
from support.warm import warm_folder

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun has no gloo rendezvous there"),
]


def variables(count: int) -> dict[str, str]:
    """Those of the first of ``count`` processes, at a port that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a launcher that started nobody else."""
    for name, value in variables(2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(meeting, "SOON", 0.2)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("number", ["0", "1"])
def test_nobody_is_waited_for_for_ever(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the first, and by another to which the first does not come."""
    monkeypatch.setenv("RANK", number)
    monkeypatch.setattr(meeting, "MEETING", timedelta(seconds=2))
    with pytest.raises(
        ConfigError, match=r"2 processes .* joined: .*; where no launcher was started, unset WORLD_SIZE$"
    ):
        meeting.meet()
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("waiting until all 2 processes")]) == 1


@pytest.mark.usefixtures("alone")
def test_a_signal_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MEETING", timedelta(seconds=12))
    began = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        meeting.meet()
    assert time.monotonic() - began < 8


# What NCCL 2.28 says through torch 2.11, and gloo of its first process.
REASONS = {
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60": "NCCL error in: /pytorch/torch/csrc/"
    "distributed/c10d/NCCLUtils.cpp:93, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.28.9\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60",
    "NCCL error: unhandled system error": "NCCL error: unhandled system error\nLast error:\n\n",
    "[enforce fail at device.cc:84] Unable to find address for: nope": "[enforce fail at device.cc:84] "
    "Unable to find address for: nope",
    "no reason is told": "",
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_librarys_reason_is_one_line(reason: str) -> None:
    assert reason_of(REASONS[reason]) == reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "NCCL error in: x.cpp:93, unhandled cuda error\nLast error:\nFailed to CUDA calloc 608 bytes",
            "the exchange between the cards has failed: Failed to CUDA calloc 608 bytes",
        ),
        ("NCCL error in: x.cpp:93, remote process exited or there was a network error", GONE),
        ("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", GONE),
    ],
)
def test_a_failed_exchange_is_not_taken_for_a_process_that_ended(text: str, told: str) -> None:
    with pytest.raises(ProcessLost, match=re.escape(told)), Processes(count=2).losses_told():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shape"), Processes(count=2).losses_told():
        raise RuntimeError("shape '[2]' is invalid")


LOOKS = {
    lora_sample: "--base demo --prompt mina --size 64x64 --steps 2 --device cpu --dry-run",
    lora_train: "--base demo --print_config",
}
OF_TWO = "in the environment, but 2 processes have 0 to 1; where no launcher was started, unset WORLD_SIZE"
NO_NUMBER = "in the environment is no number of processes; where no launcher was started, unset WORLD_SIZE"


@pytest.mark.parametrize(
    ("count", "number", "line"),
    [
        ("2", None, f"RANK: nothing {OF_TWO}"),
        ("2", "2", f"RANK: '2' {OF_TWO}"),
        ("2", "-1", f"RANK: '-1' {OF_TWO}"),
        ("2", "x", f"RANK: 'x' {OF_TWO}"),
        ("many", "0", f"WORLD_SIZE: 'many' {NO_NUMBER}"),
        ("0", "0", f"WORLD_SIZE: '0' {NO_NUMBER}"),
        ("", "0", f"WORLD_SIZE: '' {NO_NUMBER}"),
    ],
)
def test_variables_without_a_sense_are_refused(
    count: str,
    number: str | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.delenv("RANK", raising=False)
    if number is not None:
        monkeypatch.setenv("RANK", number)
    for command, words in LOOKS.items():
        assert status_of(command, *words.split()) == 2
        assert capsys.readouterr() == ("", f"{command.name}: error: {line}\n")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("port", ["abc", "-1", "65536", ""])
def test_a_port_that_is_none_is_refused(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(
        ConfigError, match=f"^MASTER_PORT: '{port}' in the environment is no port; where no launcher"
    ):
        meeting.meet()


@pytest.mark.parametrize("count", [None, "1"])
def test_a_number_alone_silences_nobody(
    count: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count is not None:
        monkeypatch.setenv("WORLD_SIZE", count)
    for command, words in LOOKS.items():
        assert status_of(command, *words.split()) == 0
        assert any(capsys.readouterr())
    assert status_of(lora_train, "--print_config", "--unet_lr", "x") == 2
    assert capsys.readouterr().err.startswith("lora-train: error: unet_lr")


COMMANDS = {
    "lora-sample": "--base demo --prompt mina --size 64x64 --steps 2 --device cpu --output-dir out",
    "lora-train": "--base demo --resolution 64 --train_data_dir data --device cpu --output_dir out",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_as_they_are_told_to(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw_data(tmp_path_factory, pictures=2).rename(tmp_path / "data")
    process = subprocess.Popen(
        [warm_folder() / name, *COMMANDS[name].split()],
        cwd=tmp_path,
        env={**os.environ, **variables(2)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("waiting until all 2 processes"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, told
    assert told[-1] == f"{name}: terminated\n"
    assert not list((tmp_path / "out").glob("*.png"))
