"""What makes steps fast: fused blocks, and the step as a captured graph. Results are the same up to rounding."""

from __future__ import annotations

from collections.abc import Callable

from lorapipe_engine.nn.fused.unet import fuse
from lorapipe_engine.nn.quantize import is_quantized
from lorapipe_engine.train.step.capture import StepGraphs
from lorapipe_engine.train.step.step import Stepper

Say = Callable[[str], None]


def speed_up(stepper: Stepper, *, capture: bool, say: Say) -> None:
    """Fuse the model's blocks where it lies on a CUDA device, and capture its steps if ``capture`` and it works."""
    family = stepper.family
    if family.device.type != "cuda":
        return
    # Packed products hold base and LoRA in one matrix of one precision, at strength 1. A slider's is off and turned
    # round too.
    if stepper.slide is not None:
        say("note: a slider's steps are not fused")
    elif not any(is_quantized(root) for root in family.parts.values()):
        stepper.packs = fuse(family.denoiser, list(family.text.modules.values()))
    if not capture:
        return
    reason = stepper.why_not_captured
    if reason is None:
        stepper.graphs = StepGraphs(say, alone=stepper.processes.count == 1)
        # What adapters compute together lies elsewhere in each step.
        if stepper.slide is not None and not stepper.network.together:
            stepper.slide.answers.record(say)
    else:
        say(f"note: steps are not captured: {reason}")
