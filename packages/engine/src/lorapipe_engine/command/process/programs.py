"""Other commands of the house, run as programs: found beside this Python, never imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.progress import BARS, QUIET

# The commands that others run, and where pip finds their packages in the repository.
PACKAGES = {"lora-sample": "./packages/engine[train]", "lora-grid": "./packages/inspect[grid]"}
# What a launcher tells the processes of one run; a program that one of them starts is none of these.
_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


@dataclass(frozen=True)
class Ran:
    """What a program wrote to stdout, and its exit status. Its stderr went to ours, or is what it ``told``."""

    output: str
    status: int
    told: str = ""


def find_program(name: str) -> Path | None:
    """The program of this name that was installed for this Python, as pip puts it; None where there is none."""
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    folders.append(Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))))
    for folder in dict.fromkeys(folders):
        if program := shutil.which(name, path=str(folder)):
            return Path(program)
    return None


def _own_card() -> dict[str, str]:
    """What lets a program see the card alone that a launcher's process has, and which would be its first otherwise."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if not number:
        return {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": visible[number] if number < len(visible) else str(number)}


def run_program(program: Path, words: Sequence[str], *, listen: bool = False) -> Ran:
    """Run a program with its words until it ends; quiet where we are, or where its lines would stand among those of
    others. It ends with us where we are interrupted. ``listen``: keep what it tells on stderr."""
    environment = {key: value for key, value in os.environ.items() if key not in _LAUNCHER}
    environment |= _own_card()
    quiet = ["--quiet"] if QUIET.get() or not BARS.get() else []
    done = subprocess.run(
        [str(program), *words, *quiet],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if listen else None,
        env=environment,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Ran(done.stdout, done.returncode, done.stderr or "")
