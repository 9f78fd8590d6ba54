"""One optimizer step, shaped so that it can be captured as a CUDA graph.

Everything it reads is a tensor of a fixed shape for its bucket (latents, token ids, weights, rates), everything it
draws comes from the device's own random stream, and nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorapipe_engine.nn.attach import Network
from lorapipe_engine.nn.fused.packed import Packs
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.weight_norms import NormLimit
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.optimizers import gradients_of
from lorapipe_engine.train.processes import ALONE, Processes
from lorapipe_engine.train.step.capture import StepGraphs
from lorapipe_engine.train.step.forward import Forward, forward
from lorapipe_engine.train.step.preserving import Preserving
from lorapipe_engine.train.step.slide import Slide
from lorapipe_engine.train.step.time_bins import TimeBins
from lorapipe_engine.train.step.trace import Trace

_DIVIDING = (torch.optim.Adam, torch.optim.AdamW)  # not what inherits from them, whose step may be another


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
        objective: Objective,
        *,
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
        self.max_grad_norm = max_grad_norm
        self.train_text = train_text
        self.norm_limit = norm_limit
        self.processes = processes
        self.network_dtype = network_dtype
        self.preserving: Preserving | None = None  # set where steps hold the network to the base
        self.slide: Slide | None = None  # set where a slider is trained
        self.bins = TimeBins(objective.last_time, family.device)
        self._round_values()
        self.norms: Tensor | None = None
        self.held_loss: float | None = None  # of the last step, whole and without its weight
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
        self.network.begin()
        if self.trace is not None:
            self.trace.record_network(self.network)

    def prepared(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        """The batches with all that is not of a fixed length: a slider's way from noise to its latents."""
        if self.slide is None:
            return batches
        self.network.begin()
        return [self.slide.walked(batch) for batch in batches]

    def loss_of(self, batch: MicroBatch) -> Tensor:
        """The forward pass: the batch's share of the update's loss, a float32 scalar tensor."""
        made = self._forward(batch) if self.slide is None else self.slide(batch, train_text=self.train_text)
        weights, loss = self._weigh(batch, made)
        if self.trace is not None:
            self.trace.record_pass(batch, made, weights, loss)
        return loss

    def hold(self, batch: MicroBatch) -> Tensor:
        """Forward and backward passes of a batch that also holds something to the base: its share of the update's loss,
        and of the term's without its weight, (2,)."""
        preserving = self.preserving
        assert preserving is not None
        if preserving.is_joined:
            made, held = preserving.joined(batch)
            weights, loss = self._weigh(batch, made)
            self.backward(loss + preserving.weight * held.loss)
        else:
            made = self._forward(batch)
            weights, loss = self._weigh(batch, made)
            self.backward(loss)
            held = preserving.alone(batch, made.noised)
            with preserving.within_parts():
                self.backward(preserving.weight * held.loss)
        if self.trace is not None:
            self.trace.record_pass(batch, made, weights, loss, held)
        return torch.stack([loss.detach(), held.loss.detach()])

    def _forward(self, batch: MicroBatch) -> Forward:
        text = batch.text
        if text is None and not self.train_text:
            with torch.no_grad():
                text = self.family.text.encode(batch.tokens)
        return forward(self.family, self.objective, batch, text=text)

    def _weigh(self, batch: MicroBatch, made: Forward) -> tuple[Tensor, Tensor]:
        """The weights of the rows' losses, and the batch's share of the update's loss. The losses are counted by
        timestep."""
        self.bins.add(made.noised.times, made.losses)
        weights = made.noised.weights * batch.weights
        return weights, (made.losses * weights).mean()

    def backward(self, loss: Tensor) -> None:
        """The backward pass: add the loss's gradients to those of the batches before it."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.packs is not None:
            self.packs.finish()
        self.network.finish()

    def add_up(self, share: Tensor) -> Tensor:
        """Add the gradients up over all processes; the loss of all, from this one's ``share``, a tensor."""
        return self.processes.add_up_step((group.grad for group in self.network.groups.values()), share)

    def clip(self) -> Tensor:
        """Clip the gradients, or have the optimizer's step do so; their norm before clipping, a tensor."""
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
            if self._divides:
                self.optimizer.grad_scale = share.reciprocal()  # type: ignore[attr-defined]
            else:
                for grad in grads:
                    grad.mul_(share)
        return norm

    def step(self) -> None:
        """Move the network by the clipped gradients, within its limits."""
        self.network.end()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._divides:
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        if self.norm_limit is not None:
            self.norms = self.norm_limit.apply()
        self._round_values()

    # ------------------------------------------------------------------------------------------- capture

    @property
    def why_not_captured(self) -> str | None:
        """Why steps cannot be captured as a CUDA graph; None if they can."""
        if self.family.device.type != "cuda":
            return "not on a CUDA device"
        return self.objective.why_not_captured

    @property
    def _divides(self) -> bool:
        """Whether the optimizer's step divides gradients itself, which saves a pass over them: torch's fused Adam and
        AdamW do, by the tensor that they have as ``grad_scale``; on Apple's devices they pass it over."""
        is_fused = type(self.optimizer) in _DIVIDING and bool(self.optimizer.defaults.get("fused"))
        return is_fused and self.family.device.type in ("cuda", "cpu") and not self.scaler.is_enabled()

    @property
    def settles_in_graph(self) -> bool:
        """Whether clipping and the optimizer's step can be captured."""
        if self.scaler.is_enabled():
            return False  # in fp16 the CPU decides whether a step counts
        rows = self.optimizer.param_groups
        return all(row.get("capturable") and isinstance(row["lr"], Tensor) for row in rows)

    def _round_values(self) -> None:
        """Bring the network to what its precision can hold."""
        if self.network_dtype is not None:
            with torch.no_grad():
                for group in self.network.groups.values():
                    group.parameter.copy_(group.parameter.to(self.network_dtype))
