"""Times drawing on full-size models of random weights, beside diffusers' own pipeline in the same run.

    python tools/bench/sample.py [sd15 sdxl] [--parts swap,grid] [--profile] [--minutes 6] [--vae fp16] [--json]
    python tools/bench/sample.py --small           tiny models, on a CPU too: whether all of it runs

SD1.5 512 px batch 4 and SDXL 1024 px batch 2, 20 steps of Euler with guidance, from text states to pictures in memory.
The parts, in this order, first of all models and then the last one of all: diffusers' pipeline as it is; ours, with the
kernels of one evaluation by kind (``--profile``); a swap of networks, whole and what its parts take; a grid of five
networks and five seeds beside as many pictures without networks, written as PNG; diffusers' pipeline with compiled
blocks. Of each part its seconds are told. A part that would begin after ``--minutes`` is left out, which is told too.
Nothing is downloaded: models and networks are made on the device.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from kernels import shares, table
from measuring import print_row
from sample_swaps import network_folder, swap_row, write_network
from train import FLOOR, WORKLOADS, make_family

from lorapipe_engine.models.predictions import EPSILON
from lorapipe_engine.pictures.parameters import save_with_parameters
from lorapipe_engine.sampling.cells import Cell
from lorapipe_engine.sampling.shelf import Loaded
from lorapipe_engine.train.base.modules import place
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import AskedPrompt, Conditioning
from lorapipe_engine.train.plan import DTYPES
from lorapipe_engine.train.sample.draw import Guidance, evaluate_guided, first_noise, seeded
from lorapipe_engine.train.sample.picture import CellPainter
from lorapipe_engine.train.sample.writing import Writer

PARTS = ("diffusers", "ours", "swap", "grid", "compiled")
REPEATS = 3
SIDE = 5  # of the grid
GRIDS = 2  # times that a grid is drawn; the fastest counts


@dataclass(frozen=True)
class Model:
    """``tflop``: arithmetic of one evaluation of ``batch`` pictures with guidance, in 10^12 operations.

    ``workload``: the training benchmark's whose models these are; ``goal``: times the pictures a second of diffusers.
    """

    workload: str
    size: int
    batch: int
    steps: int
    rank: int
    tflop: float
    goal: float


MODELS = {
    "sd15": Model("A", 512, 4, 20, 32, 6.4, 1.5),
    "sdxl": Model("C", 1024, 2, 20, 32, 27.0, 1.35),
    "small": Model("small", 32, 2, 2, 4, 0.0, 0.0),
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


class Bench:
    """The parts of one model's run, in order of their worth."""

    def __init__(self, name: str, options: argparse.Namespace, began: float) -> None:
        self.name, self.model, self.options, self.began = name, MODELS[name], options, began
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.side = SIDE if name != "small" else 2
        self.eager = self.plain = 0.0  # seconds of a batch by diffusers, of a grid without networks

    def run(self) -> None:
        """Measure all that there is time for, but what takes long to compile."""
        gc.collect()
        family = self.made()
        self.part("diffusers", partial(self.diffusers, family, compiled=False))
        painter = CellPainter(
            family,
            EPSILON.name,
            zero_terminal_snr=False,
            say=say,
            fused=self.name == "small" or None,
            decoding=DTYPES[self.options.vae] if self.options.vae != "float" else None,
        )
        self.part("ours", partial(self.ours, painter))
        with network_folder() as folder:
            if self.options.parts & {"swap", "grid"}:
                began = time.monotonic()
                networks = [
                    write_network(folder / f"{number}.safetensors", family, self.model.rank)
                    for number in range(self.side)
                ]
                self.tell_time("writing networks", began)
            self.part("without", lambda: self.without(painter, folder), of="grid")
            self.part("swap", lambda: self.swap(painter, networks))
            self.part("grid", lambda: self.grid(painter, networks, folder))

    def run_compiled(self) -> None:
        """What takes long to compile, after all that does not."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            self.part("compiled", lambda: self.diffusers(self.made(), compiled=True))

    def part(self, what: str, measured: Callable[[], None], *, of: str = "") -> None:
        """Run a part that was asked for, unless the time is over; what goes wrong in it is told. ``of``: what asks for
        it, where it is not its own name."""
        if (of or what) not in self.options.parts:
            return
        if time.monotonic() - self.began > self.options.minutes * 60:
            say(f"{self.name}: {what} is left out: {self.options.minutes:g} minutes are over")
            return
        began = time.monotonic()
        try:
            measured()
        except Exception as error:
            if self.options.small:
                raise
            say(f"{self.name}: {what} failed: {type(error).__name__}: {str(error)[:500]}")
        self.tell_time(what, began)

    def tell_time(self, what: str, began: float) -> None:
        """Say how long something took."""
        now = time.monotonic()
        say(f"{self.name}: {what} took {now - began:.1f} s, {now - self.began:.0f} s since the start")

    def made(self) -> Family:
        """The models, with the time that they take."""
        began = time.monotonic()
        family = self.make()
        self.wait()
        self.tell_time("making the models", began)
        return family

    def make(self) -> Family:
        """The models."""
        from diffusers import AutoencoderKL

        torch.manual_seed(1)
        family = make_family(WORKLOADS[self.model.workload], self.device, self.dtype)
        if self.name != "small":
            with torch.device(self.device):
                family.vae = place(AutoencoderKL(**VAE), self.device, torch.float32)
        family.vae_dtype = torch.float32
        family.vae.float()
        return family

    # ---------------------------------------------------------------- diffusers

    def diffusers(self, family: Family, *, compiled: bool) -> None:
        """Its pipeline, all of it in the denoiser's dtype."""
        pipeline = make_pipeline(family)
        pipeline.set_progress_bar_config(disable=True)
        began = time.perf_counter()
        if compiled:
            # Nothing of the models before; blocks of more shapes than torch compiles by itself.
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64
            pipeline.unet.compile_repeated_blocks(fullgraph=True)
        family.vae.to(self.dtype)
        model = self.model
        text = self.text(family)
        words = {
            "prompt_embeds": text[1].hidden,
            "negative_prompt_embeds": text[0].hidden,
            "height": model.size,
            "width": model.size,
            "guidance_scale": 7.0,
        }
        if text[0].pooled is not None:
            words |= {
                "pooled_prompt_embeds": text[1].pooled,
                "negative_pooled_prompt_embeds": text[0].pooled,
            }
        pipeline(**words, num_inference_steps=2)
        startup = time.perf_counter() - began
        seconds = self.seconds(lambda: pipeline(**words, num_inference_steps=model.steps).images)
        with torch.inference_mode():
            guidance = Guidance.of(family, text, (model.size,) * 2, [7.0] * model.batch)
            latents = first_noise(family, model.size, model.size, seeded(range(model.batch)))
            moment = torch.tensor(500.0, device=self.device)
            one = partial(evaluate_guided, family, guidance, latents, moment)
            evaluation = self.seconds(partial(repeat, one, model.steps))
        if not compiled:
            self.eager = seconds
        what = "diffusers, compiled blocks" if compiled else "diffusers"
        self.show(what, seconds, evaluation / model.steps, startup)
        family.vae.to(family.vae_dtype)

    def text(self, family: Family) -> list[Conditioning]:
        """States of a negative and a positive text, a row for each picture."""
        with torch.inference_mode():
            one = family.text.encode_prompts([AskedPrompt("")])[0]
            return [Conditioning.joined([one] * self.model.batch)] * 2

    # ---------------------------------------------------------------- ours

    def ours(self, painter: CellPainter) -> None:
        """Drawing without networks, what an evaluation and a decoded picture take, and the kernels."""
        model, family = self.model, painter.family
        cells = [self.cell(seed) for seed in range(model.batch)]
        began = time.perf_counter()
        self.draw(painter, cells)
        startup = time.perf_counter() - began
        seconds = self.seconds(partial(self.draw, painter, cells))
        evaluation = self.evaluation(painter)
        with torch.inference_mode():
            guidance, latents = self.batch(family)
            decoded = self.seconds(lambda: painter.decode(latents[:1]))
            self.show("ours", seconds, evaluation, startup, decode_ms=round(decoded * 1e3, 1))
            if self.options.profile and self.device.type == "cuda":
                self.profile(painter, guidance, latents, evaluation)

    def batch(self, family: Family) -> tuple[Guidance, Any]:
        """What an evaluation is given, and latents."""
        size = self.model.size
        guidance = Guidance.of(family, self.text(family), (size, size), [7.0] * self.model.batch)
        return guidance, first_noise(family, size, size, seeded(range(self.model.batch)))

    def evaluation(self, painter: CellPainter) -> float:
        """Seconds of an evaluation, with the networks in use."""
        with torch.inference_mode():
            guidance, latents = self.batch(painter.family)
            predict = painter.predictor(guidance, latents)
            moment = torch.tensor(500.0, device=self.device)
            evaluations = partial(repeat, partial(predict, latents, moment), self.model.steps)
            return self.seconds(evaluations) / self.model.steps

    def profile(self, painter: CellPainter, guidance: Guidance, latents: Any, evaluation: float) -> None:
        """Kernels of one evaluation, which is not captured here, and of one decoded picture."""
        from torch.profiler import ProfilerActivity, profile

        floor = self.model.tflop * 1e12 / FLOOR * 1e3
        moment = torch.tensor(500.0, device=self.device)
        for what, work, time_ms, least in (
            (
                "an evaluation",
                partial(evaluate_guided, painter.family, guidance, latents, moment),
                evaluation * 1e3,
                floor,
            ),
            ("a decoded picture", partial(painter.decode, latents[:1]), 0.0, 0.0),
        ):
            work()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as kernels:
                work()
                torch.cuda.synchronize()
            rows = [event for event in kernels.key_averages() if str(event.device_type).endswith("CUDA")]
            rows.sort(key=lambda event: -event.self_device_time_total)
            told = ((row.key, row.count, row.self_device_time_total / 1e3) for row in rows)
            print(f"{self.name}: kernels of {what}\n{table(shares(told), least, time_ms)}")
            for row in rows[:25]:
                print(
                    f"{row.self_device_time_total / 1e3:9.3f} ms {row.count:6} x  {row.key[:110]}", flush=True
                )

    def without(self, painter: CellPainter, folder: Path) -> None:
        """The pictures of a grid without networks: before there is room for them in the layers."""
        nothing: list[tuple[Loaded, ...]] = [()] * self.side
        self.draw_grid(painter, nothing[:1], folder)
        self.plain = min(self.draw_grid(painter, nothing, folder) for _ in range(GRIDS))

    def swap(self, painter: CellPainter, networks: Sequence[Loaded]) -> None:
        """Swaps to files that were not read before, and to those that were."""
        row = {"model": self.name, "what": "swap", "rank": self.model.rank}
        row |= swap_row(painter.swapper.use, networks, self.wait)
        # What a network costs from then on: both prompts anew, and each evaluation.
        with torch.inference_mode():
            both = [AskedPrompt("", is_negative=True), AskedPrompt("1girl, solo, outdoors, flower field")]
            text = self.seconds(lambda: painter.family.text.encode_prompts(both)[1])
        row |= {"text_ms": round(text * 1e3, 1), "evaluation_ms": round(self.evaluation(painter) * 1e3, 2)}
        print_row(row, as_json=self.options.json)

    def grid(self, painter: CellPainter, networks: Sequence[Loaded], folder: Path) -> None:
        """Networks by seeds, beside as many pictures without networks; PNGs are written."""
        alone: list[tuple[Loaded, ...]] = [(one,) for one in networks]
        first = self.draw_grid(painter, alone[:1], folder)
        seconds = min(self.draw_grid(painter, alone, folder) for _ in range(GRIDS))
        row = {
            "model": self.name,
            "what": f"grid of {self.side**2} pictures",
            "without_s": round(self.plain, 3),
            "first_network_s": round(first, 3),
            "with_s": round(seconds, 3),
            "times": round(seconds / self.plain, 3) if self.plain else 0.0,
        }
        print_row(row, as_json=self.options.json)

    def draw_grid(self, painter: CellPainter, sets: Sequence[tuple[Loaded, ...]], folder: Path) -> float:
        """Seconds of as many seeds as the grid has for each of some sets of networks, PNGs written."""
        painter._texts.clear()  # each time texts are encoded, which networks change
        self.wait()
        began = time.perf_counter()
        with Writer() as writer:
            for place, rows in enumerate(sets):
                painter.swapper.use(rows)
                cells = [self.cell(seed, rows) for seed in range(self.side)]
                for cell, drawn in zip(cells, painter.draw(cells), strict=True):
                    path = folder / f"{place}-{cell.seed}.png"
                    writer.add(partial(save, path, drawn), lambda: None)
        return time.perf_counter() - began

    # ---------------------------------------------------------------- parts of them

    def cell(self, seed: int, networks: tuple[Loaded, ...] = ()) -> Cell:
        """A picture."""
        return Cell(
            prompt="", text="", negative="", networks=networks, seed=seed, steps=self.model.steps,
            sampler="Euler", schedule="Automatic", cfg=7.0, eta=None, width=self.model.size,
            height=self.model.size, clip_skip=1, base=None, vae=None,
        )  # fmt: skip

    def draw(self, painter: CellPainter, cells: Sequence[Cell]) -> Any:
        """The pictures in memory."""
        return [drawn.image() for drawn in list(painter.draw(cells))]

    def seconds(self, work: Callable[[], Any]) -> float:
        """Median time of some runs, after one."""
        work()
        times = []
        for _ in range(REPEATS if self.name != "small" else 1):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def show(self, what: str, seconds: float, evaluation: float, startup: float, **more: float) -> None:
        """A row: pictures a second of the whole, and what an evaluation takes by itself."""
        model = self.model
        row = {
            "model": self.name,
            "what": what,
            "pictures_per_s": round(model.batch / seconds, 3),
            "times_eager": round(self.eager / seconds, 3) if self.eager else 0.0,
            "goal": model.goal,
            "evaluation_ms": round(evaluation * 1e3, 2),
            "mfu": round(model.tflop * 1e12 / evaluation / FLOOR, 3),
            "first_s": round(startup, 1),
        }
        if self.device.type == "cuda":
            row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            torch.cuda.reset_peak_memory_stats()
        print_row(row | more, as_json=self.options.json)


