"""How many pictures are drawn at once, and which ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lorapipe_engine.sampling.cells import Placed
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.sample.picture import DECODED_PIXELS, batch_key

USUAL = 4  # pictures, where the memory is not known
MOST = 31  # two rows each: diffusers copies what it makes larger from 64 rows on
MOST_PIXELS = 8 * 1024 * 1024  # of a batch: a card is full long before
# Bytes of a row's activations for one latent cell, in half precision: reckoned from the widths of the blocks, with room
# to spare. On an H200 the peak of four pictures of SD 1.5 was 3.1 GiB with all weights.
ROW_BYTES = 32_000
# Of the VAE, in float32, for one pixel: reckoned too. In float32 pictures are decoded one by one.
DECODED_BYTES = 2_600
SHARE = 0.85  # of the free memory


def batch_size(asked: int | None, family: Family, width: int, height: int) -> int:
    """Pictures of width x height pixels to draw at once: ``asked``, or what goes into a card's free memory."""
    if asked is not None:
        return asked
    if family.device.type != "cuda":
        return USUAL
    free = torch.cuda.mem_get_info(family.device)[0] * SHARE
    free += torch.cuda.memory_reserved(family.device) - torch.cuda.memory_allocated(family.device)
    high, wide = family.latent_size(width, height)
    whole = 2 if family.dtype == torch.float32 else 1
    decoded = DECODED_BYTES * max(width * height, DECODED_PIXELS // 2)
    room = (free - decoded) / (2 * ROW_BYTES * whole * high * wide)
    return max(1, min(int(room), MOST, MOST_PIXELS // (width * height)))


def batches(pictures: Sequence[Placed], asked: int | None, family: Family) -> Iterator[list[Placed]]:
    """Pictures of one set of networks that can be drawn together, in their order as far as that goes. The sizes of
    batches are as even as they can be, so that few kinds of them occur."""
    alike: dict[tuple[object, ...], list[Placed]] = {}
    for placed in pictures:
        alike.setdefault(batch_key(placed.cell), []).append(placed)
    for rows in alike.values():
        cell = rows[0].cell
        count = -(-len(rows) // batch_size(asked, family, cell.width, cell.height))
        start = 0
        for place in range(count):
            stop = len(rows) * (place + 1) // count
            yield rows[start:stop]
            start = stop
