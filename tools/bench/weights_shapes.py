"""Names and shapes of every tensor in SD 1.5 and SDXL single-file checkpoints, and of LoRA files for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorapipe_engine.models.keys import locate, lora_name

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What SD 1.5 and SDXL differ in. ``depths`` are transformer layers by UNet level, the middle's last."""

    multiples: tuple[int, ...]
    depths: tuple[int, ...]
    context: int
    conv_projections: bool
    labels: int


SD15 = Architecture(
    multiples=(1, 2, 4, 4), depths=(1, 1, 1, 0, 1), context=768, conv_projections=True, labels=0
)
SDXL = Architecture(
    multiples=(1, 2, 4), depths=(0, 2, 10, 10), context=2048, conv_projections=False, labels=2816
)
ARCHITECTURES = {"sd1": SD15, "sdxl": SDXL}
WIDTH = 320
TIME = 4 * WIDTH


def checkpoint_shapes(family: str) -> dict[str, Shape]:
    """Every tensor of a checkpoint of that family ("sd1" or "sdxl"): 2.1 or 6.9 GB at 16 bits."""
    shapes = {f"model.diffusion_model.{name}": s for name, s in _unet(ARCHITECTURES[family])}
    shapes.update((f"first_stage_model.{name}", s) for name, s in _vae())
    clip = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
    shapes.update((f"{clip}.transformer.text_model.{name}", s) for name, s in _clip())
    if family == "sdxl":
        shapes.update((f"conditioner.embedders.1.model.{name}", s) for name, s in _openclip())
    return shapes


def lora_shapes(family: str, rank: int, conv_rank: int = 0) -> dict[str, Shape]:
    """Tensors of a LoRA file of kohya's targets: 264 modules (SD 1.5), 986 (SDXL); with ``conv_rank`` 86 or
    66 more.
    """
    shapes: dict[str, Shape] = {}
    for key, shape in checkpoint_shapes(family).items():
        if key.endswith(("in_proj_weight", ".weight")) and len(shape) > 1:
            for place in locate(key, shape, family):
                kernel = shape[2:]
                r = conv_rank if kernel == (3, 3) else rank
                if place.part == "vae" or not r or not _is_target(place.path, with_conv=conv_rank > 0):
                    continue
                name = lora_name(family, place.part, place.path)
                shapes[f"{name}.lora_down.weight"] = (r, *shape[1:])
                shapes[f"{name}.lora_up.weight"] = (place.stop - place.start, r, *(1 for _ in kernel))
                shapes[f"{name}.alpha"] = ()
    return shapes


def is_trained(key: str, shape: Shape) -> bool:
    """Whether kohya's trainer changes the checkpoint's tensor, with convolutions."""
    families = [
        f
        for f in ARCHITECTURES
        if key.startswith("conditioner.") == (f == "sdxl") or key.startswith("model.")
    ]
    places = [place for family in families for place in locate(key, shape, family)]
    return any(p.kind == "weight" and p.part != "vae" and _is_target(p.path, with_conv=True) for p in places)


def _is_target(path: str, *, with_conv: bool) -> bool:
    if path.startswith("text_model."):
        return ".self_attn." in path or ".mlp." in path
    return ".attentions." in path or (with_conv and path.startswith(("down_", "mid_", "up_")))


