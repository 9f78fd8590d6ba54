"""Shrink LoRA networks by exact SVD."""

__version__ = "0.1.0"