def make_pipeline(family: Family) -> Any:
    """diffusers' pipeline of a family's modules, without text encoders."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts: dict[str, Any] = {"vae": family.vae, "unet": family.denoiser, "scheduler": scheduler}
    parts |= {"text_encoder": None, "tokenizer": None}
    if family.name == "sdxl":
        return StableDiffusionXLPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def repeat(work: Callable[[], Any], count: int) -> None:
    """Do it so many times."""
    for _ in range(count):
        work()


def save(path: Path, drawn: Any) -> None:
    """Write a picture as lora-sample does."""
    with path.open("wb") as file:
        save_with_parameters(drawn.image(), file, path.suffix, "parameters")


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def _parts(text: str) -> set[str]:
    parts = set(text.split(","))
    if odd := sorted(parts - set(PARTS)):
        raise argparse.ArgumentTypeError(f"there is no part '{odd[0]}'; there are {', '.join(PARTS)}")
    return parts


def main(words: Sequence[str] | None = None) -> int:
    """Run the models one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="sd15|sdxl")
    parser.add_argument("--small", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--profile", action="store_true", help="print the kernels of an evaluation by kind")
    parser.add_argument(
        "--parts", type=_parts, default=set(PARTS), help=f"what to run, of {','.join(PARTS)} (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="begin no part after so long")
    parser.add_argument(
        "--vae", choices=("float", "bf16", "fp16"), default="fp16", help="what ours decodes in"
    )
    parser.add_argument(
        "--search", action="store_true", help="have cuDNN try its convolutions (benchmark mode)"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    torch.backends.cudnn.benchmark = options.search
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of casting a VAE
    began = time.monotonic()
    names = ["small"] if options.small else options.models or ["sd15", "sdxl"]
    benches = [Bench(name, options, began) for name in names]
    for bench in benches:
        if options.parts - {"compiled"}:
            bench.run()
    for bench in benches:
        bench.run_compiled()
    return 0


if __name__ == "__main__":
    sys.exit(main())
