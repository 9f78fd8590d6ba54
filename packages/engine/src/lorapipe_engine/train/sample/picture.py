"""Pictures of cells with a base in memory: batches of equal cells, each picture from its own seed alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import EPSILON, FLOW, V
from lorapipe_engine.nn.fused.drawing.decoder import HalfDecoder
from lorapipe_engine.nn.fused.drawing.unet import Drawing, fuse_decoder
from lorapipe_engine.nn.sending import sent
from lorapipe_engine.sampling.cells import Cell
from lorapipe_engine.sampling.noise.samplers import SAMPLERS
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import AskedPrompt, Conditioning
from lorapipe_engine.train.sample.draw import (
    Guidance,
    Predict,
    denoise,
    evaluate_guided,
    first_noise,
    picture_bytes,
    seeded,
)
from lorapipe_engine.train.sample.forecast import Forecast
from lorapipe_engine.train.sample.graphs import GuidedGraphs
from lorapipe_engine.train.sample.networks import Swapper
from lorapipe_engine.train.sample.samplers.brownian import brownian_noise
from lorapipe_engine.train.sample.samplers.course import Prediction
from lorapipe_engine.train.sample.samplers.methods import Noise
from lorapipe_engine.train.sample.samplers.scheduler import CourseScheduler

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_TEXTS = 256  # whose states are kept
DECODED_PIXELS = 1024 * 1024  # at once in half precision; a picture above this goes alone

Say = Callable[[str], None]


class TextKey(NamedTuple):
    """What a prompt's states depend on, beside the base: the networks are those that change text encoders."""

    clip_skip: int
    networks: tuple[tuple[Path, float], ...]
    prompt: AskedPrompt


class NoPicture(Exception):
    """What the model gave are no numbers."""


class Drawn:
    """A picture on its way from the device. ``values``: (H, W, 3) bytes; ``is_good``: whether they may be shown; what
    ``otherwise`` makes is shown where not."""

    def __init__(self, values: Tensor, is_good: Tensor, otherwise: Callable[[], Tensor]) -> None:
        self._values, self._is_good, self._otherwise = values, is_good, otherwise
        self._event: Any = None
        if values.is_cuda:
            self._values = values.to("cpu", non_blocking=True)
            self._is_good = is_good.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def image(self) -> Image:
        """The picture, once it is there; from any thread. Raises NoPicture."""
        from PIL import Image as Pictures

        if self._event is not None:
            self._event.synchronize()
        values = self._values if self._is_good else self._otherwise().cpu()
        return Pictures.fromarray(values.numpy())


