"""``lora-train``: options in, network files out. Imports nothing heavy before the options are sound."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command import tool_command
from lorapipe_engine.config import build_settings, settings_options
from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.settings import PARTS, TrainSettings

TRAIN_EXAMPLES = """
lora-train --base animefull.safetensors --train_data_dir dataset --output_dir out --output_name mayuri
lora-train --config_file mayuri.toml --network_dim 32
lora-train --base demo --train_data_dir demo-run/dataset --resolution 64 --max_train_epochs 4 --output_dir out
"""
