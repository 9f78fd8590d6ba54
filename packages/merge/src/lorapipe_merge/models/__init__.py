"""Checkpoints into one."""
