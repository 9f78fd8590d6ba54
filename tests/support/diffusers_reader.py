"""diffusers' own reader of networks, listened to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def pipeline(unet: Any, vae: Any, text_encoders: Sequence[Any]) -> Any:
    """diffusers' pipeline of modules: SDXL's where there are two text encoders. It has no tokenizer."""
    import diffusers

    common: dict[str, Any] = {
        "vae": vae,
        "unet": unet,
        "text_encoder": text_encoders[0],
        "tokenizer": None,
        "scheduler": diffusers.DDIMScheduler(),
    }
    if len(text_encoders) == 2:
        return diffusers.StableDiffusionXLPipeline(
            **common, text_encoder_2=text_encoders[1], tokenizer_2=None
        )
    return diffusers.StableDiffusionPipeline(
        **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def load_into(pipeline: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Load a network into diffusers' pipeline. Fails where diffusers says that keys are missing or left over."""
    import diffusers

    diffusers.utils.logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    finally:
        diffusers.utils.logging.disable_propagation()
    said = [row.getMessage().lower() for row in caplog.records]
    assert not [line for line in said if "unexpected" in line or "missing" in line or "not found" in line]
