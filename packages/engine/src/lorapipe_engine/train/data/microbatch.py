"""The inputs of one forward pass, and walks over the tensors in them.

A walk takes any nest of dataclasses, tuples and tensors, so a new field of :class:`MicroBatch` (or of what it holds)
is copied, compared and captured without being named anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from lorapipe_engine.train.families.text import Conditioning, Tokens
from lorapipe_engine.train.objective.objective import Noised

Nest = TypeVar("Nest")


@dataclass(frozen=True)
class Held:
    """What a pass holds to the base's answer (see :mod:`lorapipe_engine.train.step.preserving`), on the device.

    ``weights``: of the rows' losses, divided by the number of batches of this update, (B,). ``tokens``: the captions
    that are held, one for each row, None for the batch's own. ``text``: what these were encoded to before, or None.
    """

    weights: Tensor
    tokens: Tokens | None = None
    text: Conditioning | None = None


@dataclass(frozen=True)
class SliderTexts:
    """Prompts of a slider's rows beside their target: ``empty`` is no prompt; ``strengths``: of what tells ``positive``
    from ``negative``, (B,)."""

    positive: Tokens
    negative: Tokens
    neutral: Tokens
    empty: Tokens
    strengths: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass, on the device.

    ``latents``: mean and deviation of the VAE, unscaled, (B, 2C, h, w) float32. ``tokens``: the captions. ``weights``:
    sample weights divided by the number of batches of this update, (B,). ``geometry``: SDXL's size and crop numbers
    (B, 6), else None. ``mask``: share of each latent cell that counts, (B, 1, h, w) in 0..1, or None. ``text``: what
    the captions were encoded to before, or None to encode ``tokens``. ``part``: number of the first row and count of
    rows of the batch that these are a process's share of; None: these are all. ``held``: what is held to the
    base in this pass, if anything is. ``slider``: what a slider is trained from, whose ``latents`` are zeros;
    ``walked``: what its network has made of noise for this pass.
    """

    latents: Tensor
    tokens: Tokens
    weights: Tensor
    geometry: Tensor | None = None
    mask: Tensor | None = None
    text: Conditioning | None = None
    part: tuple[int, int] | None = None
    held: Held | None = None
    slider: SliderTexts | None = None
    walked: Noised | None = None


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest, in the order of its fields."""
    if isinstance(value, Tensor):
        yield value
    else:
        for inner in _children(value):
            yield from tensors_of(inner)


def map_tensors(value: Nest, change: Callable[[Tensor], Tensor]) -> Nest:
    """The same nest with ``change`` of every tensor in its place; everything else stays as it is."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, tuple):
        changed = tuple(map_tensors(inner, change) for inner in value)
    elif is_dataclass(value) and not isinstance(value, type):
        changed = replace(
            value, **{row.name: map_tensors(getattr(value, row.name), change) for row in fields(value)}
        )
    return changed  # type: ignore[no-any-return]


def shape_of(value: Any) -> Hashable:
    """The nest with the shape of every tensor in its place: equal for two nests that one captured graph can serve."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple) or is_dataclass(value):
        return tuple(shape_of(inner) for inner in _children(value))
    return value  # type: ignore[no-any-return]


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        yield from value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, row.name) for row in fields(value))
