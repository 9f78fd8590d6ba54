"""The algorithms that network files are made with, by the tensors that each module has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

# The network_module for which algo in network_args names the algorithm, and the one that it has without.
LYCORIS, LYCORIS_ALGO = "lycoris.kohya", "lora"
# Tensors that a module of several algorithms can have besides its own.
SHARED_SUFFIXES = frozenset({"alpha", "dora_scale", "diff_b"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """One algorithm. ``marks`` are suffixes that no other has, ``others`` what else its modules can have.

    ``ranks`` names the tensors of which the first that is there has the rank as its number of rows; none
    where there is no rank. ``cores``: Tucker cores, of which no other algorithm has one of that name.

    ``form``: the algorithm whose files it writes, where it differs only in how it is trained. Such a row has no marks,
    and BOFT's has none because :func:`lorapipe_engine.networks.describe.describe_network` tells it by a shape.

    ``rule``: "module:name" of its change without torch (:class:`lorapipe_engine.delta.base.Rule`). ``adapter``:
    "module:class" that trains it (:class:`lorapipe_engine.nn.base.Adapter`), where the engine does, and ``modules``:
    the values of ``network_module`` that ask for it, ``algos`` those of ``algo`` under LyCORIS' module.

    ``plain``: its files are two factors and a strength, the one form that every program has a name for. ``refits``:
    they are other factors, of which plain ones can be made. ``peft``: PEFT has a form for it besides the plain one.
    ``scaled``: alpha / rank scales the change of each of its modules.
    """

    name: str
    title: str
    marks: frozenset[str] = frozenset()
    form: str | None = None
    others: frozenset[str] = frozenset()
    ranks: tuple[str, ...] = ()
    cores: frozenset[str] = frozenset()
    rule: str
    adapter: str | None = None
    modules: tuple[str, ...] = ()
    algos: tuple[str, ...] = ()
    plain: bool = False
    refits: bool = False
    peft: bool = False
    scaled: bool = False

    @property
    def has_rank(self) -> bool:
        """Whether its modules, or those of the files that it writes, have a rank."""
        return bool(self.ranks) or self.form is not None


ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        name="lora",
        rule="lorapipe_engine.delta.lora:LORA",
        cores=frozenset({"lora_mid.weight"}),
        title="LoRA, LoCon and DyLoRA",
        marks=frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight"}),
        others=frozenset({"lora_up.bias"}),
        ranks=("lora_down.weight",),
        adapter="lorapipe_engine.nn.adapters.lora:Lora",
        modules=("networks.lora", "locon.locon_kohya"),
        algos=("lora", "locon"),
        plain=True,
        scaled=True,
    ),
    Algorithm(
        name="dylora",
        rule="lorapipe_engine.delta.lora:LORA",
        title="DyLoRA",
        form="lora",
        adapter="lorapipe_engine.nn.adapters.dylora:DyLora",
        modules=("networks.dylora",),
        algos=("dylora",),
        scaled=True,
    ),
    Algorithm(
        name="lora_fa",
        rule="lorapipe_engine.delta.lora:LORA",
        title="LoRA-FA",
        form="lora",
        adapter="lorapipe_engine.nn.adapters.lora_fa:LoraFa",
        modules=("networks.lora_fa",),
        scaled=True,
    ),
    Algorithm(
        name="loha",
        rule="lorapipe_engine.delta.loha:LOHA",
        cores=frozenset({"hada_t1", "hada_t2"}),
        title="LoHa",
        marks=frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
        ranks=("hada_w1_b",),
        adapter="lorapipe_engine.nn.adapters.loha:Loha",
        modules=("networks.loha",),
        algos=("loha",),
        refits=True,
        peft=True,
        scaled=True,
    ),
    Algorithm(
        name="lokr",
        rule="lorapipe_engine.delta.lokr:LOKR",
        cores=frozenset({"lokr_t2"}),
        title="LoKr",
        marks=frozenset(
            {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
        ),
        ranks=("lokr_w2_b", "lokr_w1_b"),
        adapter="lorapipe_engine.nn.adapters.lokr:Lokr",
        modules=("networks.lokr",),
        algos=("lokr",),
        refits=True,
    ),
    Algorithm(
        name="oft",
        rule="lorapipe_engine.delta.oft:OFT",
        title="OFT",
        marks=frozenset({"oft_blocks"}),
        others=frozenset({"rescale"}),
        adapter="lorapipe_engine.nn.adapters.oft:Oft",
        modules=("networks.oft",),
        algos=("diag-oft", "oft"),
    ),
    Algorithm(
        name="boft",
        rule="lorapipe_engine.delta.oft:OFT",
        title="BOFT",
        adapter="lorapipe_engine.nn.adapters.oft:Boft",
        algos=("boft",),
    ),
    Algorithm(
        name="glora",
        rule="lorapipe_engine.delta.glora:GLORA",
        title="GLoRA",
        marks=frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}),
        ranks=("a2.weight", "b2.weight"),
    ),
    Algorithm(
        name="ia3",
        rule="lorapipe_engine.delta.ia3:IA3",
        title="(IA)³",
        marks=frozenset({"on_input"}),
        others=frozenset({"weight"}),
        adapter="lorapipe_engine.nn.adapters.ia3:Ia3",
        algos=("ia3",),
    ),
    Algorithm(
        name="full",
        rule="lorapipe_engine.delta.full:FULL",
        title="full change",
        marks=frozenset({"diff"}),
        adapter="lorapipe_engine.nn.adapters.full:Full",
        algos=("full",),
    ),
    Algorithm(
        name="norm",
        rule="lorapipe_engine.delta.full:NORM",
        title="norm layers",
        marks=frozenset({"w_norm", "b_norm"}),
        adapter="lorapipe_engine.nn.adapters.full:Norm",
    ),
)


def known_suffixes() -> frozenset[str]:
    """Every suffix that a tensor of a module can have."""
    return _suffixes(ALGORITHMS)


@cache
def _suffixes(rows: tuple[Algorithm, ...]) -> frozenset[str]:
    return SHARED_SUFFIXES.union(*(row.marks | row.others for row in rows))


def core_suffixes() -> frozenset[str]:
    """Suffixes of Tucker cores."""
    return frozenset().union(*(row.cores for row in ALGORITHMS))


def algorithm_of(name: str) -> Algorithm | None:
    """The row of this name; None where the table has none."""
    return next((row for row in ALGORITHMS if row.name == name), None)


def asked_algorithm(algorithm: str | None, module: str, arguments: Iterable[str]) -> Algorithm | None:
    """The row that the options ``algorithm``, ``network_module`` and ``network_args`` ask for; None where they name
    none that is trained here."""
    name = algorithm
    if name is None and module == LYCORIS:
        name = dict(word.partition("=")[::2] for word in arguments).get("algo", LYCORIS_ALGO)
    if name is None:
        return next((row for row in ALGORITHMS if module in row.modules), None)
    return next((row for row in ALGORITHMS if name.lower() in (row.name, *row.algos)), None)


def is_plain(name: str) -> bool:
    """Whether modules of the algorithm of this name are two factors and a strength."""
    row = algorithm_of(name)
    return row is not None and row.plain


def find_algorithm(suffixes: Collection[str]) -> Algorithm | None:
    """The algorithm of a module with tensors of these suffixes; None where none or more than one fits."""
    rows = [row for row in ALGORITHMS if not row.marks.isdisjoint(suffixes)]
    if not rows and "diff_b" in suffixes:  # a bias alone
        rows = [row for row in ALGORITHMS if row.name == "full"]
    return rows[0] if len(rows) == 1 else None
