"""Networks in a base that is drawn with: swapped in place, several on one layer, strengths by part."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.nn.attach import Target, children_of
from lorapipe_engine.nn.base import Adapter, OverLayer
from lorapipe_engine.nn.fused.drawing.layers import DrawnPart
from lorapipe_engine.nn.fused.drawing.slots import Factor
from lorapipe_engine.nn.fused.drawing.unet import Drawing
from lorapipe_engine.sampling.shelf import Loaded
from lorapipe_engine.train.base.out_of_memory import is_out_of_memory
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.choice import every_target
from lorapipe_engine.train.network.files.apply import fitting_targets
from lorapipe_engine.train.network.files.trained_file import TrainedFile, read_stored, read_trained
from lorapipe_engine.train.sample.factors import read_factors, short_factors, without_factors
from lorapipe_engine.train.sample.moulds import Moulds

MOST_READ = 8  # networks that stay in memory for the next swap

Say = Callable[[str], None]


class NetworkProblem(InputError):
    """A network cannot be used. ``path``: which."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


class Swapper:
    """Puts sets of networks into a family and takes them out. The base's weights are never written to.

    Every network's change is that of the base's own weight, and the changes of several are added. ``drawing``: the
    fused form of denoiser and text encoders, whose slots take the factors of networks that have some; others stand in
    the place of the layers that they change. The denoiser runs unfused with them, which ``say`` is told once for each,
    and so do the text encoders, for themselves.
    """

    def __init__(self, family: Family, drawing: Drawing | None = None, say: Say = print) -> None:
        self._family, self._drawing, self._say = family, drawing, say
        self._places = {
            id(child): (parent, name) for parent, name, child in children_of(family.parts.values())
        }
        self._read: dict[Path, _Read] = {}
        self._moulds = Moulds()
        self._changed: list[tuple[nn.Module, str, nn.Module]] = []
        self._told: set[Path] = set()
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: dict[Path, Future[TrainedFile]] = {}
        self._beside: Any = None  # a card's stream that files are read ahead in

    def use(self, rows: Iterable[Loaded]) -> None:
        """Have these networks in the model, and no others.

        Raises NetworkProblem for a file that is broken, of another family or an algorithm that is not attached; the
        model is the base by itself then.
        """
        with _garbage_kept():
            self._swap(list(rows))

    def _swap(self, rows: Sequence[Loaded]) -> None:
        self._take_out()
        try:
            read = [self._network(row.file.path) for row in rows]
        except NetworkProblem:
            self.clear()
            raise
        adapters: list[Adapter] = []
        for part, of_text in self._parts():
            used = [
                (network.share(of_text=of_text), strength)
                for row, network in zip(rows, read, strict=True)
                if (strength := row.te if of_text else row.unet)
            ]
            if part is not None:
                part.active = all(share.factors is not None for share, _ in used)
                if not of_text:
                    self._tell_unfused(share for share, _ in used)
            if part is None or not part.active:
                for share, strength in used:
                    adapters += share.adapters(strength)
            else:
                part.slots.fill(_factors(used))
        self._put_in(adapters)

    def _parts(self) -> Iterator[tuple[DrawnPart | None, bool]]:
        """What is fused of the base, and whether it is that of the text encoders."""
        yield self._drawing, False
        yield None if self._drawing is None else self._drawing.text, True

    def clear(self) -> None:
        """Have the base by itself."""
        self._take_out()
        for part, _ in self._parts():
            if part is not None:
                part.slots.fill(())
                part.active = True

    def changes_text(self, path: Path) -> bool:
        """Whether a network that is in the model has a part in the text encoders."""
        return bool(self._network(path).share(of_text=True).targets)

    def expect(self, paths: Iterable[Path]) -> None:
        """Begin to read files that will be used next, beside what the caller and the device do."""
        self._reader = self._reader or ThreadPoolExecutor(1, "networks")
        for path in paths:
            if path not in self._read and path not in self._ahead:
                self._ahead[path] = self._reader.submit(self._read_beside, path)

    def _tell_unfused(self, shares: Iterable[_Share]) -> None:
        """Say of the first of some shares that has no factors why that is."""
        share = next((share for share in shares if share.factors is None), None)
        if share is not None and share.path not in self._told:
            self._told.add(share.path)
            self._say(f"note: {share.path}: {share.why_not}; its pictures are drawn unfused")

    def _take_out(self) -> None:
        for parent, name, module in self._changed:
            setattr(parent, name, module)
        self._changed.clear()

    def _put_in(self, adapters: Sequence[Adapter]) -> None:
        on_layer: dict[int, list[Adapter]] = {}
        for adapter in adapters:
            on_layer.setdefault(id(adapter.base), []).append(adapter)
        for key, alike in on_layer.items():
            parent, name = self._places[key]
            self._changed.append((parent, name, alike[0].base))
            setattr(parent, name, alike[0] if len(alike) == 1 else Together(alike))

    @cached_property
    def _targets(self) -> dict[str, Target]:
        """Every layer that a file may have a change for, by the module's name."""
        return {target.name: target for target in every_target(self._family)}

    def _read_file(self, path: Path) -> TrainedFile:
        device = self._family.device
        return read_stored(path, pinned=device.type == "cuda").on(device)

    def _read_beside(self, path: Path) -> TrainedFile:
        """The file, brought to a card in a stream of its own, which waits for nothing that is drawn."""
        if self._family.device.type != "cuda":
            return self._read_file(path)
        # One for all of them: what one leaves of a card's memory is for the next.
        self._beside = self._beside or torch.cuda.Stream(self._family.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._beside):
            file = self._read_file(path)
        self._beside.synchronize()
        return file

    def _taken_over(self, path: Path, ahead: Future[TrainedFile]) -> TrainedFile:
        """A file that was read ahead: what it takes of a card is kept until all that was given to do is done."""
        try:
            file = ahead.result()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return self._read_file(path)  # there is more room now than beside a batch
        if self._family.device.type == "cuda":
            own = (tensor for row in file.tensors.values() for tensor in row.values() if tensor.is_cuda)
            memory = {tensor.untyped_storage().data_ptr(): tensor for tensor in own}
            for tensor in memory.values():
                tensor.record_stream(torch.cuda.current_stream(self._family.device))
        return file

    def _network(self, path: Path) -> _Read:
        """A network that is read and not in the model."""
        if path not in self._read:
            while len(self._read) >= MOST_READ:
                self._read.pop(next(iter(self._read)))
            ahead = self._ahead.pop(path, None)
            try:
                file = self._read_file(path) if ahead is None else self._taken_over(path, ahead)
                targets = fitting_targets(self._family, file, self._targets)
                self._read[path] = _Read(self._family, file, targets, self._drawing, self._moulds)
            except (LoraError, TypeError) as error:
                raise NetworkProblem(path, str(error)) from error
        self._read[path] = self._read.pop(path)  # the last to be dropped
        return self._read[path]


