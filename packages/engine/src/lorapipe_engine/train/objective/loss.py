"""Losses between a prediction and its target, whatever the objective is, as pure functions on tensors."""

from __future__ import annotations

from torch import Tensor


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    kind: str = "l2",
    threshold: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each sample before its weights, (B,) float32: element loss, times the mask, mean over C, h, w.

    ``kind``: l2, l1, huber or smooth_l1; the last two turn from square to linear at ``threshold`` (B,). ``mask`` is
    (B, 1, h, w) in 0..1; the mean is not renormalised by it. Nothing here waits for the device.
    """
    difference = prediction.float() - target.float()
    if kind == "l2":
        loss = difference.square()
    elif kind == "l1":
        loss = difference.abs()
    elif threshold is None:
        raise ValueError(f"{kind} needs a threshold")
    else:
        delta = threshold.view(-1, 1, 1, 1)
        bowl = (difference.square() + delta.square()).sqrt() - delta
        loss = 2 * delta * bowl if kind == "huber" else 2 * bowl
    if mask is not None:
        loss = loss * mask
    return loss.mean(dim=(1, 2, 3))
