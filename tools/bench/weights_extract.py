"""lora-extract from a pair of checkpoints of real sizes, the tuned one being the base and a known change of rank 24."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files


def jobs(files: Files, work: Path) -> list[Job]:
    """SD 1.5 at rank 32, by signal, and with convolutions; the UNet of SDXL at rank 32."""
    tool = shutil.which("lora-extract", path=str(Path(sys.executable).parent)) or "lora-extract"
    output = work / "extracted.safetensors"
    rows = (
        ("extract SD1.5 rank 32, 264 modules", files.checkpoint("sd1"), (), 20.0, 500),
        ("extract SD1.5 by signal, 264 modules", files.checkpoint("sd1"), ("--dim", "signal"), 20.0, 500),
        (
            "extract SD1.5 rank 32 + conv 16, 350 modules",
            files.checkpoint("sd1"),
            ("--conv-dim", "16"),
            None,
            None,
        ),
        ("extract SDXL's UNet rank 32, 722 modules", files.unet("sdxl"), (), 75.0, 700),
    )
    return [
        Job(
            name=name,
            command=(tool, str(files.tuned(base)), str(base), "-o", str(output), *options),
            copied=base,
            outputs=(output,),
            goal_seconds=seconds,
            goal_megabytes=megabytes,
            peer=_peer(files, base, output) if "sd1" in base.name and not options else (),
        )
        for name, base, options, seconds, megabytes in rows
    ]


def _peer(files: Files, base: Path, output: Path) -> tuple[str, ...]:
    paths = ("--model_tuned", str(files.tuned(base)), "--model_org", str(base), "--save_to", str(output))
    return (
        "networks/extract_lora_from_models.py",
        *paths,
        "--dim",
        "32",
        "--min_diff",
        "0",
        "--device",
        "cpu",
    )
