"""Times a training step of lycoris-lora: its modules over diffusers' own blocks, in a loop as sd-scripts has."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import Any

import torch
from algorithms_rows import BYPASS, Entry
from torch import nn
from train import Workload, parts_of, wait

from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.step.forward import forward, seed_step

STEPS_BEFORE = 2


def time_lycoris(
    entry: Entry, mode: str, work: Workload, family: Family, batch: MicroBatch, steps: int
) -> tuple[list[float], int, int]:
    """Seconds of each step, the number of trained values, and of values in a file. Raises what LyCORIS raises."""
    device = family.device
    network = make_lycoris(entry, mode, work, family)
    parameters = [p for p in network.parameters() if p.requires_grad]
    try:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        objective = family.objective(LossSettings(min_snr_gamma=5.0), "epsilon")
        precision = torch.autocast("cuda", family.dtype) if device.type == "cuda" else nullcontext()
        times: list[float] = []
        for step in range(STEPS_BEFORE + steps):
            wait(device)
            began = time.perf_counter()
            seed_step(1, step)
            with precision:
                made = forward(family, objective, batch, text=batch.text)
                loss = (made.losses * made.noised.weights * batch.weights).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
            wait(device)
            if step >= STEPS_BEFORE:
                times.append(time.perf_counter() - began)
        values = sum(tensor.numel() for tensor in network.state_dict().values())
        return times, sum(p.numel() for p in parameters), values
    finally:
        for module in network.loras:
            module.restore()
        # What it put back of a base that it trained whole lies in the memory of the processor.
        for root in (family.denoiser, *texts_of(work, family)):
            root.to(device)


def texts_of(work: Workload, family: Family) -> list[nn.Module]:
    """The text encoders that are trained."""
    return [family.text.modules[part] for part in parts_of(work, family) if part != "unet"]


def make_lycoris(entry: Entry, mode: str, work: Workload, family: Family) -> Any:
    """A network of LyCORIS in the base, made on the device: float32, but full, which has the base's dtype."""
    from lycoris import kohya
    from lycoris.logging import logger

    logger.setLevel(logging.ERROR)
    assert entry.peer is not None
    kohya.PRESET["bench"] = dict(entry.layers)
    texts = texts_of(work, family)
    dim = entry.dim(work)
    with torch.device(family.device):
        network = kohya.create_network(
            1.0,
            dim,
            dim / 2,
            None,
            texts or None,
            family.denoiser,
            preset="bench",
            bypass_mode=mode == BYPASS,
            warn_on_unmatched=False,
            **entry.peer(work),
        )
    network.apply_to(texts or None, family.denoiser, bool(texts), True)
    network.to(family.device)
    network.prepare_grad_etc()
    network.train()
    return network
