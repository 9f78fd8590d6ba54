"""Trainable network modules (torch): how they are put into a model, and what all algorithms build on."""
