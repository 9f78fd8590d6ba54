"""Samplers: how each of them steps from noise to a picture, and its course over the levels of noise."""
