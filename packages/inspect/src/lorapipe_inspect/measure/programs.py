"""What the field's programs can read: one row a program, facts of a file held against it.

From the programs' own loaders: sd-scripts ``networks/lora.py`` and ``networks/oft.py``, LyCORIS ``lycoris/kohya.py``,
the web UI's ``extensions-builtin/Lora`` (1.10), ComfyUI's ``comfy/lora.py`` and ``comfy/weight_adapter``, diffusers'
``loaders/lora_conversion_utils.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.models.families import FAMILIES
from lorapipe_engine.networks.describe import Network, describe_network

YES, NO, PART = "yes", "no", "in part"
KOHYA, PEFT, MIXED = "kohya", "diffusers", "mixed"


@dataclass(frozen=True)
class Facts:
    """What decides who reads a file. ``style``: "kohya", "diffusers" or "mixed"; ``algorithms``: of its modules;
    ``dtypes``: number types of its factors.
    """

    family: str | None
    foreign: str | None
    style: str
    algorithms: tuple[str, ...]
    dora: bool
    tucker: bool
    conv: bool
    missing_alpha: int
    dtypes: tuple[str, ...]
    strangers: int
    modules: int

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> str:
        """The facts in a line."""
        family = FAMILIES[self.family].title if self.family else self.foreign or "family unknown"
        extras = [
            name
            for name, there in (("DoRA", self.dora), ("Tucker", self.tucker), ("convolutions", self.conv))
            if there
        ]
        parts = [family, "+".join(self.algorithms), *extras, f"{self.style} names", ", ".join(self.dtypes)]
        if self.missing_alpha:
            parts.append(f"{self.missing_alpha} modules without alpha")
        return ", ".join(parts)


@dataclass(frozen=True)
class Answer:
    """Whether a program reads a file, and why, or how."""

    reads: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """One program. ``styles`` and ``algorithms`` are those it reads (None: all of the table); ``dora``, ``tucker``:
    whether it knows them.
    """

    styles: frozenset[str]
    algorithms: frozenset[str] | None
    dora: bool
    tucker: bool
    families: frozenset[str] = frozenset(FAMILIES)
    note: str = ""


_LYCORIS = frozenset({"lora", "loha", "lokr", "full", "norm", "ia3", "glora", "oft", "boft"})
PROGRAMS: Mapping[str, Program] = MappingProxyType(
    {
        "sd-scripts": Program(frozenset({KOHYA}), frozenset({"lora"}), dora=False, tucker=False),
        "sd-scripts + LyCORIS": Program(frozenset({KOHYA}), _LYCORIS, dora=True, tucker=True),
        "web UI (A1111, Forge)": Program(
            frozenset({KOHYA}), _LYCORIS, dora=True, tucker=True, note="DoRA since 1.9, OFT since 1.7"
        ),
        "ComfyUI": Program(
            frozenset({KOHYA, PEFT}),
            frozenset({"lora", "loha", "lokr", "full", "norm", "glora", "oft", "boft"}),
            dora=True,
            tucker=True,
        ),
        "diffusers": Program(frozenset({KOHYA, PEFT}), frozenset({"lora"}), dora=True, tucker=False),
        "lora-merge": Program(frozenset({KOHYA, PEFT, MIXED}), None, dora=True, tucker=True),
    }
)


def facts_of(file: WeightFile) -> Facts:
    """The facts of an open network. Raises InputError for other files."""
    network = describe_network(file)
    modules = network.modules.values()
    factors = {
        file.tensors[key].dtype for m in modules for suffix, key in m.keys.items() if suffix != "alpha"
    }
    return Facts(
        family=network.family,
        foreign=network.foreign,
        style=_style(network),
        algorithms=tuple(sorted({module.algorithm for module in modules})),
        dora=any(module.dora for module in modules),
        tucker=any(module.tucker for module in modules),
        conv=any(module.kernel for module in modules),
        missing_alpha=sum(m.alpha is None for m in modules if m.rank is not None),
        dtypes=tuple(sorted(factors)),
        strangers=len(network.others),
        modules=len(network.modules),
    )


def _style(network: Network) -> str:
    styles = {PEFT if "." in name else KOHYA for name in network.modules}
    return styles.pop() if len(styles) == 1 else MIXED


def examine(facts: Facts) -> dict[str, Answer]:
    """What every program makes of the file."""
    return {name: _answer(facts, program) for name, program in PROGRAMS.items()}


def _knows(program: Program, algorithm: str) -> bool:
    return algorithm != "unknown" if program.algorithms is None else algorithm in program.algorithms


def _answer(facts: Facts, program: Program) -> Answer:
    refusals = []
    if facts.style not in program.styles:
        refusals.append(f"does not know {facts.style} names")
    if facts.foreign:
        refusals.append(f"was not looked at for {facts.foreign}")
    if facts.family and facts.family not in program.families:
        refusals.append(f"has no {FAMILIES[facts.family].title}")
    unknown = [name for name in facts.algorithms if not _knows(program, name)]
    if len(unknown) == len(facts.algorithms):
        refusals.append(f"does not know {', '.join(unknown)}")
    if refusals:
        return Answer(NO, tuple(refusals))
    why = [f"passes over {name} modules" for name in unknown]
    if facts.dora and not program.dora:
        why.append("passes over the magnitudes of DoRA")
    if facts.tucker and not program.tucker:
        why.append("does not read Tucker cores")
    odd = [dtype for dtype in facts.dtypes if dtype.startswith(("F8", "F6", "F4"))]
    if odd:
        why.append(f"{', '.join(odd)} needs a recent torch")
    lost = bool(unknown) or (facts.dora and not program.dora) or (facts.tucker and not program.tucker)
    how = [program.note] if program.note and (facts.dora or "oft" in facts.algorithms) else []
    if facts.missing_alpha:
        how.append("takes a missing alpha for the rank")
    if facts.strangers:
        how.append(f"passes over {facts.strangers} tensors of no known module")
    return Answer(PART if lost else YES, (*why, *how))
