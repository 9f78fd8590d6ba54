"""Times the engine's training step on full-size models of random weights.

    python tools/bench/train.py [A B C D E] [--plain] [--steps 30] [--json] [--peer SD_SCRIPTS [--peer-python PYTHON]]
    python tools/bench/train.py --small            tiny models, on a CPU too: for comparing two revisions
    torchrun --nproc_per_node 2 tools/bench/train.py A    a process a card, the workload's batch each (see cards.py)

A SD1.5 512 px batch 4 dim 64, UNet and text encoder, 225 tokens; B the same at batch 1 with gradient checkpointing;
C SDXL 1024 px batch 4 dim 32, UNet alone; D the same with checkpointing; E SDXL at batch 1. Nothing is downloaded: the
models are made on the device. Latents are made numbers; text is encoded in every step where it is trained,
and made numbers too where not. ``--peer``: sd-scripts' models and networks on the same workload, in the same run (see
train_peer.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kernels import shares, table
from measuring import print_row
from torch import nn

from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach
from lorapipe_engine.nn.quantize import FORMS, quantize
from lorapipe_engine.settings import LossSettings, ModelSettings, OptimizerSettings, RunSettings
from lorapipe_engine.settings.preserve import Preserve
from lorapipe_engine.train.base.load import BaseModel
from lorapipe_engine.train.data.microbatch import Held, MicroBatch
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning, Tokens
from lorapipe_engine.train.loop import accumulate, clip_and_step, update
from lorapipe_engine.train.optimizers import build_optimizer, check_arguments, rates_of, write_rates
from lorapipe_engine.train.processes import ALONE, Processes, join_processes
from lorapipe_engine.train.step.forward import seed_step
from lorapipe_engine.train.step.preserving import Preserving
from lorapipe_engine.train.step.speed import speed_up
from lorapipe_engine.train.step.step import Stepper

TESTS = Path(__file__).parents[2] / "tests"
FLOOR = 790e12  # FLOP/s that one H200 reaches in bf16 products


@dataclass(frozen=True)
class Workload:
    """``tflop``: arithmetic of one picture, forward, input gradients and the network's, in 10^12 operations."""

    name: str
    family: str
    size: int
    batch: int
    rank: int
    text: bool
    chunks: int
    checkpoint: bool
    tflop: float


WORKLOADS = {
    row.name: row
    for row in (
        Workload("A", "sd1", 512, 4, 64, True, 3, False, 1.714 + 0.00209 * 64 + 0.087),
        Workload("B", "sd1", 512, 1, 64, True, 3, True, 2.44 + 0.00209 * 64 + 0.087),
        Workload("C", "sdxl", 1024, 4, 32, False, 1, False, 14.075 + 0.01702 * 32),
        Workload("D", "sdxl", 1024, 4, 32, False, 1, True, 20.8 + 0.01702 * 32),
        Workload("E", "sdxl", 1024, 1, 32, False, 1, False, 14.075 + 0.01702 * 32),
        Workload("small", "sd1", 64, 2, 4, True, 1, False, 0.0),
    )
}


@dataclass(frozen=True)
class Row:
    """What was measured. ``exchange_ms``: the gradients of all cards added up, by itself."""

    workload: str
    capture: str
    median_ms: float
    images_per_s: float
    tflops: float
    mfu: float
    kernels: int
    peak_gib: float
    allocated_gib: float
    startup_s: float
    cards: int = 1
    gradient_mb: float = 0.0
    exchange_ms: float = 0.0


class _NoTokenizer:
    bos, eos = 49406, 49407

    def encode(self, _text: str) -> list[int]:
        return []


