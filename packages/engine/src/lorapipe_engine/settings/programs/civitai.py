"""Training parameters as Civitai's trainer shows them: flat JSON of camel-case names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry
from lorapipe_engine.errors import ConfigError

NAME = "Civitai's trainer"
_MARKS = ("unetLR", "textEncoderLR", "networkDim", "targetSteps")
_OPTIONS = {
    "unetLR": "unet_lr",
    "textEncoderLR": "text_encoder_lr",
    "clipSkip": "clip_skip",
    "keepTokens": "keep_tokens",
    "networkDim": "network_dim",
    "networkAlpha": "network_alpha",
    "numRepeats": "dataset_repeats",
    "resolution": "resolution",
    "lrScheduler": "lr_scheduler",
    "lrSchedulerNumCycles": "lr_scheduler_num_cycles",
    "minSnrGamma": "min_snr_gamma",
    "noiseOffset": "noise_offset",
    "enableBucket": "enable_bucket",
    "optimizerType": "optimizer_type",
    "optimizerArgs": "optimizer_args",
    "maxTrainEpochs": "max_train_epochs",
    "shuffleCaption": "shuffle_caption",
    "trainBatchSize": "train_batch_size",
    "flipAugmentation": "flip_aug",
}
# Both must be of these values, as the other ones name another trainer or another network.
_ONLY = {"engine": ("kohya",), "loraType": ("lora",)}
_DERIVED = "targetSteps"


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    return [name for name in _MARKS if name in table]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a file and what the user should know of it. Raises ConfigError."""
    for key, values in _ONLY.items():
        if table.get(key, values[0]) not in values:
            raise ConfigError(
                f"{path}: {key}: '{table[key]}' is not read, only {', '.join(values)}; write the options as "
                "network_module and network_args"
            )
    entries = [
        Entry(_OPTIONS.get(key, key), value, key)
        for key, value in table.items()
        if key not in _ONLY and key != _DERIVED
    ]
    notes = []
    if _DERIVED in table:
        notes.append(
            f"{_DERIVED}: worked out from the pictures, numRepeats, maxTrainEpochs and trainBatchSize"
        )
    if known := [key for key in _ONLY if key in table]:
        notes.append(f"{', '.join(known)}: as lora-train has it")
    return entries, notes
