"""Make a demo base that predicts something else than noise: text encoder and UNet of the shipped one go on training."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from evaluate import prompts_to_ids
from examine import examine
from export import METADATA, export
from pictures import draw_set, world_picture
from pretrain import SEED, keep
from train_parts import SCALE, DenoiserTrainer, encode_all

from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.train.base.load import load_base


def remake(word: str, title: str, text: str) -> None:
    """Make OUT/demo-v.safetensors, or the like, with a tokenizer beside it, and print how well it obeys.

    ``word``: what is predicted, as ``modelspec.prediction_type`` has it; ``title``: of the file; ``text``: the script's
    help.
    """
    options = read_options(text)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = demo_base().with_name("tokenizer")
    world = draw_set(options.pictures, SEED + 3, world_picture, tokenizer)
    say(f"drew {len(world.pixels)} pictures")
    base = load_base(demo_base(), tokenizer_dir=tokenizer)
    vae = base.vae.to(device)
    latents = encode_all(vae, torch.from_numpy(world.pixels).to(device)) * SCALE
    _, empty = prompts_to_ids(tokenizer, [""], device)
    ids = torch.from_numpy(world.ids).to(device)
    trainer = DenoiserTrainer(
        latents.half(), ids, empty, base.text_encoders[0].config.vocab_size, options.batch, word
    )
    for model in (trainer.model, trainer.average):
        model.unet.load_state_dict(base.denoiser.state_dict())
        model.text.load_state_dict(base.text_encoders[0].state_dict())
    model = trainer.train(options.seconds, options.rate, say)
    for name, part in {"unet": model.unet, "text": model.text, "vae": vae}.items():
        keep(part, out / f"{name}.safetensors")
    path = out / f"demo-{word}.safetensors"
    export(out, path, {**METADATA, "modelspec.title": title, "modelspec.prediction_type": word})
    shutil.copytree(tokenizer, out / "tokenizer", dirs_exist_ok=True)
    say(f"made {path}")
    examine(path)


def read_options(text: str) -> argparse.Namespace:
    """The options of a script with the help ``text``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=7e-4)
    return parser.parse_args()
