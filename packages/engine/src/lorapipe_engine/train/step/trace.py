"""A trace of chosen steps for those who must be sure: all that a step used and made, one safetensors file a step.

Tensors of the n-th forward pass of the step (n counts the batches of an accumulation group) have ``n.`` in front:

=================== ====================================================================================
latents             what is trained on, drawn from the VAE's distribution and scaled, (B, C, h, w)
noise               ε as drawn, with offsets, (B, C, h, w)
timesteps           (B,) int64, of flow float32
noisy_latents       what the denoiser is given, (B, C, h, w)
input_ids.te1, .te2 token ids of each tokenizer, (B, ...) int64
text_states         what the denoiser is told, (B, L, C)
pooled, size_ids    SDXL only: pooled text (B, P), sizes and crop (B, 6)
mask                share of each latent cell that counts, (B, 1, h, w), if masks are used
prediction, target  (B, C, h, w)
loss_weights        what each sample's loss is multiplied with before the mean, (B,)
losses              each sample's loss before that, (B,)
loss                the batch's share of the step's loss, a number
held.answer         with --preserve: what the base says to the held captions, (B, C, h, w)
held.prediction     what the network says to them, (B, C, h, w)
held.losses         each sample's loss between the two before its weight (held.weights), (B,)
held.loss           the batch's share of the term, before the term's own weight, a number
held.input_ids.te1  token ids of the held captions, and .te2
=================== ====================================================================================

``network.MODULE.ROLE`` is the network before the step, ``grad.MODULE.ROLE`` its gradient before clipping, and ``loss``
the step's loss. The metadata hold step and epoch (from 0), and as ``n.files`` the pictures' paths as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorapipe_engine.files.dtypes import Encoded, encode
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.step.forward import Forward
from lorapipe_engine.train.step.preserving import HeldForward


@dataclass
class Trace:
    """What one step leaves behind; the step's functions write into it where there is one."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    passes: int = 0

    def record(self, **tensors: Tensor | None) -> None:
        """Keep tensors of the current forward pass, as they are now."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self.tensors[f"{self.passes}.{name.replace('__', '.')}"] = tensor.detach().clone()

    def record_pass(
        self, batch: MicroBatch, made: Forward, weights: Tensor, loss: Tensor, held: HeldForward | None = None
    ) -> None:
        """Keep everything of a forward pass; the next tensors are those of the next one."""
        noised = made.noised
        self.record(
            latents=made.latents, noise=noised.noise, timesteps=noised.times, noisy_latents=noised.input
        )
        self.record(**{f"input_ids__te{index}": ids for index, ids in enumerate(batch.tokens.ids, start=1)})
        self.record(text_states=made.text.hidden, pooled=made.text.pooled, size_ids=batch.geometry)
        self.record(prediction=made.prediction, target=noised.target, mask=batch.mask)
        self.record(losses=made.losses, loss_weights=weights.expand_as(made.losses), loss=loss)
        if held is not None and batch.held is not None:
            self.record(held__answer=held.answer, held__prediction=held.prediction, held__losses=held.losses)
            self.record(held__weights=held.weights.expand_as(held.losses), held__loss=held.loss)
            tokens = batch.held.tokens or batch.tokens
            self.record(
                **{f"held__input_ids__te{index}": ids for index, ids in enumerate(tokens.ids, start=1)}
            )
        self.passes += 1

    def record_network(self, network: Network) -> None:
        """Keep the network as it is before the step."""
        for name, tensor in network.file_tensors().items():
            self.tensors[f"network.{name}"] = tensor.detach().clone()

    def record_gradients(self, network: Network) -> None:
        """Keep the gradients as the backward passes left them: under the name in the file where it holds the parameter
        as it is, else under the parameter's."""
        for name, adapter in network.adapters.items():
            stored = {
                t.data_ptr(): suffix for suffix, t in adapter.file_tensors().items() if suffix != "alpha"
            }
            for role in adapter.roles:
                parameter = getattr(adapter, role)
                if parameter.grad is not None:
                    suffix = stored.get(parameter.data_ptr(), role)
                    self.tensors[f"grad.{name}.{suffix}"] = parameter.grad.detach().clone()

    def write(
        self,
        path: Path,
        loss: float,
        step: int,
        epoch: int,
        batches: Sequence[Mapping[str, Sequence[str]]],
        *,
        force: bool,
        inside: Path,
    ) -> None:
        """Write the file, below the folder ``inside``. ``batches``: for each forward pass the "files" of its samples.

        Raises OutputError, also where the file is there and not ``force``.
        """
        metadata = {"step": str(step), "epoch": str(epoch)}
        for number, batch in enumerate(batches):
            metadata |= {
                f"{number}.{name}": json.dumps(list(values), ensure_ascii=False)
                for name, values in batch.items()
            }
        traced = {**self.tensors, "loss": torch.tensor(loss)}
        inside.mkdir(parents=True, exist_ok=True)
        tensors = {name: _encoded(tensor) for name, tensor in traced.items()}
        write_tensors(path, tensors, metadata, force=force, inside=inside)


def _encoded(tensor: Tensor) -> Encoded:
    values = tensor.cpu()
    if values.is_floating_point():
        return encode(values.float().numpy(), "F32")
    return Encoded("I64", tuple(values.shape), values.to(torch.int64).contiguous().numpy())


def trace_path(folder: Path, step: int) -> Path:
    """Where the trace of a step stands; steps count from 0."""
    return folder / f"step-{step:06d}.safetensors"
