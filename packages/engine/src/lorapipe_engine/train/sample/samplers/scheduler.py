"""A course as a scheduler object, which diffusers' pipelines take in the place of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.command.process.libraries import library_imports
from lorapipe_engine.nn.sending import sent
from lorapipe_engine.sampling.noise.samplers import SAMPLERS
from lorapipe_engine.sampling.noise.schedules import AUTOMATIC, noise_table
from lorapipe_engine.train.sample.samplers.brownian import brownian_noise
from lorapipe_engine.train.sample.samplers.course import Course, Prediction, plan_course
from lorapipe_engine.train.sample.samplers.methods import Noise, Steps

with library_imports():
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor


class CourseScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A1111's sampler and schedule in diffusers' interface: ``set_timesteps``, and for each of ``timesteps`` the
    methods ``scale_model_input`` and ``step``.

    ``sampler`` and ``schedule`` are A1111's labels. ``eta`` None is what the sampler does by itself. A step goes on
    from what the step before gave back; changes that a pipeline makes to the latents in between are not seen.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sampler: str = "Euler a",
        schedule: str = AUTOMATIC,
        prediction_type: Prediction = "epsilon",
        eta: float | None = None,
        rescale_betas_zero_snr: bool = False,
        flow_shift: float = 1.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        del num_train_timesteps  # for pipelines, which look for it in the configuration
        self._sampler = SAMPLERS[sampler]
        self._schedule, self._prediction = schedule, prediction_type
        self._eta, self._flow_shift = eta, flow_shift
        self._table = noise_table(zero_terminal_snr=rescale_betas_zero_snr)
        self.noise_sampler: Noise | None = None
        self.set_timesteps(20)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Plan the steps; ``timesteps`` has one entry for each evaluation of the model. Raises ConfigError."""
        course = plan_course(
            self._sampler,
            self._schedule,
            num_inference_steps,
            self._table,
            self._prediction,
            self._eta,
            self._flow_shift,
        )
        self.course: Course = course
        times = torch.tensor([row.time for row in course.evaluations], dtype=torch.float32)
        self.timesteps = times if device is None else sent(times, torch.device(device))
        self.num_inference_steps = num_inference_steps
        self.init_noise_sigma = course.first
        self._index = 0
        self._steps: Steps | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the model is to see of the latents at this evaluation."""
        del timestep
        return sample * self.course.evaluations[self._index].scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The latents (B, C, h, w) for the next evaluation, or after the last the finished ones.

        ``generator``: one for each picture, whose numbers go on; SDE samplers take their first seeds.
        """
        del timestep
        if self._steps is None:
            noise = self.noise_sampler or self._noise(sample, generator)
            self._steps = self.course.walk(sample.clone(), noise)
            self._current, _ = next(self._steps)
        row = self.course.evaluations[self._index]
        answer = self._current * row.skip + model_output.to(self._current.dtype) * row.out
        self._index += 1
        try:
            self._current, _ = self._steps.send(answer)
        except StopIteration as end:
            self._current = end.value
        return SchedulerOutput(self._current) if return_dict else (self._current,)

    def _noise(self, x: Tensor, generator: Any) -> Noise:
        if self._sampler.noise == "sde":
            generators = generator if isinstance(generator, list | tuple) else [generator]
            seeds = [row.initial_seed() if row is not None else torch.seed() for row in generators]
            positive = [sigma for sigma in self.course.levels if sigma > 0]
            return brownian_noise(x, min(positive), max(positive), seeds)

        def draw(_sigma: float, _following: float) -> Tensor:
            drawn: Tensor = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            return drawn

        return draw
