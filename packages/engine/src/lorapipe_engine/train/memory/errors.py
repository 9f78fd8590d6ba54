"""Out of memory: one line with what was asked for, what there is, and what to change, the cheapest change first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.base.out_of_memory import is_out_of_memory


@contextmanager
def memory_explained(settings: TrainSettings) -> Iterator[None]:
    """Turn torch's out-of-memory errors, of a card and of the CPU, into ProblemFound."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ProblemFound(explain(str(error), settings)) from error


def explain(error: str, settings: TrainSettings) -> str:
    """The line for torch's message."""
    where = "the GPU" if re.search(r"CUDA|GPU|HIP|MPS", error) else "this machine"
    return (
        f"{where} ran out of memory{_figures(error)}: try, one after another, {'; '.join(_advice(settings))}"
    )


def _figures(error: str) -> str:
    """What the message tells: `` (1.25 GiB more were wanted, 23.65 GiB are there)``."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+) ?([KMGT]?i?B|bytes)", error)
    total = re.search(r"total capacity of ([\d.]+ [KMGT]iB)", error)
    told = []
    if wanted:
        told.append(f"{_size(wanted[1], wanted[2])} more were wanted")
    if total:
        told.append(f"{total[1]} are there")
    return f" ({', '.join(told)})" if told else ""


def _size(number: str, unit: str) -> str:
    return f"{float(number) / 2**30:.2f} GiB" if unit == "bytes" else f"{number} {unit}"


def _advice(settings: TrainSettings) -> list[str]:
    model, data, chosen = settings.model, settings.data, settings.optimizer
    advice = []
    if settings.loss.preserve and not settings.loss.preserve_apart:
        advice.append("--preserve_apart (half the activations, a little slower)")
    if not model.gradient_checkpointing:
        advice.append(
            "--gradient_checkpointing (activations are made again in place of kept: a third more time)"
        )
    if data.train_batch_size > 1:
        batch = data.train_batch_size // 2
        steps = chosen.gradient_accumulation_steps * -(-data.train_batch_size // batch)
        advice.append(
            f"--train_batch_size {batch} --gradient_accumulation_steps {steps} (now {data.train_batch_size} and "
            f"{chosen.gradient_accumulation_steps}; half the activations, about the same result)"
        )
    if not settings.network.network_train_unet_only:
        advice.append("--network_train_unet_only (nothing is kept of the text encoders)")
    width, height = data.resolution
    if max(width, height) > 512:
        less = (width * 3 // 4 // 64 * 64, height * 3 // 4 // 64 * 64)
        share = less[0] * less[1] / (width * height)
        shown = f"{less[0]}" if less[0] == less[1] else f"{less[0]},{less[1]}"
        advice.append(f"--resolution {shown} (now {width}x{height}; {share:.0%} of the pixels)")
    rank = settings.network.network_dim
    if rank is not None and rank > 8:
        advice.append(
            f"--network_dim {rank // 2} (now {rank}; half of the network and of the optimizer's state)"
        )
    if chosen.optimizer_type.lower() == "adamw":
        advice.append("--optimizer_type AdamW8bit (6 bytes less for each trained value)")
    if model.mixed_precision == "no":
        advice.append("--mixed_precision bf16 (half of the model)")
    return advice or ["a smaller base, or a card with more memory"]