def make_family(work: Workload, device: torch.device, dtype: torch.dtype) -> Family:
    """A family with random weights of the published sizes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sys.path.insert(0, str(TESTS))
    from support.full_bases import OPENCLIP_BIGG, SDXL_UNET

    small = work.name == "small"
    # In the dtype from the start: SDXL in float32 would not go onto a small card.
    with torch.device(device), _default_dtype(dtype):
        # Four blocks, for latents of an eighth of the pictures' sides; what they compute is not timed.
        vae = AutoencoderKL(block_out_channels=(32, 32, 32, 32), norm_num_groups=32)
        if work.family == "sd1":
            widths = (32, 64) if small else (320, 640, 1280, 1280)
            down = ("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",)
            up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1)
            unet = UNet2DConditionModel(
                block_out_channels=widths,
                down_block_types=down,
                up_block_types=up,
                cross_attention_dim=TEXT_SMALL["hidden_size"] if small else TEXT_L["hidden_size"],
                attention_head_dim=8,
            )
            texts: list[nn.Module] = [CLIPTextModel(CLIPTextConfig(**(TEXT_SMALL if small else TEXT_L)))]
        else:
            unet = UNet2DConditionModel(**SDXL_UNET)
            texts = [
                CLIPTextModel(CLIPTextConfig(**TEXT_L)),
                CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_L | OPENCLIP_BIGG)),
            ]
    tokenizers: Any = tuple(_NoTokenizer() for _ in texts)
    base = BaseModel(work.family, unet, vae, tuple(texts), tokenizers, "epsilon", "random", Path("random"))
    return open_family(
        base,
        device=device,
        dtype=dtype,
        max_token_length=75 * work.chunks,
        clip_skip=2 if work.family == "sd1" else None,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


TEXT_L: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "eos_token_id": 49407,
}
TEXT_SMALL: dict[str, Any] = {
    **TEXT_L,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def parts_of(work: Workload, family: Family) -> tuple[str, ...]:
    """The parts that a workload trains."""
    return tuple(family.train_parts) if work.text else ("unet",)


def make_lora(work: Workload, family: Family) -> Network:
    """A LoRA on all attention and feed-forward layers."""
    targets = [
        Target(part, family.lora_name(part, path), module)
        for part, path, module in family.target_modules()
        if part in parts_of(work, family)
    ]
    return attach(family.parts.values(), targets, NetworkPlan(rank=work.rank, alpha=work.rank / 2))


def make_stepper(
    work: Workload, family: Family, network: Network | None = None, processes: Processes = ALONE
) -> Stepper:
    """The engine's own stepper, with a LoRA if no other network is in the base."""
    network = network or make_lora(work, family)
    network.train()
    if work.checkpoint:
        family.checkpoint_activations(with_draws=False)
    settings = OptimizerSettings(
        learning_rate=1e-4, unet_lr=1e-4, text_encoder_lr=(1e-4,) if work.text else ()
    )
    arguments = check_arguments("AdamW", ())
    optimizer = build_optimizer("AdamW", arguments, network.groups, rates_of(settings, tuple(network.groups)))
    return Stepper(
        family,
        network,
        optimizer,
        family.objective(LossSettings(min_snr_gamma=5.0), "epsilon"),
        max_grad_norm=1.0,
        train_text=work.text,
        half_precision=False,
        processes=processes,
    )


def make_batch(work: Workload, family: Family, processes: int = 1) -> MicroBatch:
    """Inputs of one step, seeded; a share of the loss of ``processes``."""
    torch.manual_seed(0)
    size = work.size // family.latent_factor
    latents = torch.randn(work.batch, 8, size, size, device=family.device)
    latents[:, 4:] = latents[:, 4:].abs() * 0.1
    ids = torch.randint(0, 49000, (work.batch, work.chunks, 77), device=family.device)
    ids[:, :, -1] = 49407
    weights = torch.full((work.batch,), 1 / processes, device=family.device)
    geometry = family.plain_geometry(work.batch, work.size, work.size)
    if geometry is not None:
        geometry = geometry.to(family.device)
    return MicroBatch(
        latents, Tokens((ids,) * len(family.text.modules)), weights, geometry, text=made_text(work, family)
    )


