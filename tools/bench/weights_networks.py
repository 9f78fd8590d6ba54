"""lora-merge of two networks: 64 + 64 ranks to the best 32, and exactly to 128."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files

RATIOS = ("0.7", "0.5")


def jobs(files: Files, work: Path) -> list[Job]:
    """SD 1.5 at dim 64, twice."""
    tool = shutil.which("lora-merge", path=str(Path(sys.executable).parent)) or "lora-merge"
    output = work / "added.safetensors"
    sources = files.lora("sd1", 64), files.lora("sd1", 64, seed=1)
    words = [f"{source}:{ratio}" for source, ratio in zip(sources, RATIOS, strict=True)]
    command = (tool, "--networks", *words, "-o", str(output))
    return [
        Job(
            name="networks SD1.5 dim 64 + 64 -> 32, svd",
            command=(*command, "--mode", "svd", "--new-rank", "32"),
            copied=sources[0],
            outputs=(output,),
            goal_seconds=4.0,
            goal_megabytes=300,
            peer=_peer("svd_merge_lora.py", sources, output, ("--new_rank", "32", "--device", "cpu")),
        ),
        Job(
            name="networks SD1.5 dim 64 + 64 -> 128, exact",
            command=command,
            copied=sources[0],
            outputs=(output,),
            peer=_peer("merge_lora.py", sources, output, ("--concat",)),
        ),
    ]


def _peer(script: str, sources: tuple[Path, ...], output: Path, options: tuple[str, ...]) -> tuple[str, ...]:
    models = ("--models", *map(str, sources), "--ratios", *RATIOS)
    types = ("--precision", "float", "--save_precision", "fp16")
    return (f"networks/{script}", "--save_to", str(output), *models, *types, *options)
