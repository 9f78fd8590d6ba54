"""The algorithms that network files are made with, by the tensors that each module has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Tensors that a module of several algorithms can have besides its own.
SHARED_SUFFIXES = frozenset({"alpha", "dora_scale", "diff_b"})


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One algorithm. ``marks`` are suffixes that no other has, ``others`` what else its modules can have.

    ``ranks`` names the tensors of which the first that is there has the rank as its number of rows; none
    where there is no rank. ``adapter``: "module:class" that trains it, where the engine does.
    """

    name: str
    title: str
    marks: frozenset[str]
    others: frozenset[str] = frozenset()
    ranks: tuple[str, ...] = ()
    adapter: str | None = None


ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        name="lora",
        title="LoRA, LoCon and DyLoRA",
        marks=frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight"}),
        others=frozenset({"lora_up.bias"}),
        ranks=("lora_down.weight",),
        adapter="lorapipe_engine.nn.lora:Lora",
    ),
    Algorithm(
        name="loha",
        title="LoHa",
        marks=frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
        ranks=("hada_w1_b",),
    ),
    Algorithm(
        name="lokr",
        title="LoKr",
        marks=frozenset(
            {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
        ),
        ranks=("lokr_w2_b", "lokr_w1_b"),
    ),
    Algorithm(
        name="oft", title="OFT and BOFT", marks=frozenset({"oft_blocks"}), others=frozenset({"rescale"})
    ),
    Algorithm(
        name="glora",
        title="GLoRA",
        marks=frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}),
        ranks=("a2.weight", "b2.weight"),
    ),
    Algorithm(name="ia3", title="(IA)³", marks=frozenset({"on_input"}), others=frozenset({"weight"})),
    Algorithm(name="full", title="full change", marks=frozenset({"diff"})),
    Algorithm(name="norm", title="norm layers", marks=frozenset({"w_norm", "b_norm"})),
)

SUFFIXES = SHARED_SUFFIXES.union(*(row.marks | row.others for row in ALGORITHMS))


def find_algorithm(suffixes: Collection[str]) -> Algorithm | None:
    """The algorithm of a module with tensors of these suffixes; None where none or more than one fits."""
    found = [row for row in ALGORITHMS if not row.marks.isdisjoint(suffixes)]
    if not found and "diff_b" in suffixes:  # a bias alone
        found = [row for row in ALGORITHMS if row.name == "full"]
    return found[0] if len(found) == 1 else None