def _layer(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _residual(name: str, source: int, target: int) -> Named:
    yield from _layer(f"{name}.in_layers.0", source)
    yield from _layer(f"{name}.in_layers.2", target, source, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", target, TIME)
    yield from _layer(f"{name}.out_layers.0", target)
    yield from _layer(f"{name}.out_layers.3", target, target, 3, 3)
    if source != target:
        yield from _layer(f"{name}.skip_connection", target, source, 1, 1)


def _transformer(name: str, c: int, depth: int, facts: Architecture) -> Named:
    projection = (c, c, 1, 1) if facts.conv_projections else (c, c)
    yield from _layer(f"{name}.norm", c)
    yield from _layer(f"{name}.proj_in", *projection)
    for d in range(depth):
        block = f"{name}.transformer_blocks.{d}"
        for attention, context in (("attn1", c), ("attn2", facts.context)):
            yield f"{block}.{attention}.to_q.weight", (c, c)
            yield f"{block}.{attention}.to_k.weight", (c, context)
            yield f"{block}.{attention}.to_v.weight", (c, context)
            yield from _layer(f"{block}.{attention}.to_out.0", c, c)
        yield from _layer(f"{block}.ff.net.0.proj", 8 * c, c)
        yield from _layer(f"{block}.ff.net.2", c, 4 * c)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{block}.{norm}", c)
    yield from _layer(f"{name}.proj_out", *projection)


def _unet(facts: Architecture) -> Named:
    yield from _layer("time_embed.0", TIME, WIDTH)
    yield from _layer("time_embed.2", TIME, TIME)
    if facts.labels:
        yield from _layer("label_emb.0.0", TIME, facts.labels)
        yield from _layer("label_emb.0.2", TIME, TIME)
    yield from _layer("input_blocks.0.0", WIDTH, 4, 3, 3)
    channels, number, skips = WIDTH, 1, [WIDTH]
    last = len(facts.multiples) - 1
    for level, multiple in enumerate(facts.multiples):
        for _ in range(2):
            yield from _residual(f"input_blocks.{number}.0", channels, multiple * WIDTH)
            channels = multiple * WIDTH
            if facts.depths[level]:
                yield from _transformer(f"input_blocks.{number}.1", channels, facts.depths[level], facts)
            skips.append(channels)
            number += 1
        if level < last:
            yield from _layer(f"input_blocks.{number}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            number += 1
    yield from _residual("middle_block.0", channels, channels)
    yield from _transformer("middle_block.1", channels, facts.depths[-1], facts)
    yield from _residual("middle_block.2", channels, channels)
    yield from _unet_up(facts, skips, channels)
    yield from _layer("out.0", WIDTH)
    yield from _layer("out.2", 4, WIDTH, 3, 3)


def _unet_up(facts: Architecture, skips: list[int], channels: int) -> Named:
    number = 0
    for level in reversed(range(len(facts.multiples))):
        for layer in range(3):
            target = facts.multiples[level] * WIDTH
            yield from _residual(f"output_blocks.{number}.0", channels + skips.pop(), target)
            channels = target
            depth = facts.depths[level]
            if depth:
                yield from _transformer(f"output_blocks.{number}.1", channels, depth, facts)
            if layer == 2 and level:
                slot = 2 if depth else 1
                yield from _layer(f"output_blocks.{number}.{slot}.conv", channels, channels, 3, 3)
            number += 1


def _vae() -> Named:
    levels = (128, 256, 512, 512)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    yield from _layer("encoder.conv_in", 128, 3, 3, 3)
    channels = 128
    for level, target in enumerate(levels):
        for block in range(2):
            yield from _vae_residual(f"encoder.down.{level}.block.{block}", channels, target)
            channels = target
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", target, target, 3, 3)
    yield from _vae_middle("encoder")
    yield from _layer("encoder.norm_out", 512)
    yield from _layer("encoder.conv_out", 8, 512, 3, 3)
    yield from _layer("decoder.conv_in", 512, 4, 3, 3)
    yield from _vae_middle("decoder")
    for level in (3, 2, 1, 0):
        for block in range(3):
            yield from _vae_residual(f"decoder.up.{level}.block.{block}", channels, levels[level])
            channels = levels[level]
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    yield from _layer("decoder.norm_out", 128)
    yield from _layer("decoder.conv_out", 3, 128, 3, 3)


def _vae_residual(name: str, source: int, target: int) -> Named:
    yield from _layer(f"{name}.norm1", source)
    yield from _layer(f"{name}.conv1", target, source, 3, 3)
    yield from _layer(f"{name}.norm2", target)
    yield from _layer(f"{name}.conv2", target, target, 3, 3)
    if source != target:
        yield from _layer(f"{name}.nin_shortcut", target, source, 1, 1)


def _vae_middle(side: str) -> Named:
    yield from _vae_residual(f"{side}.mid.block_1", 512, 512)
    yield from _layer(f"{side}.mid.attn_1.norm", 512)
    for name in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{side}.mid.attn_1.{name}", 512, 512, 1, 1)
    yield from _vae_residual(f"{side}.mid.block_2", 512, 512)


def _clip() -> Named:
    yield "embeddings.token_embedding.weight", (49408, 768)
    yield "embeddings.position_embedding.weight", (77, 768)
    for layer in range(12):
        name = f"encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{part}", 768, 768)
        yield from _layer(f"{name}.layer_norm1", 768)
        yield from _layer(f"{name}.mlp.fc1", 3072, 768)
        yield from _layer(f"{name}.mlp.fc2", 768, 3072)
        yield from _layer(f"{name}.layer_norm2", 768)
    yield from _layer("final_layer_norm", 768)


def _openclip() -> Named:
    yield "positional_embedding", (77, 1280)
    yield "text_projection", (1280, 1280)
    yield "logit_scale", ()
    yield "token_embedding.weight", (49408, 1280)
    for layer in range(32):
        name = f"transformer.resblocks.{layer}"
        yield f"{name}.attn.in_proj_weight", (3840, 1280)
        yield f"{name}.attn.in_proj_bias", (3840,)
        yield from _layer(f"{name}.attn.out_proj", 1280, 1280)
        yield from _layer(f"{name}.ln_1", 1280)
        yield from _layer(f"{name}.ln_2", 1280)
        yield from _layer(f"{name}.mlp.c_fc", 5120, 1280)
        yield from _layer(f"{name}.mlp.c_proj", 1280, 5120)
    yield from _layer("ln_final", 1280)
