"""Shared core and CUDA training engine for LoRA networks."""

__version__ = "0.1.0"
