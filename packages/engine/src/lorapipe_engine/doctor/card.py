"""Torch, the driver and the card: what they can do together, and what the card's compute capability means."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.doctor.tested import numbers

GIB = 2**30
SMALL = 6.0  # GiB free; with less than that only small sizes fit
# The oldest driver for a CUDA of this number, on Linux and Windows. Source: CUDA's release notes, "minor version
# compatibility".
DRIVERS = {"11": ("450.80", "452.39"), "12": ("525.60", "528.33"), "13": ("580.65", "580.65")}
OLD_CARDS = "pip install torch --index-url https://download.pytorch.org/whl/cu126 --force-reinstall"
NO_TOOLKIT = "no CUDA toolkit is needed, only the driver"


def torch_finding(told: Mapping[str, Any]) -> Finding:
    """Whether torch can be imported."""
    error = told.get("error")
    if error is None:
        built = f"CUDA {told['cuda']}" if told.get("cuda") else "the CPU"
        built = f"ROCm {told['hip']}" if told.get("hip") else built
        return Finding("torch", "ok", f"{told['version']} can be imported, built for {built}")
    mend = "pip install torch --force-reinstall"
    if sys.platform == "win32" and ("DLL" in error or "WinError" in error):
        mend = "install the Microsoft Visual C++ runtime: https://aka.ms/vs/17/release/vc_redist.x64.exe"
    return Finding("torch", "stop", f"cannot be imported ({error})", mend)


def driver() -> tuple[str, str] | None:
    """The first card's name and the driver's version, as the driver's own program tells them; None without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    words = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(words, capture_output=True, timeout=30, stdin=subprocess.DEVNULL).stdout.decode(
            "utf-8", "replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, comma, number = (text.splitlines() or [""])[0].rpartition(",")
    return (name.strip(), number.strip()) if comma and re.match(r"\s*\d", number) else None


def card_findings(told: Mapping[str, Any], asked_device: str | None) -> Iterator[Finding]:
    """Driver and cards, for what torch told of itself. ``asked_device``: the option ``--device``."""
    if "error" in told:
        return
    by_driver = driver()
    problem = _driver_problem(told, by_driver, asked_device)
    if problem is not None:
        yield problem
        return
    if by_driver is not None:
        yield Finding("driver", "ok", f"{by_driver[1]}; {NO_TOOLKIT}")
    cards = told.get("cards") or []
    if not cards:
        yield _no_card(told, asked_device)
    for number, row in enumerate(cards):
        yield from one_card(number, row, told)


def _driver_problem(
    told: Mapping[str, Any], by_driver: tuple[str, str] | None, asked_device: str | None
) -> Finding | None:
    if by_driver is None or told.get("hip") or asked_device == "cpu":
        return None
    name, number = by_driver
    cuda = told.get("cuda")
    if not cuda:
        return Finding(
            "torch",
            "stop",
            f"{told['version']} is built for the CPU, and would not use the {name}",
            "pip install torch --index-url https://download.pytorch.org/whl/cu128 --force-reinstall",
        )
    least = DRIVERS.get(str(cuda).split(".")[0], ("0", "0"))[sys.platform == "win32"]
    if numbers(number) < numbers(least):
        return Finding(
            "driver",
            "stop",
            f"{number} of the {name} is older than {least}, which torch's CUDA {cuda} needs",
            f"install a newer driver from nvidia.com/drivers; {NO_TOOLKIT}",
        )
    return None


def _no_card(told: Mapping[str, Any], asked_device: str | None) -> Finding:
    if told.get("mps"):
        return Finding("card", "note", "an Apple GPU (mps), slower than an NVIDIA card")
    if asked_device is not None and asked_device.startswith("cuda"):
        return Finding(
            "card", "stop", f"none, and --device {asked_device} asks for one", "leave --device out"
        )
    return Finding(
        "card",
        "note",
        "none that torch can use: runs are on the CPU, hours for what a card does in minutes",
        "the demo base trains on it; for others take a machine with an NVIDIA card of 8 GiB or more",
    )


def one_card(number: int, row: list[Any], told: Mapping[str, Any]) -> Iterator[Finding]:
    """A card: name, total and free bytes, and what its compute capability means."""
    name, major, minor, total, free = row
    label = f"card {number}"
    here = f"{name}, {total / GIB:.1f} GiB, {free / GIB:.1f} free, compute capability {major}.{minor}"
    if told.get("cuda") and not has_kernels(told.get("architectures") or [], major, minor):
        yield Finding(label, "stop", f"{here}: this torch has no kernels for it", OLD_CARDS)
        return
    yield Finding(label, "ok", f"{here}: {capability(major, minor, triton=bool(told.get('triton')))}")
    if free / GIB < SMALL:
        yield Finding(
            label,
            "note",
            f"{free / GIB:.1f} GiB are free",
            "close what else uses the card, and try --vram auto, which fits the run to it",
        )


def has_kernels(architectures: list[str], major: int, minor: int) -> bool:
    """Whether a list like sm_75, sm_90, compute_90 has code for a card: of its own generation, not newer than it, or
    such as the driver translates."""
    if not architectures:
        return True
    for word in architectures:
        kind, _, text = word.partition("_")
        digits = text.rstrip("af")
        if not digits.isdigit():
            continue
        of, step = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and of == major and step <= minor:
            return True
        if kind == "compute" and (of, step) <= (major, minor):
            return True
    return False


def capability(major: int, minor: int, *, triton: bool) -> str:
    """What a compute capability means for training."""
    number = (major, minor)
    words = []
    if number >= (8, 0):
        words.append("bf16")
    elif number >= (7, 0):
        words.append("fp16, no bf16")
    else:
        words.append("fp16 as a form only, counted no faster; no bf16")
    words.append("fp8 counted too" if number >= (8, 9) else "fp8 as a form of weights only")
    if number < (7, 0):
        words.append("no Triton")
    elif not triton:
        words.append("Triton is not installed, so fused kernels are left out")
    words.append("8-bit optimizers" if number >= (6, 0) else "no 8-bit optimizers")
    return ", ".join(words)
