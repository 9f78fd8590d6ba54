"""Cells of a plan: all that decides one picture, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_engine import __version__
from lorapipe_engine.sampling.axes import Value
from lorapipe_engine.sampling.bases import NOTHING_TOLD, Told
from lorapipe_engine.sampling.infotext import lora_hashes, write_infotext
from lorapipe_engine.sampling.noise.samplers import SAMPLERS
from lorapipe_engine.sampling.prompts.tags import Tag
from lorapipe_engine.sampling.shelf import NO_NETWORK, Loaded


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture. Equal cells are one picture, whatever axes they stand on.

    ``prompt``: its words after replacing and drawing, networks' tags among them; ``text``: without these. ``sampler``
    and ``schedule`` are A1111's labels. ``cfg``: the classifier-free guidance. ``eta``: None where the sampler scales
    no noise. Sizes in pixels, multiples of 8. ``clip_skip`` k takes the text encoder's k-th layer from the end.
    ``told``: what the user says of the base; its ``flow_shift`` is there where the base predicts flow.
    ``v_prediction`` and ``zero_terminal_snr``: what was asked for in the place of what the base's files say.
    """

    prompt: str
    text: str
    negative: str
    networks: tuple[Loaded, ...]
    seed: int
    steps: int
    sampler: str
    schedule: str
    cfg: float
    eta: float | None
    width: int
    height: int
    clip_skip: int
    base: str | None
    vae: str | None
    told: Told = NOTHING_TOLD
    v_prediction: bool | None = None
    zero_terminal_snr: bool | None = None

    @property
    def is_base(self) -> bool:
        """Whether no network has a part in it."""
        return not self.networks

    def stored_prompt(self) -> str:
        """The prompt for the picture's parameters: with a tag for every network: pasting it repeats the cell."""
        tags = [Tag(row.file.name, row.te, row.unet).text() for row in self.networks if not row.from_prompt]
        return " ".join([self.prompt, *tags]) if self.prompt else " ".join(tags)


@dataclass(frozen=True)
class Hashes:
    """Hashes of a picture's files in hexadecimal; ``networks`` by path. None where a base is no single file."""

    model: str | None = None
    vae: str | None = None
    networks: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """A network's place in a cell, counted from 1, whether there is one or not. ``label``: names, or "None"."""

    number: int
    label: str
    te: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class Placed:
    """A cell at its place on the axes. ``values``: by the titles of the axes, X first, then Y, then sheets.

    ``path``: its picture, which cells share that are equal. ``slots``: its networks by their numbers, those of strength
    0 too. ``kind``: what a probe's prompt is for.
    """

    values: Mapping[str, Value]
    cell: Cell
    path: Path
    slots: tuple[Slot, ...] = ()
    kind: str | None = None


def cell_infotext(cell: Cell, hashes: Hashes) -> str:
    """The parameters that a cell's picture carries, in A1111's form."""
    sampler = SAMPLERS[cell.sampler]
    # A1111 names the share of noise only where it is not what the sampler does by itself.
    eta_key = "Eta DDIM" if sampler.noise == "ddim" else "Eta"
    networks = [
        (row.file.name, digits) for row in cell.networks if (digits := hashes.networks.get(row.file.path))
    ]
    pairs: dict[str, Any] = {
        "Steps": cell.steps,
        "Sampler": cell.sampler,
        "Schedule type": cell.schedule,
        "CFG scale": cell.cfg,
        "Seed": cell.seed,
        "Size": f"{cell.width}x{cell.height}",
        "Model hash": hashes.model,
        "Model": Path(cell.base).stem if cell.base else None,
        "VAE hash": hashes.vae,
        "VAE": Path(cell.vae).name if cell.vae else None,
        "VAE scale": cell.told.vae_scale,
        "VAE shift": cell.told.vae_shift,
        "VAE padding": "reflect" if cell.told.vae_reflects else None,
        "Flow shift": cell.told.flow_shift,
        "Clip skip": cell.clip_skip if cell.clip_skip > 1 else None,
        "RNG": "CPU",
        eta_key: None if cell.eta == sampler.eta else cell.eta,
        "Prediction": _said(cell.v_prediction, "v", "epsilon"),
        "Noise Schedule": _said(cell.zero_terminal_snr, "Zero Terminal SNR", "Default"),  # A1111's words
        "Lora hashes": lora_hashes(networks),
        # A bare number would turn on what A1111 did before its version 1.6.
        "Version": f"lorapipe {__version__}",
    }
    return write_infotext(cell.stored_prompt(), cell.negative, pairs)


def _said(asked: bool | None, yes: str, no: str) -> str | None:
    return None if asked is None else yes if asked else no


def cell_record(placed: Placed) -> dict[str, Any]:
    """The fields of a cell's record beside its path: numbers and texts, the axes' values once more under ``axes``.

    ``file``, ``weight`` (or ``te`` and ``unet``) are the first network's; further ones, last those that the prompt
    asks for, have their number behind.
    """
    cell = placed.cell
    fields: dict[str, Any] = {
        "axes": dict(placed.values),
        **_network_fields(placed),
        "prompt": cell.prompt,
        "negative": cell.negative,
        "seed": cell.seed,
        "steps": cell.steps,
        "sampler": cell.sampler,
        "schedule": cell.schedule,
        "cfg": cell.cfg,
        "eta": cell.eta,
        "size": f"{cell.width}x{cell.height}",
        "clip_skip": cell.clip_skip,
        "base": cell.base,
        "vae": cell.vae,
        "vae_scale": cell.told.vae_scale,
        "vae_shift": cell.told.vae_shift,
        "vae_reflects": cell.told.vae_reflects or None,
        "flow_shift": cell.told.flow_shift,
        "v_prediction": cell.v_prediction,
        "zero_terminal_snr": cell.zero_terminal_snr,
        "kind": placed.kind,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _network_fields(placed: Placed) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for slot in placed.slots or (Slot(1, NO_NETWORK),):
        fields |= _slot_fields(slot)
    fields["networks"] = [
        {"path": str(row.file.path), "name": row.file.name, "te": row.te, "unet": row.unet}
        for row in placed.cell.networks
    ] or None
    return fields


def _slot_fields(slot: Slot) -> dict[str, Any]:
    end = f" {slot.number}" if slot.number > 1 else ""
    fields: dict[str, Any] = {f"file{end}": slot.label}
    if slot.label == NO_NETWORK:
        return fields
    if slot.te == slot.unet:
        return fields | {f"weight{end}": slot.te}
    return fields | {f"te{end}": slot.te, f"unet{end}": slot.unet}
