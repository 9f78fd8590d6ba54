"""Look into LoRA networks and compare results."""

__version__ = "0.1.0"
