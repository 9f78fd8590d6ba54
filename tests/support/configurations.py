"""Configurations of real users in a place of their own: their bases, pictures and folders, made small.

The files in tests/data/train_configs hold values as people published them; DATA, OUT, WORK and CFG stand for folders.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).parents[1] / "data/train_configs"
FOREIGN = CONFIGS.parent / "foreign_configs"  # files of other programs
NAMES = sorted({path.name.partition(".")[0] for path in CONFIGS.iterdir()})
# What presets leave to the GUI's other fields.
_BASE = ("--base", "WORK/bases/sdxl/sdxl.safetensors")
_FOLDERS = (*_BASE, "--train_data_dir", "DATA/img", "--output_dir", "OUT")
LEFT_OPEN = {
    "c111": [*_FOLDERS],
    "civitai.json": [*_FOLDERS],
    "lora_scripts_template.toml": [*_FOLDERS],
    "lora_scripts_saved.toml": [*_BASE, "--output_dir", "OUT"],
    "kohya_ss_2023_february.json": [*_BASE],
    "easy_scripts_lycoris.toml": [*_BASE, "--output_dir", "OUT"],
}


@dataclass(frozen=True)
class Place:
    """The folder in which the configurations' folders are."""

    root: Path

    def words(self, name: str) -> list[str]:
        """The command line of a configuration."""
        words: list[str] = []
        for form in ("config.toml", "config.json"):
            if (path := self.root / "CFG" / f"{name}.{form}").exists():
                words += ["--config_file", str(path.relative_to(self.root))]
        arguments = self.root / "CFG" / f"{name}.args.json"
        return [*words, *json.loads(arguments.read_text())] if arguments.exists() else words


def make_place(root: Path, side: int) -> Place:
    """The configurations with a tiny SDXL base, four folders of two pictures of ``side`` pixels, prompts and a
    metadata file."""
    from support import tiny  # needs torch, which who reads the configurations alone has no use for

    shutil.copytree(CONFIGS, root / "CFG")
    tiny.save_checkpoint(tiny.build("sdxl"), root / "WORK/bases/sdxl/sdxl.safetensors")
    for number, folder in enumerate(
        ("DATA/img/2_mira girl", "DATA/img/1_style", "DATA/flat", "DATA/reg/1_girl")
    ):
        draw(root / folder, number, side)
    (root / "WORK/prompts.txt").write_text("mira --w 64 --h 64 --s 1\n")
    entries = {f"2_mira girl/{index}": {"caption": "mira", "tags": "red, blue"} for index in range(2)}
    (root / "x").mkdir()
    (root / "x/meta_lt.json").write_text(json.dumps(entries))
    return Place(root)


def draw(folder: Path, number: int, side: int) -> None:
    """Two pictures with captions."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    for index in range(2):
        pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("mira, red hair, smile\n")
