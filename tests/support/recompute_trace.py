"""Compute a traced step again, with diffusers' and transformers' modules alone, and compare loss and gradients.

    python tests/support/recompute_trace.py TRACE --base FOLDER [--clip_skip 2]

TRACE is a file of ``lora-train --trace_steps``, FOLDER the base as a diffusers folder. Nothing of this project is
imported: names, scale and text states are worked out here. Prints the figures, and exits with 1 where one is larger
than the limit. Reads traces of captions of up to 75 tokens, of ``loss_type`` l2, without dropouts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 1e-4  # relative
# What moves by less than this share of the largest gradient is compared with that share.
FLOOR = 1e-3


@dataclass(frozen=True)
class Base:
    """diffusers' UNet and transformers' text encoders: one, or SDXL's two."""

    unet: nn.Module
    text_encoders: Sequence[nn.Module]

    @property
    def is_xl(self) -> bool:
        return len(self.text_encoders) > 1


@dataclass(frozen=True)
class Comparison:
    """Relative errors: of the step's loss, and the largest of any gradient with its name."""

    loss: float
    gradient: float
    worst: str
    gradients: int

    @property
    def largest(self) -> float:
        return max(self.loss, self.gradient)


def read_trace(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_base(folder: Path) -> Base:
    """The modules of a diffusers folder, in float32."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    plain = {"torch_dtype": torch.float32, "local_files_only": True}
    encoders: list[nn.Module] = []
    if (folder / "text_encoder_2").is_dir():
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", **plain)
        encoders.append(second.eval().requires_grad_(False))
    first = CLIPTextModel.from_pretrained(folder / "text_encoder", **plain)
    encoders.insert(0, first.eval().requires_grad_(False))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **plain)
    return Base(unet.eval().requires_grad_(False), encoders)


# -------------------------------------------------------------------------------- the network


def file_name(part: str, path: str, is_xl: bool) -> str:
    """The name of a module in a LoRA file; SDXL's UNet goes by the names of the original program."""
    if part != "unet":
        path = path if path.startswith("text_model.") else f"text_model.{path}"
        prefix = "lora_te" if not is_xl else f"lora_{part}"
        return f"{prefix}_{path}".replace(".", "_")
    return "lora_unet_" + (original_name(path) if is_xl else path).replace(".", "_")


def original_name(path: str) -> str:
    """down_blocks.i.attentions.j -> input_blocks.(3i+j+1).1 and so on."""
    inner = {
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    resnet = re.compile(r"(.*resnets\.\d+)\.(\w+)$").match(path)
    if resnet and resnet[2] in inner:
        path = f"{resnet[1]}.{inner[resnet[2]]}"
    place = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(.*)").match(path)
    if place:
        way, block, kind, index, rest = place.groups()
        number = 3 * int(block) + int(index) + (1 if way == "down" else 0)
        return f"{'input' if way == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}{rest}"
    place = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv").match(path)
    if place:
        block = int(place[2])
        return (
            f"input_blocks.{3 * block + 3}.0.op"
            if place[1] == "down"
            else f"output_blocks.{3 * block + 2}.2.conv"
        )
    for there, here in {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}.items():
        path = path.replace(f"mid_block.{there}", f"middle_block.{here}")
    return path


class Branch:
    """A hook that adds ``alpha / rank · up(down(x))`` to what a module gives."""

    def __init__(self, down: Tensor, up: Tensor, alpha: Tensor) -> None:
        self.down, self.up, self.scale = down, up, float(alpha) / down.shape[0]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            hidden = F.conv2d(inputs[0], self.down, None, module.stride, module.padding)
            return out + self.scale * F.conv2d(hidden, self.up)
        return out + self.scale * F.linear(F.linear(inputs[0], self.down), self.up)


def with_network(base: Base, factors: Mapping[str, Tensor]) -> list[Any]:
    """Hook the network into the base; the hooks. Raises ValueError for a module that the base has not."""
    parts = {f"te{index}": encoder for index, encoder in enumerate(base.text_encoders, start=1)}
    left = {name.partition(".")[0] for name in factors}
    hooks = []
    for part, root in {**parts, "unet": base.unet}.items():
        for path, module in root.named_modules():
            name = file_name(part, path, base.is_xl)
            if name in left:
                roles = (f"{name}.{role}" for role in ("lora_down.weight", "lora_up.weight", "alpha"))
                hooks.append(module.register_forward_hook(Branch(*(factors[role] for role in roles))))
                left.remove(name)
    if left:
        raise ValueError(f"{len(left)} modules of the trace are not in this base, such as {min(left)}")
    return hooks


# -------------------------------------------------------------------------------- the step


def text_states(
    base: Base, trace: Mapping[str, Tensor], n: int, clip_skip: int
) -> tuple[Tensor, Tensor | None]:
    """The text states of pass ``n``, and the pooled state of the last encoder that has one."""
    found, pooled = [], None
    for index, encoder in enumerate(base.text_encoders, start=1):
        ids = trace[f"{n}.input_ids.te{index}"]
        if ids.shape[1] != 1:
            raise ValueError("the captions have several chunks; trace with --max_token_length 75")
        out = encoder(ids[:, 0], output_hidden_states=True)
        if base.is_xl:
            found.append(out.hidden_states[-2])
            pooled = getattr(out, "text_embeds", pooled)
        else:
            inner = getattr(encoder, "text_model", encoder)
            found.append(inner.final_layer_norm(out.hidden_states[-clip_skip]))
    return torch.cat(found, dim=-1), pooled


def compute_again(
    base: Base, trace: Mapping[str, Tensor], clip_skip: int = 1
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the traced step, the latter by their names in the trace without ``grad.``."""
    factors = {
        name.removeprefix("network."): tensor.clone().requires_grad_(not name.endswith(".alpha"))
        for name, tensor in trace.items()
        if name.startswith("network.")
    }
    hooks = with_network(base, factors)
    total, n = 0.0, 0
    while f"{n}.latents" in trace:
        hidden, pooled = text_states(base, trace, n, clip_skip)
        added = {"text_embeds": pooled, "time_ids": trace[f"{n}.size_ids"]} if base.is_xl else None
        noisy, timesteps = trace[f"{n}.noisy_latents"], trace[f"{n}.timesteps"]
        out = base.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample
        square = (out - trace[f"{n}.target"]).square() * trace.get(f"{n}.mask", torch.ones(()))
        loss = (square.mean(dim=(1, 2, 3)) * trace[f"{n}.loss_weights"]).mean()
        loss.backward()
        total += float(loss.detach())
        n += 1
    for hook in hooks:
        hook.remove()
    return total, {name: tensor.grad for name, tensor in factors.items() if tensor.grad is not None}


def compare(base: Base, trace: Mapping[str, Tensor], clip_skip: int = 1) -> Comparison:
    """How far the trace's loss and gradients are from those computed here."""
    loss, gradients = compute_again(base, trace, clip_skip)
    traced = {name.removeprefix("grad."): value for name, value in trace.items() if name.startswith("grad.")}
    if not traced:
        raise ValueError("the trace holds no gradients")
    if not all(bool(value.isfinite().all()) for value in (*traced.values(), *gradients.values())):
        raise ValueError("a gradient is not finite")
    largest = max(float(value.abs().max()) for value in traced.values())
    errors = {}
    for name, value in traced.items():
        again = gradients.get(name, torch.zeros_like(value)).reshape(value.shape)
        size = max(float(value.abs().max()), FLOOR * largest)
        errors[name] = float((again - value).abs().max()) / size
    worst = max(errors, key=lambda name: errors[name])
    said = float(trace["loss"])
    return Comparison(abs(loss - said) / abs(said), errors[worst], worst, len(errors))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, nargs="+", help="files of --trace_steps")
    parser.add_argument("--base", type=Path, required=True, help="the base, a diffusers folder")
    parser.add_argument("--clip_skip", type=int, default=1, help="as in training; SD 1.x has 2 by default")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest relative error")
    parser.add_argument("--json", action="store_true", help="one JSON object a trace")
    options = parser.parse_args()
    base = read_base(options.base)
    good = True
    for path in options.trace:
        found = compare(base, read_trace(path), options.clip_skip)
        good &= found.largest <= options.limit
        if options.json:
            print(json.dumps({"trace": str(path), **vars(found)}))
        else:
            print(
                f"{path.name}: loss {found.loss:.1e}, {found.gradients} gradients, the farthest "
                f"{found.gradient:.1e} ({found.worst}); {'agrees' if found.largest <= options.limit else 'DIFFERS'}"
            )
    sys.exit(not good)


if __name__ == "__main__":
    main()