class CellPainter:
    """Draws cells of one base. ``prediction``: a name of :mod:`lorapipe_engine.models.predictions`.

    On a CUDA card blocks are fused and evaluations captured; ``say`` is told what does not work of it. ``fused``: fuse
    blocks, or not, whatever the device is. ``forecast`` watches the evaluations. ``decoding``: fp16 or bf16 for a VAE
    of which :func:`.decoder.fits_half` is true; None decodes in the VAE's own precision.
    Raises ConfigError for a prediction that these samplers are not for.
    """

    def __init__(
        self,
        family: Family,
        prediction: str,
        *,
        zero_terminal_snr: bool,
        say: Say,
        forecast: Forecast | None = None,
        fused: bool | None = None,
        decoding: torch.dtype | None = None,
    ) -> None:
        if prediction not in (EPSILON.name, V.name, FLOW.name):
            raise ConfigError(f"a base of {prediction} cannot be drawn by A1111's samplers")
        self.family = family
        self._say = say
        self._half = None if decoding is None else HalfDecoder(family.vae, decoding)
        self._one_at_a_time = Lock()
        self._forecast = forecast
        drawing = None
        self._graphs: GuidedGraphs | None = None
        on_card = family.device.type == "cuda"
        if on_card if fused is None else fused:
            drawing = Drawing(family.denoiser, family.text.modules.values())
            for vae in (family.vae, self._half):
                if vae is not None:
                    fuse_decoder(vae)
            self._graphs = GuidedGraphs(family, drawing, say, capture=on_card)
        self._drawing = drawing
        self.swapper = Swapper(family, drawing, say)
        self._prediction = cast(Prediction, prediction)
        self._zero_terminal_snr = zero_terminal_snr
        self._texts: OrderedDict[TextKey, Conditioning] = OrderedDict()

    @property
    def recorded(self) -> int:
        """How many kinds of batches are captured."""
        return 0 if self._graphs is None else self._graphs.recorded

    def free_memory(self) -> None:
        """Give back what is kept for the next batches."""
        if self._graphs is not None:
            self._graphs.forget()
            torch.cuda.empty_cache()

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
            self.family.text.encode_prompts([AskedPrompt("")])

    @torch.inference_mode()
    def draw(self, cells: Sequence[Cell]) -> Generator[Drawn, None, None]:
        """The pictures of cells that may share a batch (:func:`batch_key`), in order, with the networks in use."""
        texts = self._texts_of(cells)
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, pair in enumerate(texts):
            # Prompts of several chunks have states of other lengths.
            alike.setdefault(tuple(text.hidden.shape[1] for text in pair), []).append(index)
        latents: dict[int, Tensor] = {}
        for places in alike.values():
            drawn = self._denoise([cells[row] for row in places], [texts[row] for row in places])
            latents.update(zip(places, drawn, strict=True))
        # Few at once: a batch's pixels take more memory than its latents did in all the steps.
        count = 1
        if self._half is not None and latents[0].is_cuda:
            count = max(1, DECODED_PIXELS // (cells[0].width * cells[0].height))
        for start in range(0, len(cells), count):
            rows = [latents[index] for index in range(start, min(start + count, len(cells)))]
            pixels = self.decode(torch.stack(rows))
            # Nobody waits here to know whether they are: the device is given the next pictures to do meanwhile.
            are_good = torch.isfinite(pixels).flatten(1).all(dim=1)
            for row, picture, is_good in zip(rows, picture_bytes(pixels), are_good, strict=True):
                yield Drawn(picture, is_good, partial(self._decode_exactly, row))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled as the denoiser sees them -> pixels (B, 3, H, W) in about -1..1; values that are
        no numbers where half precision has none for them."""
        half = self._half  # which a picture before may end meanwhile
        if half is not None:
            return half.decode(self.family.unscaled(latents))
        return torch.cat([self.family.decode(row[None]) for row in latents])

    @torch.inference_mode()
    def _decode_exactly(self, latents: Tensor) -> Tensor:
        """Latents (C, h, w) -> bytes (H, W, 3), in float32. From any thread. Raises NoPicture."""
        if not torch.isfinite(latents).all():
            raise NoPicture
        with self._one_at_a_time:
            if self._half is not None:
                self._half = None
                self._say(
                    "note: the VAE's values go beyond half precision; decoded in float32 from here on, as with "
                    "--vae-precision float"
                )
            pixels = self.family.decode(latents[None])
        if not torch.isfinite(pixels).all():
            raise NoPicture
        return picture_bytes(pixels)[0]

    def _denoise(self, cells: Sequence[Cell], texts: Sequence[tuple[Conditioning, Conditioning]]) -> Tensor:
        first = cells[0]
        walk = self.scheduler(first)
        # Ancestral steps go on with the numbers of the first noise, as in A1111.
        generators = seeded([cell.seed for cell in cells])
        size = first.width, first.height
        latents = first_noise(self.family, *size, generators) * walk.init_noise_sigma
        both = [Conditioning.joined(rows) for rows in zip(*texts, strict=True)]
        guidance = Guidance.of(self.family, both, size, [cell.cfg for cell in cells])
        predict = self.predictor(guidance, latents)
        if self._forecast is not None:
            predict = self._forecast.watch(predict, cells)
        if latents.is_cuda and SAMPLERS[first.sampler].noise != "sde":
            walk.noise_sampler = _noise_beside(generators, latents)
        return denoise(walk, predict, latents, generator=generators)

    def predictor(self, guidance: Guidance, latents: Tensor) -> Predict:
        """Guided evaluations of one batch, in the fastest way that works with the networks in use."""
        if self._graphs is not None and self._drawing is not None and self._drawing.active:
            return self._graphs.predictor(guidance, latents)
        return partial(evaluate_guided, self.family, guidance)

    def _texts_of(self, cells: Sequence[Cell]) -> list[tuple[Conditioning, Conditioning]]:
        """The states of each cell's negative prompt and of its prompt; what is not known is encoded together."""
        negative = [self._text_key(cell, AskedPrompt(cell.negative, is_negative=True)) for cell in cells]
        positive = [self._text_key(cell, AskedPrompt(cell.text)) for cell in cells]
        wanted = dict.fromkeys([*negative, *positive])
        unknown: dict[int, list[TextKey]] = {}
        for key in wanted:
            if key not in self._texts:
                unknown.setdefault(key.clip_skip, []).append(key)
        for skip, rows in unknown.items():
            self.family.text.clip_skip = skip
            states = self.family.text.encode_prompts([key.prompt for key in rows])
            self._texts.update(zip(rows, states, strict=True))
        for key in wanted:
            self._texts.move_to_end(key)
        texts = [
            (self._texts[one], self._texts[other]) for one, other in zip(negative, positive, strict=True)
        ]
        while len(self._texts) > MOST_TEXTS:
            self._texts.popitem(last=False)
        return texts

    def _text_key(self, cell: Cell, prompt: AskedPrompt) -> TextKey:
        networks = tuple(
            (row.file.path, row.te)
            for row in cell.networks
            if row.te and self.swapper.changes_text(row.file.path)
        )
        return TextKey(cell.clip_skip, networks, prompt)


def batch_key(cell: Cell) -> tuple[object, ...]:
    """What cells of one batch have in common, beside base and networks."""
    return cell.width, cell.height, cell.steps, cell.sampler, cell.schedule, cell.eta


def _noise_beside(generators: Sequence[torch.Generator], like: Tensor) -> Noise:
    """The numbers that the generators give, brought to a card without waiting for it."""

    def draw(_sigma: float, _following: float) -> Tensor:
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return sent(torch.stack(rows), like.device)

    return draw
