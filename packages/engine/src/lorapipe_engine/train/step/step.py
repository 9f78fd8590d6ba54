"""One optimizer step, shaped so that it can be captured as a CUDA graph.

Everything it reads is a tensor of a fixed shape for its bucket (latents, token ids, weights, rates), everything it
draws comes from the device's own random stream, and nothing in it waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorapipe_engine.nn.attach import Network
from lorapipe_engine.nn.fused.packed import Packs
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Conditioning, Family
from lorapipe_engine.train.network.weight_norms import NormLimit
from lorapipe_engine.train.objective.loss import (
    NoiseSchedule,
    add_noise,
    loss_weights,
    sample_losses,
    target_of,
)
from lorapipe_engine.train.objective.noise import draw_noise, draw_timesteps, perturb
from lorapipe_engine.train.optimizers import gradients_of
from lorapipe_engine.train.processes import ALONE, Processes
from lorapipe_engine.train.step.capture import StepGraphs
from lorapipe_engine.train.step.trace import Trace


def batch_loss(
    family: Family,
    batch: MicroBatch,
    objective: LossSettings,
    schedule: NoiseSchedule,
    *,
    clip_skip: int | None,
    conditioning: Conditioning | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """The weighted loss of a batch, a float32 scalar tensor. ``conditioning`` replaces encoding the ids; ``trace``
    keeps everything on the way.
    """
    mean, deviation = batch.latents.chunk(2, dim=1)
    # Drawn for the whole batch, of which these rows may be a share, so that shares draw what the whole would.
    start, total = batch.part or (0, len(mean))
    rows = slice(start, start + len(mean))
    sample = torch.randn(total, *mean.shape[1:], device=mean.device)[rows]
    latents = (mean + deviation * sample) * family.latent_scale  # (B, 4, h, w)
    drawn = draw_noise(whole_of(latents, rows, total), objective)
    timesteps = draw_timesteps(total, objective, latents.device)[rows]
    noise, disturbed = drawn[rows], perturb(drawn, objective)[rows]
    noisy = add_noise(latents, disturbed, timesteps, schedule)
    if conditioning is None:
        conditioning = family.encode_text(batch.ids, clip_skip=clip_skip, weights=batch.text_weights)
    prediction = family.predict(noisy, timesteps, conditioning, batch.geometry)
    target = target_of(latents, noise, timesteps, schedule, objective)
    losses = sample_losses(prediction, target, timesteps, schedule, objective, batch.mask)
    weights = loss_weights(timesteps, schedule, objective) * batch.weights
    loss = (losses * weights).mean()
    if trace is not None:
        trace.record(latents=latents, noise=noise, timesteps=timesteps, noisy_latents=noisy)
        trace.record(**{f"input_ids__te{index}": ids for index, ids in enumerate(batch.ids, start=1)})
        trace.record(text_states=conditioning.hidden, pooled=conditioning.pooled, size_ids=batch.geometry)
        trace.record(prediction=prediction, target=target, mask=batch.mask)
        trace.record(losses=losses, loss_weights=weights.expand_as(losses), loss=loss)
        trace.end_pass()
    return loss


def whole_of(latents: Tensor, rows: slice, total: int) -> Tensor:
    """A batch of ``total`` rows that has ``latents`` in its ``rows``, and zeros elsewhere."""
    if len(latents) == total:
        return latents
    whole = latents.new_zeros(total, *latents.shape[1:])
    whole[rows] = latents
    return whole


class Stepper:
    """The pieces of an update, which :func:`lorapipe_engine.train.loop.update` puts in order. ``norms``: the figures of
    the last limit, see :class:`NormLimit`.

    ``network_dtype``: what gradients and network are rounded to in every step; both stay in float32 in memory.

    With several ``processes`` the batches are this one's share, and so is the loss; gradients are added up before the
    update.
    """

    def __init__(
        self,
        family: Family,
        network: Network,
        optimizer: torch.optim.Optimizer,
        objective: LossSettings,
        *,
        clip_skip: int | None,
        max_grad_norm: float,
        train_text: bool,
        half_precision: bool,
        norm_limit: NormLimit | None = None,
        processes: Processes = ALONE,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        self.family = family
        self.network = network
        self.optimizer = optimizer
        self.objective = objective
        self.schedule = NoiseSchedule.stable_diffusion(
            zero_terminal_snr=objective.zero_terminal_snr, device=family.device
        )
        self.clip_skip = clip_skip
        self.max_grad_norm = max_grad_norm
        self.train_text = train_text
        self.norm_limit = norm_limit
        self.processes = processes
        self.network_dtype = network_dtype
        self._round_values()
        self.norms: Tensor | None = None
        self.packs: Packs | None = None  # set where the model's blocks are fused
        self.graphs: StepGraphs | None = None  # set where steps are to be captured
        self.trace: Trace | None = None  # set for the steps that are to be traced
        # fp16 gradients underflow: the loss is scaled up and steps that overflow are skipped. bf16 needs neither.
        self.scaler = torch.amp.GradScaler(family.device.type, enabled=half_precision)

    def begin(self) -> None:
        """Set every gradient to zero, before the batches of an update."""
        for group in self.network.groups.values():
            group.zero_grad()
        if self.packs is not None:
            self.packs.refresh()
        if self.trace is not None:
            self.trace.record_network(self.network)

    def loss_of(self, batch: MicroBatch) -> Tensor:
        """The forward pass: the batch's share of the update's loss, a float32 scalar tensor."""
        conditioning = batch.text
        if conditioning is None and not self.train_text:
            with torch.no_grad():
                conditioning = self.family.encode_text(
                    batch.ids, clip_skip=self.clip_skip, weights=batch.text_weights
                )
        return batch_loss(
            self.family,
            batch,
            self.objective,
            self.schedule,
            clip_skip=self.clip_skip,
            conditioning=conditioning,
            trace=self.trace,
        )

    def backward(self, loss: Tensor) -> None:
        """The backward pass: add the loss's gradients to those of the batches before it."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.packs is not None:
            self.packs.finish()

    def clip(self) -> Tensor:
        """Add the gradients up over all processes and clip them; their norm before clipping, a tensor."""
        self.processes.add_up(group.grad for group in self.network.groups.values())
        if self.network_dtype is not None:
            for group in self.network.groups.values():
                group.grad.copy_(group.grad.to(self.network_dtype))
        self.scaler.unscale_(self.optimizer)
        if self.trace is not None:
            self.trace.record_gradients(self.network)
        grads = gradients_of(self.optimizer, self.network.groups)
        norm: Tensor = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        )
        if self.max_grad_norm > 0:
            share = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            for grad in grads:
                grad.mul_(share)
        return norm

    def step(self) -> None:
        """Move the network by the clipped gradients, within its limits."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.norm_limit is not None:
            self.norms = self.norm_limit.apply()
        self._round_values()

    # ------------------------------------------------------------------------------------------- capture

    @property
    def why_not_captured(self) -> str | None:
        """Why steps cannot be captured as a CUDA graph; None if they can."""
        if self.family.device.type != "cuda":
            return "not on a CUDA device"
        if self.objective.multires_noise_iterations:
            return "multires noise draws sizes"
        return None

    @property
    def steps_inside_graph(self) -> bool:
        """Whether clipping and the optimizer's step can be captured with the passes before them."""
        if self.scaler.is_enabled():
            return False  # in fp16 the CPU decides whether a step counts
        if self.processes.count > 1:
            return False  # gradients are added up between the graph and the update
        rows = self.optimizer.param_groups
        return all(row.get("capturable") and isinstance(row["lr"], Tensor) for row in rows)

    def _round_values(self) -> None:
        """Bring the network to what its precision can hold."""
        if self.network_dtype is not None:
            with torch.no_grad():
                for group in self.network.groups.values():
                    group.parameter.copy_(group.parameter.to(self.network_dtype))


def seed_step(seed: int, step: int) -> None:
    """Give a step random streams of its own, so that a run can go on anywhere with the same draws."""
    # A multiplier far above any step count keeps runs of neighbouring seeds apart.
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)