class _Read:
    """A network in memory.

    Raises InputError where a module does not fit its layer.
    """

    def __init__(
        self,
        family: Family,
        file: TrainedFile,
        targets: dict[str, Target],
        drawing: Drawing | None,
        moulds: Moulds,
    ) -> None:
        own: dict[bool, dict[str, Target]] = {False: {}, True: {}}
        for name, row in targets.items():
            own[row.part != family.facts.denoiser][name] = row
        forms: Mapping[str, Factor] = {}
        if drawing is not None:
            forms = short_factors(moulds.adapters(file, targets, without_factors(file, targets)))
        self._shares = {}
        for of_text, rows in own.items():
            part = drawing.text if drawing is not None and of_text else drawing
            self._shares[of_text] = _Share(file, rows, part, forms, moulds)

    def share(self, *, of_text: bool) -> _Share:
        """What it changes of the text encoders, or of the denoiser."""
        return self._shares[of_text]


class _Share:
    """What a network changes of the denoiser, or of the text encoders. ``factors``: of its layers; None where
    ``why_not`` says what is in the way, or where nothing is fused.

    Raises InputError where a module does not fit its layer.
    """

    def __init__(
        self,
        file: TrainedFile,
        targets: dict[str, Target],
        part: DrawnPart | None,
        forms: Mapping[str, Factor],
        moulds: Moulds,
    ) -> None:
        self.path, self.targets, self._moulds = file.path, targets, moulds
        self.factors: list[tuple[nn.Module, Factor]] | None = None
        self.why_not = ""
        self._modules: Mapping[str, Adapter] | None = None
        if part is not None:
            layers = {name: row.module for name, row in targets.items()}
            self.factors, self.why_not = read_factors(file, layers, part.slots, forms)
        # What will most likely be used; the rest of the file is not kept.
        if self.factors is None:
            self._modules = moulds.adapters(file, targets, targets)

    def adapters(self, strength: float) -> Iterator[Adapter]:
        """Its modules at a strength."""
        if self._modules is None:
            self._modules = self._moulds.adapters(read_trained(self.path), self.targets, self.targets)
        for adapter in self._modules.values():
            # A copy with the same parameters: a network may be in a picture twice.
            own = _with_base(adapter, adapter.base)
            own.multiplier = strength
            yield own


def _factors(used: Iterable[tuple[_Share, float]]) -> list[tuple[nn.Module, Factor]]:
    """The factors of several shares, each at its strength."""
    return [
        (layer, Factor(own.down, own.up, own.scale * strength))
        for share, strength in used
        for layer, own in share.factors or ()
    ]


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Put off Python's search for garbage: a network is thousands of small objects, none of them garbage, and the
    search that they would start walks through all of the model."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Together(OverLayer):
    """Several adapters of one layer: what the layer gives, and what each by itself would change of it."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.base = adapters[0].base
        self.adapters = nn.ModuleList(_with_base(adapter, self._shared_base()) for adapter in adapters)
        self._shared: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes."""
        out: Tensor = self.base(x)
        self._shared = x, out
        total = out
        for adapter in self.adapters:
            total = total + (adapter(x) - out)
        self._shared = None
        return total

    def _shared_base(self) -> nn.Module:
        """The layer as an adapter sees it, which is not evaluated anew for the same x."""
        layer = copy(self.base)

        def forward(x: Tensor) -> Tensor:
            if self._shared is not None and self._shared[0] is x:
                return self._shared[1]
            out: Tensor = self.base(x)
            return out

        layer.forward = forward
        return layer


def _with_base(adapter: Adapter, base: nn.Module) -> Adapter:
    """A copy of an adapter, with the same parameters, around another module."""
    own = copy(adapter)
    own._modules = {**adapter._modules, "base": base}
    return own
