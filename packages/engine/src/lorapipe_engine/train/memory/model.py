"""How much memory of a card a run will take, from the shapes of its model alone, before a weight is loaded.

Counted are the frozen weights, what each layer of the network has (see :mod:`.network`) with gradients and optimizer
state, what the fused blocks (see ``nn/fused``) and these layers keep of each picture for the backward pass, and the
largest block's own temporaries. Two numbers cannot be counted: SPARE (the libraries' workspaces) and WORKING
(temporaries of a backward pass, in widths of a token). They are fitted by hand: measure workloads with
``tools/bench/train.py --json`` and compare its ``peak_gib`` with :func:`predict`; what does not grow with the batch
belongs to SPARE, what does to WORKING.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.train.memory.network import Row

GIB = 2**30
SPARE = 0.5 * GIB
WORKING = 24

# What a frozen transformer block keeps of each token, in its width: x of each norm, q, k, v, the attention's result, q
# and the result of cross-attention, and GEGLU's input of eight widths. A layer of CLIP has no cross-attention, and four
# widths in its middle. ACTIVE: half of that once more, in a block of the library's own.
BLOCK, TEXT_LAYER, ACTIVE = 17, 10, 4
STATE_BYTES: Mapping[str, int] = {"adamw8bit": 2, "lion8bit": 1, "lion": 4, "sgdnesterov": 4, "adafactor": 1}

# What a layer reads, by the end of its path: layers of a block with the same word read the same. "": what is there
# anyway, as x of a norm or the attention's result. "active": the activation's result, which two packs compute again. A
# layer of another path reads something of its own.
_READS: tuple[tuple[str, str], ...] = (
    (r"attn1\.to_[qkv]|self_attn\.[qkv]_proj", "first norm"),
    (r"attn2\.to_q|mlp\.fc1", "second norm"),
    (r"ff\.net\.0\.proj", "third norm"),
    (r"attn\d\.to_(k|v|out\.0)|self_attn\.out_proj|conv_shortcut|time_emb_proj|\w*norm\w*", ""),
    (r"ff\.net\.2|mlp\.fc2", "active"),
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Load:
    """What is trained: pixels of the largest bucket, pictures in a batch, bytes of a weight, optimizer, and the layers
    of the network.

    ``tokens``: of a caption with its marks, where the text encoders are trained, else 0; ``context``: those that the
    UNet reads. ``text_there``: whether the encoders lie on the card. ``latents``: bytes of cached latents there.
    ``joined``: rows that hold the network to the base go beside those of the batch, as many (see
    :mod:`lorapipe_engine.train.step.preserving`). ``averaged``: an average of the network is kept.
    """

    width: int
    height: int
    batch: int
    network: Sequence[Row] = ()
    weight_bytes: int = 2
    optimizer: str = "adamw"
    checkpointing: bool = False
    tokens: int = 0
    context: int = 77
    text_there: bool = False
    latents: float = 0.0
    joined: bool = False
    averaged: bool = False

    @property
    def rows(self) -> list[Row]:
        """The layers that are trained now: without the text encoders' where these are left alone."""
        return [row for row in self.network if row.part == "unet" or self.tokens]


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
    blocks = _unet_blocks(unet, load)
    if load.tokens:
        blocks += [row for part, of_text in texts.items() for row in _text_layers(part, of_text, load)]
    pictures = load.batch * (2 if load.joined else 1)
    kept = sum(block.bytes(pictures, load, again=load.checkpointing) for block in blocks)
    again = max(block.bytes(pictures, load) for block in blocks) if load.checkpointing else 0
    working = WORKING * max(block.token for block in blocks) * pictures * load.weight_bytes
    return Memory(
        values * load.weight_bytes,
        network_bytes(load),
        kept,
        again + working,
        SPARE + load.latents,
    )


def network_bytes(load: Load) -> float:
    """Of the network: parameters and gradients in float32, the optimizer's state, an average, what is not trained, and
    the copies that products read."""
    per_value = 8 + STATE_BYTES.get(load.optimizer.lower(), 8) + 4 * load.averaged
    return sum(row.trained * per_value + row.frozen * 4 + row.copies for row in load.rows)


# -------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class _Block:
    """What is kept of one picture for the backward pass, in values: all, what is left where the block is computed
    again, and one width of all tokens; ``own`` and ``once``: bytes of the network's layers, for each picture and for
    any number of them. ``stays``: the block is never computed again."""

    kept: float
    least: float
    token: float
    own: float = 0.0
    once: float = 0.0
    stays: bool = False

    def bytes(self, pictures: int, load: Load, *, again: bool = False) -> float:
        """Of so many pictures; ``again``: only what is left where it is computed again."""
        if again and not self.stays:
            return self.least * pictures * load.weight_bytes
        return (self.kept * load.weight_bytes + self.own) * pictures + self.once


