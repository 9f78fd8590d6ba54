"""The folder in which a page's commands are run: what pages speak of lies there, as small as it may be."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, PngImagePlugin

from lorapipe_demo.concept import draw_concept
from lorapipe_engine.models.bases import demo_base
from support.pages import Block, Command, Done, files_of, run_in_terminal, shortened

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
MAKE = f"python {ROOT / 'tools/bench/make_weights.py'}"
SMALL = 1 << 20  # bytes of what is copied from home to home, so that a command may write into it
# Rates and rank of the demo, for eight steps.
OPTIONS: dict[str, object] = {
    "pretrained_model_name_or_path": "demo",
    "train_data_dir": "dataset",
    "output_dir": "run",
    "train_batch_size": 4,
    "network_dim": 32,
    "unet_lr": 2.5e-3,
    "text_encoder_lr": 2e-3,
    "max_train_steps": 8,
    "seed": 1,
}
# Networks by name, with what each has of its own.
NETWORKS: dict[str, dict[str, object]] = {
    "mirelune": {},
    "demo": {"network_args": ["conv_dim=8"], "max_train_steps": 4},
    "loha": {"algorithm": "loha", "network_dim": 4, "max_train_steps": 2},
    "dora": {
        "network_module": "lycoris.kohya",
        "network_args": ["algo=lora", "dora_wd=True"],
        "max_train_steps": 2,
    },
}
# As kohya_ss saves one.
PRESET = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "animefull.safetensors",
    "train_data_dir": "dataset",
    "output_dir": "mira",
    "output_name": "mira",
    "max_resolution": "64,64",
    "epoch": 2,
    "lr_warmup": 10,
    "network_dim": 8,
    "network_alpha": 4,
    "seed": 0,
}
CAPTIONS = {
    "01": "1girl, solo, long_hair, white_shirt, shirt, simple_background, rating:safe, ^_^",
    "02": "2girls, blue_hair, red_hair, white_background, smile, smile",
    "03": "1girl, grey_hair, looking_at_viewer, watermark",
}


def make_home(home: Path) -> None:
    """Make everything that pages speak of. Raises RuntimeError, with what it said, if a command fails."""
    _pictures(home)
    _bases(home)
    _networks(home)
    _trained(home)
    _cells(home)
    # Pages name scripts from the clone's root.
    for name in ("tests", "tools"):
        (home / name).symlink_to(ROOT / name)


def copy_home(home: Path, folder: Path, page: Path) -> Path:
    """A home for one page: what all have, and the files that the page shows. For the guide bare pictures are all."""
    if page.name == "guide.md":
        shutil.copytree(home / "imgs", folder / "imgs")
        return folder
    shutil.copytree(home, folder, symlinks=True, copy_function=_copied)
    if page.name == "datasets.md":  # begins with a folder that it draws
        for name in ("imgs", "dataset"):
            shutil.rmtree(folder / name)
    for name, text in files_of(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run_block(block: Block, home: Path) -> Iterator[tuple[Command, Done]]:
    """Each command of a block with what it did, one after the other."""
    for command in block.commands:
        yield command, run_in_terminal(shortened(command.text, block.marks), home, home)


def _copied(source: str, target: str) -> None:
    """Large files are linked: no command writes into a file that it did not make."""
    if Path(source).stat().st_size < SMALL:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _run(command: str, home: Path) -> None:
    done = run_in_terminal(command, home, home)
    if done.status:
        raise RuntimeError("\n".join((command, *done.lines)))


def _pictures(home: Path) -> None:
    """Bare pictures, a dataset of them, two concepts, one with faults, and three captions in need of cleaning."""
    draw_concept(home, "mirelune", pictures=8, repeats=2, seed=1)
    (home / "2_mirelune").rename(home / "imgs")
    shutil.copytree(home / "imgs", home / "dataset/2_mirelune")
    shutil.copytree(home / "dataset", home / "demo-run/dataset")
    for caption in (home / "imgs").glob("*.txt"):
        caption.unlink()
    draw_concept(home, "mirelune", pictures=16, repeats=1, seed=2)
    (home / "1_mirelune").rename(home / "held-out")
    for name, count in (("maid", 16), ("nekochan", 76)):
        (home / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            os.link(home / "imgs/000.png", home / "pictures" / name / f"{number}.png")
    faulty = home / "faulty/10_mirelune"
    shutil.copytree(home / "dataset/2_mirelune", faulty)
    (faulty / "005.txt").write_text("1girl, solo, smile, forest\n", encoding="utf-8")
    with Image.open(faulty / "002.png") as picture:
        picture.convert("RGB").save(faulty / "008.jpg", quality=90)
    shutil.copy(faulty / "002.txt", faulty / "008.txt")
    (home / "mayuri").mkdir()
    (home / "gallery").mkdir()
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        for folder in ("mayuri", "gallery"):
            shutil.copy(home / f"imgs/00{number}.png", home / folder / f"{name}.png")
        (home / "mayuri" / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
        tags = {
            "tags_general": caption.split(", "),
            "tags_character": ["shiina_mayuri"],
            "category": "danbooru",
        }
        (home / "gallery" / f"{name}.png.json").write_text(json.dumps(tags), encoding="utf-8")
    (home / "wild").mkdir()
    (home / "wild/background.txt").write_text("forest\nbeach\ncity\n", encoding="utf-8")
    (home / "preset.json").write_text(json.dumps(PRESET), encoding="utf-8")


def _bases(home: Path) -> None:
    """The demo's base under the names that pages give to a base of the reader's, its tokenizer, and odd ones."""
    shutil.copytree(demo_base().parent / "tokenizer", home / "tokenizer")
    shutil.copy(demo_base(), home / "base.safetensors")
    for name in ("demo", "animefull", "rf", "a"):
        os.link(home / "base.safetensors", home / f"{name}.safetensors")
    shutil.copy(DATA / "people/sd1_base.safetensors", home / "model.safetensors")
    shutil.copy(DATA / "people/base_scaled_fp8.safetensors", home / "fp8.safetensors")
    _run(f"{MAKE} tuned.safetensors tuned base.safetensors && ln tuned.safetensors b.safetensors", home)
    _run(f"{MAKE} sdxl.safetensors hole sdxl", home)


def _networks(home: Path) -> None:
    """Two networks of SD 1.5's layers, dim 64; a broken one, one of convolutions, one in diffusers' names, saves."""
    _run(f"{MAKE} style.safetensors lora sd1 64 0 0", home)
    _run(f"{MAKE} mina.safetensors lora sd1 64 0 1", home)
    for name, source in (
        ("sample", "inspect/sample"),
        ("mixed", "formats/sd1/kohya"),
        ("pipeline", "formats/sd1/diffusers_save_lora_weights"),
        ("sdxl_lora", "formats/sdxl/kohya"),
        *((f"mina-00000{number}", f"average/epoch-00000{number}") for number in (1, 2, 3)),
    ):
        shutil.copy(DATA / f"{source}.safetensors", home / f"{name}.safetensors")


def _trained(home: Path) -> None:
    """A network of the pictures with the save of its first epoch, and two of other algorithms."""
    folder = home / "configurations"
    folder.mkdir()
    for name, own in NETWORKS.items():
        options = {**OPTIONS, "output_name": name, **own}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    _run(f"lora-train {' '.join(f'configurations/{name}.toml' for name in NETWORKS)}", home)
    shutil.rmtree(folder)
    shutil.copy(home / "run/mirelune.safetensors", home)
    (home / "demo-run/networks").mkdir()
    (home / "run/demo.safetensors").rename(home / "demo-run/networks/mirelune.safetensors")
    for name in ("loha", "dora"):
        (home / f"run/{name}.safetensors").rename(home / f"{name}.safetensors")
    for name in ("slow", "fast"):
        (home / name).mkdir()
        shutil.copy(home / "run/mirelune.metrics.jsonl", home / name)
    for name in NETWORKS.keys() - {"mirelune"}:
        for path in (home / "run").glob(f"{name}*"):
            path.unlink()


def _cells(home: Path) -> None:
    """The demo's epochs, drawn (``tests/data/epochs.zip``), each with A1111's parameters in it, and a list of them."""
    (home / "cells").mkdir()
    with zipfile.ZipFile(DATA / "epochs.zip") as archive:
        records = [json.loads(line) for line in archive.read("cells.jsonl").splitlines()]
        for record in records:
            network = f"<lora:{record['file']}:{record['weight']}>" if "weight" in record else ""
            facts = PngImagePlugin.PngInfo()
            facts.add_text(
                "parameters",
                f"{record['prompt']}{network}\nSteps: {record['steps']}, Sampler: {record['sampler']}, "
                f"CFG scale: {record['cfg']}, Seed: {record['seed']}, Size: 64x64",
            )
            with archive.open(record["path"]) as file, Image.open(file) as picture:
                record["path"] = f"cells/{Path(record['path']).stem}.png"
                picture.save(home / record["path"], pnginfo=facts)
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (home / "cells.jsonl").write_text(lines, encoding="utf-8")
