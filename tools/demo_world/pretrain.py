"""Make the demo base: draw the world, train judge, VAE, text encoder and UNet on it, and see whether it obeys.

    python tools/demo_world/pretrain.py OUT --minutes 9          # on a GPU
    python tools/demo_world/pretrain.py OUT --minutes 0.5 --toy  # every stage once, on a CPU

Leaves parts in OUT (diffusers' names, fp16); ``export.py`` makes the single file of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from evaluate import fresh_scenes, obeyed, prompts_to_ids, sample, sheet
from pictures import PictureSet, draw_set, judge_picture, world_picture
from safetensors.torch import save_file
from train_parts import DenoiserTrainer, encode_all, fold_scale, train_judge, train_vae
from vocabulary import build_tokenizer

SEED = 20_260


def main() -> None:
    options = read_options()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    end = began + options.minutes * 60

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, batch = (1500, 16) if options.toy else (options.pictures, options.batch)

    tokens = build_tokenizer(out / "tokenizer")
    world = draw_set(size, SEED, world_picture, out / "tokenizer")
    exam = draw_set(size // 3, SEED + 1, judge_picture, None)
    say(f"drew {len(world.pixels)} + {len(exam.pixels)} pictures; {tokens} tokens")

    pixels = torch.from_numpy(world.pixels).to(device)
    vae = train_vae(pixels, options.vae_seconds, min(batch, 256), say)
    spread = encode_all(vae, pixels[:2000]).std().item()
    fold_scale(vae, spread)
    latents = encode_all(vae, pixels) * 0.18215
    say(f"latents: deviation {latents.std().item():.3f} after scaling (was {spread:.3f})")
    keep(vae, out / "vae.safetensors")

    judge = train_judge(*judge_inputs(exam, device), vae, options.judge_seconds, min(batch, 512), say)
    keep(judge, out / "judge.safetensors")
    check = draw_set(400, SEED + 2, judge_picture, None)
    test_pixels, test_answers = judge_inputs(check, device)
    scores = judge(test_pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
    right = {
        n: (s.argmax(1) == test_answers[:, i]).float().mean().item()
        for i, (n, s) in enumerate(scores.items())
    }
    say("judge on fresh drawings: " + json.dumps({name: round(value, 4) for name, value in right.items()}))

    ids = torch.from_numpy(world.ids).to(device)
    _, empty = prompts_to_ids(out / "tokenizer", [""], device)
    trainer = DenoiserTrainer(latents.half(), ids, empty, tokens, batch)
    if options.start:
        load(trainer, options.start)
    left = end - time.monotonic() - (5 if options.toy else 40)
    model = trainer.train(left, options.rate, say)
    keep(model.text, out / "text.safetensors")
    keep(model.unet, out / "unet.safetensors")

    scenes = fresh_scenes(8 if options.toy else 200)
    prompts = [", ".join(scene.tags()) for scene in scenes]
    for second_last in (True, False):
        rows, empty = prompts_to_ids(out / "tokenizer", prompts, device)
        drawn = sample(model, vae, rows, empty, second_last=second_last, steps=4 if options.toy else 30)
        figures = obeyed(judge, drawn, scenes)
        say(
            f"obeyed, clip skip {2 if second_last else 1}: "
            + json.dumps({n: round(v, 3) for n, v in figures.items()})
        )
        if second_last:
            sheet(drawn[:100]).save(out / "sheet.png")
            rebuilt = vae.decode(
                vae.encode(pixels[:20].permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
            ).sample
            sheet(rebuilt.detach().float()).save(out / "vae.png")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--pictures", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--vae-seconds", type=float, default=90.0)
    parser.add_argument("--judge-seconds", type=float, default=45.0)
    parser.add_argument(
        "--start", type=Path, help="go on from unet.safetensors and text.safetensors in this folder"
    )
    parser.add_argument("--toy", action="store_true", help="a few pictures and steps, to try every stage")
    return parser.parse_args()


def judge_inputs(drawn: PictureSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(drawn.pixels).to(device), torch.from_numpy(drawn.answers).to(device)


def keep(module: torch.nn.Module, path: Path) -> None:
    """Save a module's tensors in fp16."""
    save_file(
        {name: tensor.detach().half().cpu().contiguous() for name, tensor in module.state_dict().items()},
        path,
    )


def load(trainer: DenoiserTrainer, folder: Path) -> None:
    from safetensors.torch import load_file

    for model in (trainer.model, trainer.average):
        for name in ("text", "unet"):
            state = {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
            getattr(model, name).load_state_dict(state)


if __name__ == "__main__":
    main()
