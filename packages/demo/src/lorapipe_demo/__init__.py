"""A tiny real Stable Diffusion and the drawn world it was trained on."""

__version__ = "0.1.0"
