"""Samplers and the levels of noise that they step down, under the names that users know."""
