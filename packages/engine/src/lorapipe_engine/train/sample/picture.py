"""Pictures of cells with a base in memory: batches of equal cells, each picture from its own seed alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import EPSILON, FLOW, V
from lorapipe_engine.sampling.cells import Cell
from lorapipe_engine.sampling.samplers import SAMPLERS
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.sample.brownian import brownian_noise
from lorapipe_engine.train.sample.course import Prediction
from lorapipe_engine.train.sample.draw import denoise, first_noise, guided_apart, seeded, to_images
from lorapipe_engine.train.sample.networks import Swapper
from lorapipe_engine.train.sample.scheduler import CourseScheduler

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_TEXTS = 256  # whose states are kept


class CellPainter:
    """Draws cells of one base. ``prediction``: a name of :mod:`lorapipe_engine.models.predictions`.

    Raises ConfigError for a prediction that these samplers are not for.
    """

    def __init__(self, family: Family, prediction: str, *, zero_terminal_snr: bool) -> None:
        if prediction not in (EPSILON.name, V.name, FLOW.name):
            raise ConfigError(f"a base of {prediction} cannot be drawn by A1111's samplers")
        self.family = family
        self.swapper = Swapper(family)
        self._prediction = cast(Prediction, prediction)
        self._zero_terminal_snr = zero_terminal_snr
        self._texts: OrderedDict[tuple[object, ...], Conditioning] = OrderedDict()

    def scheduler(self, cell: Cell) -> CourseScheduler:
        """The steps of a cell's pictures. Raises ConfigError for what cannot be drawn with this base."""
        walk: CourseScheduler = CourseScheduler(
            cell.sampler,
            cell.schedule,
            self._prediction,
            cell.eta,
            self._zero_terminal_snr,
            cell.told.flow_shift or 1.0,
        )
        walk.set_timesteps(cell.steps, self.family.device)
        return walk

    @torch.inference_mode()
    def check(self, cells: Sequence[Cell]) -> None:
        """Raise ConfigError for cells that cannot be drawn with this base, MissingExtra for samplers that need one."""
        courses = {(cell.sampler, cell.schedule, cell.steps, cell.eta): cell for cell in cells}
        for cell in courses.values():
            self.scheduler(cell)
        if any(SAMPLERS[cell.sampler].noise == "sde" for cell in courses.values()):
            brownian_noise(torch.zeros(1, 1), 0.0, 1.0, [0])
        for skip in {cell.clip_skip for cell in cells}:
            self.family.text.clip_skip = skip
            self.family.text.encode_prompt("")

    @torch.inference_mode()
    def draw(self, cells: Sequence[Cell]) -> Iterator[Image]:
        """The pictures of cells that may share a batch (:func:`batch_key`), in order, with the networks in use."""
        texts = [(self._text(cell, is_negative=True), self._text(cell)) for cell in cells]
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, pair in enumerate(texts):
            # Prompts of several chunks have states of other lengths.
            alike.setdefault(tuple(text.hidden.shape[1] for text in pair), []).append(index)
        latents: dict[int, Tensor] = {}
        for rows in alike.values():
            drawn = self._denoise([cells[row] for row in rows], [texts[row] for row in rows])
            latents.update(zip(rows, drawn, strict=True))
        for index in range(len(cells)):
            # One by one: a batch's pixels take more memory than its latents did in all the steps.
            yield from to_images(self.family.decode(latents[index][None]))

    def _denoise(self, cells: Sequence[Cell], texts: Sequence[tuple[Conditioning, Conditioning]]) -> Tensor:
        first = cells[0]
        walk = self.scheduler(first)
        # Ancestral steps go on with the numbers of the first noise, as in A1111.
        generators = seeded([cell.seed for cell in cells])
        size = first.width, first.height
        latents = first_noise(self.family, *size, generators) * walk.init_noise_sigma
        negative, positive = (Conditioning.joined(rows) for rows in zip(*texts, strict=True))
        predict = guided_apart(self.family, negative, positive, size, first.cfg)
        return denoise(walk, predict, latents, generator=generators)

    def _text(self, cell: Cell, *, is_negative: bool = False) -> Conditioning:
        networks = tuple((row.file.path, row.te) for row in cell.networks if row.te)
        text = cell.negative if is_negative else cell.text
        key = (cell.clip_skip, networks, text, is_negative)
        if key not in self._texts:
            self.family.text.clip_skip = cell.clip_skip
            self._texts[key] = self.family.text.encode_prompt(text, is_negative=is_negative)
            if len(self._texts) > MOST_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]


def batch_key(cell: Cell) -> tuple[object, ...]:
    """What cells of one batch have in common, beside base and networks."""
    return cell.width, cell.height, cell.steps, cell.sampler, cell.schedule, cell.cfg, cell.eta
