"""What is known of an optimizer before its package is imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorapipe_engine.errors import MissingExtra

if TYPE_CHECKING:
    import torch

PORTED = "pip install pytorch-optimizer"


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """A row of the table of optimizers.

    ``name``: as users write it; ``path``: module:Class; ``install``: what to say where the package is missing.

    Rates: ``rate`` is the usual rate of the UNet, ``usual`` the range outside of which a note is worth it (None:
    anything goes), ``text_share`` the text encoders' share of it when no rate is given. ``one_rate``: it estimates
    one step size for everything, so all parts need the same rate. ``averaged``: it trains other weights than it
    would save and has train() and eval() to change over. ``schedule``: the curve that suits it.

    Arguments: ``always`` are sd-scripts' own defaults, ``guide`` those that are set only where the user gives no
    argument at all (so that a command line made for sd-scripts means what it meant there). ``renamed`` translates
    names of the original package, ``ignored`` are its names that mean nothing here; ``note`` is said before a run.

    Work: ``extra`` is passed for speed unless the user sets it, ``on_cuda`` besides on such a device (so that a step
    can be captured as a graph); ``tensor_rate``: it reads its rate from a tensor on the device;
    ``by_tensor``: its result depends on the shapes of the tensors, so it may not be given flat buffers.
    """

    name: str
    path: str
    rate: float = 1e-4
    usual: tuple[float, float] | None = (1e-6, 3e-3)
    text_share: float = 0.5
    one_rate: bool = False
    averaged: bool = False
    schedule: str = "cosine"
    always: Mapping[str, Any] = field(default_factory=dict)
    guide: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    note: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    on_cuda: Mapping[str, Any] = field(default_factory=dict)
    tensor_rate: bool = False
    by_tensor: bool = False
    install: str = PORTED

    def load(self) -> type[torch.optim.Optimizer]:
        """Import the class. Raises MissingExtra with the pip command."""
        module, name = self.path.split(":")
        # It tells of parts that it could not load and does not need.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            optimizer: type[torch.optim.Optimizer] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MissingExtra(
                f"optimizer_type: {self.name} needs a package that is not installed: {self.install}"
            ) from error
        return optimizer
