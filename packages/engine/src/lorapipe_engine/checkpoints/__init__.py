"""Checkpoints opened as they lie on the disk: one file, or a diffusers folder."""