def made_text(work: Workload, family: Family) -> Conditioning | None:
    """Text states in the place of cached ones, where the text encoders are not trained."""
    if work.text:
        return None
    hidden = torch.randn(work.batch, 75 * work.chunks + 2, 2048, device=family.device, dtype=family.dtype)
    pooled = torch.randn(work.batch, 1280, device=family.device, dtype=family.dtype)
    return Conditioning(hidden, pooled)


def hold(work: Workload, family: Family, stepper: Stepper, batch: MicroBatch, way: str) -> MicroBatch:
    """The batch with captions that are held to the base, and a stepper that does so: "joined" or "apart"."""
    stepper.preserving = Preserving(
        Preserve(captions=("",)),
        family,
        stepper.network,
        stepper.objective,
        apart=way == "apart",
        train_text=work.text,
    )
    tokens = Tokens(tuple(torch.roll(ids, 1, dims=0) for ids in batch.tokens.ids))
    return replace(batch, held=Held(batch.weights.clone(), tokens, made_text(work, family)))


def measure(
    work: Workload,
    *,
    capture: bool,
    steps: int,
    device: torch.device,
    fused: bool = True,
    profiled: int = 0,
    form: str | None = None,
    processes: Processes = ALONE,
    preserve: str | None = None,
) -> tuple[Row, list[float]]:
    """Time a workload; the losses of its steps too. ``form``: how the frozen weights are kept; ``preserve``: see
    :func:`hold`."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cuda = device.type == "cuda"
    torch.manual_seed(1)
    family = make_family(work, device, dtype)
    if form is not None:
        for part in (family.denoiser, *family.text.modules.values()):
            quantize(part, form)
    stepper = make_stepper(work, family, processes=processes)
    family.vae.to("cpu")  # as in a run: pictures are encoded before, and so is text that is not trained
    if not work.text:
        for encoder in family.text.modules.values():
            encoder.to("cpu")
    if fused:
        speed_up(stepper, capture=capture, say=lambda text: print(text, file=sys.stderr))
    batch = make_batch(work, family, processes.count)
    if preserve is not None:
        batch = hold(work, family, stepper, batch, preserve)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times, losses, startup = time_steps(stepper, batch, steps)
    median = statistics.median(times)
    floor = work.tflop * work.batch * 1e12 / FLOOR
    peak = torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0
    allocated = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    rate = work.tflop * work.batch / median
    row = Row(
        work.name,
        "graph" if stepper.graphs else "plain",
        round(median * 1e3, 2),
        round(work.batch * processes.count / median, 2),
        round(rate, 1),
        round(rate * 1e12 / FLOOR, 3),
        count_kernels(stepper, batch, profiled, floor * 1e3, median * 1e3)
        if cuda and processes.is_main and (profiled or not stepper.graphs)
        else 0,
        round(peak, 2),
        round(allocated, 2),
        round(startup, 1),
        processes.count,
        round(sum(group.grad.nbytes for group in stepper.network.groups.values()) / 1e6, 1),
        round(time_exchange(stepper) * 1e3, 2),
    )
    return row, losses


STEPS_BEFORE = 6  # of which the third is captured


def time_steps(stepper: Stepper, batch: MicroBatch, steps: int) -> tuple[list[float], list[float], float]:
    """Seconds of each step, losses of all steps, and what the steps before took. A step is timed from start to end."""
    began = time.perf_counter()
    losses: list[float] = []
    times: list[float] = []
    startup = 0.0
    for step in range(steps + STEPS_BEFORE):
        write_rates(stepper.optimizer, [1e-4] * len(stepper.optimizer.param_groups))
        wait(stepper.family.device)
        start = time.perf_counter()
        seed_step(1, step)
        loss, _ = update(stepper, [batch])
        losses.append(float(loss.sum()))
        wait(stepper.family.device)
        if step == STEPS_BEFORE - 1:
            startup = time.perf_counter() - began
        if step >= STEPS_BEFORE:
            times.append(time.perf_counter() - start)
    return times, losses, startup


def wait(device: torch.device) -> None:
    """Until a card has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_exchange(stepper: Stepper) -> float:
    """Seconds in which the gradients of all processes are added up, nothing else being done; 0 for one process."""
    if stepper.processes.count == 1:
        return 0.0
    times = []
    for _ in range(20):
        wait(stepper.family.device)
        stepper.processes.wait()
        start = time.perf_counter()
        stepper.add_up(torch.zeros((), device=stepper.family.device))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def count_kernels(stepper: Stepper, batch: MicroBatch, shown: int, floor: float, step: float) -> int:
    """Kernels that one plain step starts; prints their kinds and the ``shown`` longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        stepper.add_up(accumulate(stepper, [batch]))
        clip_and_step(stepper)
        torch.cuda.synchronize()
    rows = [event for event in profiled.key_averages() if str(event.device_type).endswith("CUDA")]
    rows.sort(key=lambda event: -event.self_device_time_total)
    if shown:
        print(
            table(shares((row.key, row.count, row.self_device_time_total / 1e3) for row in rows), floor, step)
        )
    for row in rows[:shown]:
        print(f"{row.self_device_time_total / 1e3:9.2f} ms {row.count:6} x  {row.key[:120]}")
    return sum(row.count for row in rows)


def measure_peer(work: Workload, checkout: Path, python: str, steps: int) -> dict[str, float]:
    """Median and peak of sd-scripts. Ends the program where it does not run, with what it said above."""
    script = Path(__file__).with_name("train_peer.py")
    command = [python, str(script), str(checkout), json.dumps(asdict(work)), "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"train.py: sd-scripts did not run in {python}; what it lacks is said above")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(words: Sequence[str] | None = None) -> int:
    """Run the workloads and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="A-E")
    parser.add_argument("--small", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--plain", action="store_true", help="without captured steps")
    parser.add_argument("--both", action="store_true", help="both, and compare their losses")
    parser.add_argument("--unfused", action="store_true", help="with the libraries' own blocks, not captured")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="print the N longest kernels of a step"
    )
    parser.add_argument("--quantize", choices=sorted(FORMS), help="keep the frozen weights so")
    parser.add_argument("--preserve", choices=("joined", "apart"), help="hold the network to the base too")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", type=Path, help="a checkout of sd-scripts to time beside it")
    parser.add_argument("--peer-python", default=sys.executable, help="with the packages that it needs")
    parser.add_argument("--size", type=int, help="pixels, in the place of the workload's own")
    options = parser.parse_args(words)
    names = ["small"] if options.small else options.workloads or list("ABCDE")
    processes = join_processes(ModelSettings(), RunSettings())
    device = processes.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if processes.count > 1 and len(names) > 1:
        parser.error("several processes take one workload")
    if len(names) > 1:
        # A process for each, so that none is measured with what another has left on the card.
        chosen = [word for word in (sys.argv[1:] if words is None else words) if word not in names]
        return max(subprocess.call([sys.executable, __file__, name, *chosen]) for name in names)
    for name in names:
        work = WORKLOADS[name] if options.size is None else replace(WORKLOADS[name], size=options.size)
        kept: list[list[float]] = []
        for capture in (False, True) if options.both else (not options.plain,):
            row, losses = measure(
                work,
                capture=capture,
                steps=options.steps,
                device=device,
                fused=not options.unfused,
                profiled=options.profile if capture else 0,
                form=options.quantize,
                processes=processes,
                preserve=options.preserve,
            )
            kept.append(losses)
            if processes.is_main:
                print_row(asdict(row), as_json=options.json)
            if device.type == "cuda":
                import gc

                gc.collect()
                torch.cuda.empty_cache()
        if options.peer:
            peer = measure_peer(work, options.peer, options.peer_python, options.steps)
            times = round(peer["median_ms"] / row.median_ms, 2)
            print_row(
                {"workload": name, "capture": "sd-scripts", **peer, "times": times}, as_json=options.json
            )
        if len(kept) == 2:
            worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(*kept, strict=True))
            print(
                f"{name}: losses of plain and captured steps differ by at most {worst:.2e} (relative)",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
