"""How much memory of a card a run will take, from the shapes of its model alone, before a weight is loaded.

Counted are the frozen weights, the network with its gradients and optimizer state, what the fused blocks (see
``nn/fused``) keep of each picture for the backward pass, and the largest block's own temporaries. Two numbers cannot be
counted: SPARE (the libraries' workspaces) and WORKING (temporaries of a backward pass, in widths of a token). They are
fitted by hand: measure workloads with ``tools/bench/train.py --json`` and compare its ``peak_gib`` with
:func:`predict`; what does not grow with the batch belongs to SPARE, what does to WORKING.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30
SPARE = 0.5 * GIB
WORKING = 24

# What a transformer block keeps of each token, in its width: x and its norm thrice each, q, k, v, the attention's
# result, q and the result of cross-attention, and GEGLU's input of eight widths. A layer of CLIP has no
# cross-attention, and four widths in its middle.
BLOCK, TEXT_LAYER = 20, 12
BLOCK_RANKS, TEXT_RANKS = 8, 6  # activations of the network's rank in each
STATE_BYTES: Mapping[str, int] = {"adamw8bit": 2, "lion8bit": 1, "lion": 4, "sgdnesterov": 4, "adafactor": 1}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Load:
    """What is trained: pixels of the largest bucket, pictures in a batch, rank, bytes of a weight, optimizer.

    ``tokens``: of a caption with its marks, where the text encoders are trained, else 0. ``text_there``: whether the
    encoders lie on the card. ``latents``: bytes of cached latents there. ``count``: trained values of the network for
    a weight of a shape; None: LoRA's at ``rank``. ``joined``: rows that hold the network to the base go beside those of
    the batch, as many (see :mod:`lorapipe_engine.train.step.preserving`). ``averaged``: an average of the network is
    kept.
    """

    width: int
    height: int
    batch: int
    rank: int
    weight_bytes: int = 2
    optimizer: str = "adamw"
    checkpointing: bool = False
    tokens: int = 0
    text_there: bool = False
    latents: float = 0.0
    count: Callable[[tuple[int, ...]], int] | None = None
    joined: bool = False
    averaged: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they are for."""

    weights: float
    network: float
    activations: float
    working: float
    rest: float

    @property
    def gib(self) -> float:
        """All of it in GiB."""
        return (self.weights + self.network + self.activations + self.working + self.rest) / GIB


def predict(unet: Mapping[str, Any], shapes: Mapping[str, Shapes], load: Load) -> Memory:
    """The peak of a run. ``unet``: arguments of the UNet, ``shapes``: of the tensors of each part ("unet", "te1",
    "te2"), both as :mod:`.architecture` has them."""
    texts = {part: of_text for part, of_text in shapes.items() if part.startswith("te")}
    values = _count(shapes["unet"]) + sum(_count(row) for row in texts.values() if load.text_there)
    trained = [shapes["unet"], *(texts.values() if load.tokens else ())]
    network = sum(_trained(row, load) for row in trained)
    # The parameter and its gradient in float32, the optimizer's state, and the copy that the products read.
    per_value = 8 + STATE_BYTES.get(load.optimizer.lower(), 8) + load.weight_bytes + 4 * load.averaged
    blocks = list(_unet_blocks(unet, load))
    if load.tokens:
        blocks += [row for of_text in texts.values() for row in _text_layers(of_text, load)]
    kept = sum(block.least if load.checkpointing else block.kept for block in blocks)
    again = max(block.kept for block in blocks) if load.checkpointing else 0
    scale = load.batch * (2 if load.joined else 1) * load.weight_bytes
    return Memory(
        values * load.weight_bytes,
        network * per_value,
        kept * scale,
        (again + WORKING * max(block.token for block in blocks)) * scale,
        SPARE + load.latents,
    )


@dataclass(frozen=True)
class _Block:
    """Values of one picture: kept for the backward pass, kept where it is computed again, one width of all tokens."""

    kept: float
    least: float
    token: float


def _unet_blocks(unet: Mapping[str, Any], load: Load) -> Iterator[_Block]:
    widths = list(unet["block_out_channels"])
    count = len(widths)
    layers = _each(unet.get("layers_per_block", 2), count)
    deep = _each(unet.get("transformer_layers_per_block", 1), count)
    factor = 8
    areas = [
        -(-load.width // (factor << level)) * -(-load.height // (factor << level)) for level in range(count)
    ]
    skips = [widths[0]]
    channels = widths[0]
    for level, width in enumerate(widths):
        depth = deep[level] if "CrossAttn" in unet["down_block_types"][level] else 0
        for _ in range(layers[level]):
            yield from _layer(channels, width, areas[level], depth, load)
            channels = width
            skips.append(width)
        if level < count - 1:
            skips.append(width)
    middle = deep[-1] if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") else 0
    yield from _layer(channels, channels, areas[-1], middle, load)
    yield from _layer(channels, channels, areas[-1], 0, load)
    for level in reversed(range(count)):
        width = widths[level]
        depth = deep[level] if "CrossAttn" in unet["up_block_types"][count - 1 - level] else 0
        for _ in range(layers[level] + 1):
            yield from _layer(channels + skips.pop(), width, areas[level], depth, load)
            channels = width


def _layer(into: int, width: int, area: int, depth: int, load: Load) -> Iterator[_Block]:
    """A residual block (the inputs of its two norms) and the transformer behind it, if any."""
    yield _Block((into + width) * area, into * area, 0)
    if depth:
        # Of the transformer itself: the input of its norm, and those of its first and last product.
        yield _Block((3 * width + 2 * load.rank) * area, (3 * width + 2 * load.rank) * area, 0)
        one = (BLOCK * width + BLOCK_RANKS * load.rank) * area
        yield from [_Block(one, width * area, width * area)] * depth


def _text_layers(shapes: Shapes, load: Load) -> Iterator[_Block]:
    first = "encoder.layers.0.mlp.fc1.weight"
    width = next(shape[1] for name, shape in shapes.items() if name.endswith(first))
    layers = sum(name.endswith(".mlp.fc1.weight") for name in shapes)
    one = (TEXT_LAYER * width + TEXT_RANKS * load.rank) * load.tokens
    yield from [_Block(one, width * load.tokens, width * load.tokens)] * layers


def _trained(shapes: Shapes, load: Load) -> int:
    """Values of a network on every linear layer and 1x1 convolution of attention and feed-forward."""
    count = load.count or (lambda shape: load.rank * (shape[0] + shape[1]))
    return sum(
        count(shape)
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) >= 2
        and ("attentions." in name or "self_attn." in name or ".mlp." in name)
    )


def _count(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _each(value: int | Sequence[int], count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)
