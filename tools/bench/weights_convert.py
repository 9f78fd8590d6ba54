"""lora-convert of a network for SDXL, copied byte for byte and with strengths put into the factors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files


def jobs(files: Files, work: Path) -> list[Job]:
    """SDXL at dim 32, to ComfyUI's names and to diffusers', as fp16."""
    tool = shutil.which("lora-convert", path=str(Path(sys.executable).parent)) or "lora-convert"
    source, output = files.lora("sdxl", 32), work / "converted.safetensors"
    rows = (
        ("convert SDXL dim 32 to comfy, 986 modules", ("--to", "comfy")),
        ("convert SDXL dim 32 to diffusers, fp16", ("--to", "diffusers", "--save-precision", "fp16")),
    )
    return [
        Job(
            name=name,
            command=(tool, str(source), *words, "-o", str(output), "-q"),
            start=(tool, str(files.module(source)), *words, "-o", str(output), "-q"),
            copied=source,
            outputs=(output,),
            goal_ratio=6,
            goal_megabytes=200,
        )
        for name, words in rows
    ]
