"""Merge LoRA networks and checkpoints."""

__version__ = "0.1.0"