class _Rows:
    """The network's layers of a part, which blocks take out by their paths."""

    def __init__(self, part: str, load: Load) -> None:
        self._left = {row.path: row for row in load.rows if row.part == part}
        self._load = load

    def take(self, root: str = "") -> list[tuple[str, Row]]:
        """Those inside a module that were not taken before, with their paths there."""
        start = f"{root}." if root else ""
        inside = [path for path in self._left if path.startswith(start)]
        return [(path.removeprefix(start), self._left.pop(path)) for path in inside]

    def block(
        self, root: str, area: int, kept: float, least: float, token: float = 0.0, *, stays: bool = False
    ) -> _Block:
        """The block at ``root`` with what its layers keep; ``kept``, ``least``, ``token``: of the frozen block."""
        shared: dict[str, float] = {}
        own = once = 0.0
        rows = self.take(root)
        fused = _is_fused(rows)
        for path, row in rows:
            reads = next((word for pattern, word in _READS if re.fullmatch(pattern, path)), path)
            if row.keeps.reads and reads and not (reads == "active" and fused):
                shared[reads] = float(row.inputs * area)
            own += row.keeps.each * self._positions(path, area)
            once += row.keeps.once
            if row.own_norm and ".resnets." in f".{root}":  # the activation behind it keeps what it reads
                shared[f"{path} result"] = float(row.inputs * area)
        more = sum(shared.values())
        if token and not rows:
            more += ACTIVE * token
        return _Block(kept + more, least + (more if stays else 0.0), token, own, once, stays)

    def _positions(self, path: str, area: int) -> int:
        if path == "time_emb_proj":
            return 1
        return self._load.context if path in ("attn2.to_k", "attn2.to_v") else area


def _is_fused(rows: Sequence[tuple[str, Row]]) -> bool:
    """Whether both layers of a feed-forward block are packed, with a norm of the fused operations before them: the
    activation's result is computed again then."""
    packed = [
        path
        for path, row in rows
        if row.keeps.packed and path in ("ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2")
    ]
    apart = any(row.own_norm for path, row in rows if path in ("norm3", "layer_norm2"))
    return len(packed) == 2 and not apart


def _unet_blocks(unet: Mapping[str, Any], load: Load) -> list[_Block]:
    rows = _Rows("unet", load)
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
    blocks: list[_Block] = []
    for level, width in enumerate(widths):
        depth = deep[level] if "CrossAttn" in unet["down_block_types"][level] else 0
        for layer in range(layers[level]):
            blocks += _layer(f"down_blocks.{level}", layer, channels, width, areas[level], depth, rows)
            channels = width
            skips.append(width)
        if level < count - 1:
            skips.append(width)
        blocks.append(_end(f"down_blocks.{level}", areas[level], rows))
    middle = deep[-1] if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") else 0
    blocks += _layer("mid_block", 0, channels, channels, areas[-1], middle, rows)
    blocks += _layer("mid_block", 1, channels, channels, areas[-1], 0, rows)
    for level in reversed(range(count)):
        width, index = widths[level], count - 1 - level
        depth = deep[level] if "CrossAttn" in unet["up_block_types"][index] else 0
        for layer in range(layers[level] + 1):
            into = channels + skips.pop()
            blocks += _layer(f"up_blocks.{index}", layer, into, width, areas[level], depth, rows)
            channels = width
        blocks.append(_end(f"up_blocks.{index}", areas[max(0, level - 1)], rows))
    return [*blocks, _end("time_embedding", 1, rows), _end("", areas[0], rows)]


def _layer(
    root: str, layer: int, into: int, width: int, area: int, depth: int, rows: _Rows
) -> Iterator[_Block]:
    """A residual block (the inputs of its two norms) and the transformer behind it, if any."""
    yield rows.block(f"{root}.resnets.{layer}", area, (into + width) * area, into * area)
    if depth:
        transformer = f"{root}.attentions.{layer}"
        for index in range(depth):
            inner = f"{transformer}.transformer_blocks.{index}"
            yield rows.block(inner, area, BLOCK * width * area, width * area, width * area)
        # The input of its norm.
        yield rows.block(transformer, area, width * area, width * area, stays=True)


def _end(root: str, area: int, rows: _Rows) -> _Block:
    """What is left of a part of the UNet: samplers, embeddings, the layers at both ends."""
    return rows.block(root, area, 0.0, 0.0, stays=True)


def _text_layers(part: str, shapes: Shapes, load: Load) -> Iterator[_Block]:
    ends = re.compile(r"(.*encoder\.layers\.\d+)\.mlp\.fc1\.weight")
    rows = _Rows(part, load)
    for name, shape in shapes.items():
        if layer := ends.fullmatch(name):
            token = float(shape[1] * load.tokens)
            yield rows.block(layer[1], load.tokens, TEXT_LAYER * token, token, token)


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
