"""Which layers of a model are trained: sd-scripts' choice, or a preset of LyCORIS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn

from lorapipe_engine.models import keys
from lorapipe_engine.nn.attach import Kind, NetworkPlan, Target
from lorapipe_engine.train.families.base import Family, TargetModule

# Layers at the ends of a UNet, that LyCORIS' preset "full" trains too.
_ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


def every_layer(family: Family) -> Iterator[TargetModule]:
    """Every layer that any choice may train, in order: text encoders, then the UNet. Call it before adapters are
    attached."""
    yield from family.target_modules(conv=True)
    there = dict(family.denoiser.named_modules())
    for path in _ENDS:
        if isinstance(there.get(path), nn.Linear | nn.Conv2d):
            yield TargetModule("unet", path, there[path])


def every_norm(family: Family) -> Iterator[TargetModule]:
    """Every norm with a weight in the denoiser's blocks of attention and in its residual blocks, in order. In text
    encoders none is trained, as in LyCORIS."""
    part = family.facts.denoiser
    classes = (*family.facts.targets[part], *family.facts.conv_targets.get(part, ()))
    for path, block in family.parts[part].named_modules():
        if type(block).__name__ not in classes:
            continue
        for inner, module in block.named_modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                yield TargetModule(part, keys.canonical(family.name, part, f"{path}.{inner}"), module)


def is_large(module: nn.Module) -> bool:
    """Whether a layer is a convolution with a kernel above 1x1."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def _attention(row: TargetModule) -> bool:
    return row.part != "unet" or ".attentions." in row.path


def _ia3(row: TargetModule) -> bool:
    return bool(re.search(r"\.(to_k|to_v|ff\.net\.2|k_proj|v_proj|fc2)$", row.path))


# Of all layers, those that a preset trains; counts of the published models are in the tests.
PRESETS: Mapping[str, Callable[[TargetModule], bool]] = {
    "full": lambda _row: True,
    "full-lin": lambda row: not is_large(row.module),
    "attn-mlp": _attention,
    "attn-only": lambda row: bool(re.search(r"\.(attn1|attn2|self_attn)\.", row.path)),
    "unet-only": lambda row: row.part == "unet",
    "unet-transformer-only": lambda row: row.part == "unet" and _attention(row),
    "unet-convblock-only": lambda row: (
        row.part == "unet" and not _attention(row) and not row.path.startswith("time_embedding.")
    ),
    "ia3": _ia3,
}
# Where a preset trains norms: in blocks of attention, in residual blocks.
_NORMS: Mapping[str, tuple[bool, bool]] = {
    "full": (True, True),
    "full-lin": (True, True),
    "attn-mlp": (True, False),
    "unet-only": (True, True),
    "unet-transformer-only": (True, False),
    "unet-convblock-only": (False, True),
}
# Layers whose input is scaled in the preset "ia3", not their output.
_ON_INPUT = re.compile(r"(ff_net_2|mlp_fc2)$")


def targets_of(family: Family, *, conv: bool, preset: str | None = None, every: bool = False) -> list[Target]:
    """The layers to train: those of attention and feed-forward, with ``conv`` of residual blocks and samplers too; or
    those of a preset; or ``every`` one, because a file says which."""
    rows: Iterable[TargetModule]
    if every:
        rows = every_layer(family)
    elif preset is None:
        rows = family.target_modules(conv=conv)
    else:
        rows = filter(PRESETS[preset], every_layer(family))
    return as_targets(family, rows)


def as_targets(family: Family, rows: Iterable[TargetModule]) -> list[Target]:
    """The layers under their names in a file."""
    return [Target(row.part, family.lora_name(row.part, row.path), row.module) for row in rows]


def norms_of(family: Family, *, conv: bool, preset: str | None = None) -> list[Target]:
    """The norms that ``train_norm`` trains: those in blocks of which a choice trains the layers."""
    attention, residual = (True, conv) if preset is None else _NORMS.get(preset, (False, False))
    rows = (row for row in every_norm(family) if (attention if ".attentions." in row.path else residual))
    return as_targets(family, rows)


def with_kinds(plan: NetworkPlan, preset: str | None, targets: Iterable[Target]) -> NetworkPlan:
    """The plan with what a preset says of single layers."""
    if preset != "ia3" or plan.kind.algorithm != "ia3":
        return plan
    kind = Kind("ia3", {**plan.kind.options, "train_on_input": True})
    return replace(plan, kinds={row.name: kind for row in targets if _ON_INPUT.search(row.name)})
