"""Times a training step of sd-scripts: its UNet and its LoRA from an unmodified checkout, in a loop as its trainer has.

    PYTHON tools/bench/train_peer.py SD_SCRIPTS '{"family": "sd1", "size": 512, "batch": 4, ...}' [--steps 10]

Started by `train.py --peer`, with a Python that has the packages sd-scripts needs; nothing of ours is imported. Models
of random weights, bf16 on a card and float32 on a CPU, torch's attention, AdamW, gradients clipped. Prints one JSON
object: median milliseconds, and on a card the peak that was reserved and allocated in GiB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F

STEPS_BEFORE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout")
    parser.add_argument("workload", type=json.loads)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    sys.path.insert(0, options.checkout)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(1)
    step = make_step(options.workload, device, dtype)
    times = []
    for number in range(STEPS_BEFORE + options.steps):
        if number == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= STEPS_BEFORE:
            times.append((time.perf_counter() - began) * 1e3)
    row = {"median_ms": round(statistics.median(times), 2), "peak_gib": 0.0, "allocated_gib": 0.0}
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        row["allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(row))


def make_step(work: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """One update, from noise to the optimizer."""
    from diffusers import DDPMScheduler
    from networks.lora import create_network

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet, texts = make_models(work)
    finally:
        torch.set_default_dtype(before)
    for model in (unet, *texts):
        model.requires_grad_(False).eval()
    unet.set_use_sdpa(True)
    network = create_network(1.0, work["rank"], work["rank"] / 2, None, texts, unet)
    network.apply_to(texts, unet, work["text"], True)
    network.to(device)
    network.prepare_grad_etc(texts, unet)
    if work["checkpoint"]:
        unet.enable_gradient_checkpointing()
        unet.train()
        for text in texts if work["text"] else []:
            text.gradient_checkpointing_enable()
            text.train()
            inner_of(text).embeddings.requires_grad_(True)
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch, size = work["batch"], work["size"] // 8
    latents = torch.randn(batch, 4, size, size, device=device)
    ids = torch.randint(0, 49000, (batch, work["chunks"], 77), device=device)
    width = 768 if work["family"] == "sd1" else 2048
    made = torch.randn(batch, 75 * work["chunks"] + 2, width, device=device, dtype=dtype)
    added = torch.randn(batch, 2816, device=device, dtype=dtype)
    precision = torch.autocast(device.type, dtype) if device.type == "cuda" else nullcontext()

    def step() -> None:
        with precision:
            states = encode(texts[0], ids) if work["text"] else made
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps).to(dtype)
        with precision:
            if work["family"] == "sd1":
                answer = unet(noisy, timesteps, states).sample
            else:
                answer = unet(noisy, timesteps, states, added)
        loss = F.mse_loss(answer.float(), noise.float(), reduction="none").mean([1, 2, 3]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def make_models(work: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The UNet of the family, and text encoders where they are trained."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if work["family"] == "sd1":
        from library.original_unet import UNet2DConditionModel

        unet = UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
    else:
        from library.sdxl_original_unet import SdxlUNet2DConditionModel

        unet = SdxlUNet2DConditionModel()
    if not work["text"]:
        return unet, []
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=49407,
    )
    return unet, [CLIPTextModel(config)]


def inner_of(text: Any) -> Any:
    """The transformer of a text encoder, which releases of transformers before 5 have one level deeper."""
    return getattr(text, "text_model", text)


def encode(text: Any, ids: torch.Tensor) -> torch.Tensor:
    """The states before the last layer of each chunk, joined: (B, 75 n + 2, 768)."""
    states = text(ids.flatten(0, 1), output_hidden_states=True, return_dict=True).hidden_states[-2]
    states = inner_of(text).final_layer_norm(states).unflatten(0, ids.shape[:2])
    inner = states[:, :, 1:-1].flatten(1, 2)
    encoded: torch.Tensor = torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
    return encoded


if __name__ == "__main__":
    main()
