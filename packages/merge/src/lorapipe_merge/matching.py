"""Which module of which network changes which tensor of the base. Nothing is left over without being named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lorapipe_engine.checkpoints.opened import Base, Spot
from lorapipe_engine.command.text import counted
from lorapipe_engine.delta import known_rule
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import InputError, ProblemFound
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, quote
from lorapipe_engine.models.blocks import block_of
from lorapipe_engine.models.families import FAMILIES
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.kohya_names import canonical, first_text_encoder, layer_named_twice
from lorapipe_engine.networks.read import BESIDE, is_beside, lost_alphas
from lorapipe_merge.blocks import BlockWeights

_WEIGHT_ONLY = frozenset({"w_norm"})
_BIAS = frozenset({"diff_b", "b_norm", "lora_up.bias"})
_NO_BIAS = " (its layer has no bias)"
_NO_CHANGE = frozenset({"alpha"})
SHOWN = 8


@dataclass(frozen=True)
class Applied:
    """A network that takes part: its open file, what it is, its ratio, where it was read from, and its sha256."""

    weights: WeightFile
    network: Network
    ratio: float
    name: str
    sha256: str


@dataclass(frozen=True)
class Contribution:
    """What one module adds to one tensor. ``multiplier``: ratio times block weight."""

    weights: WeightFile
    module: NetworkModule
    spot: Spot
    multiplier: float
    block: str


@dataclass
class Match:
    """The plan of a merge: for each tensor (file, key) of the base what is added; and modules without a place."""

    changes: dict[tuple[int, str], list[Contribution]] = field(default_factory=dict)
    modules: int = 0
    unmatched: dict[str, list[str]] = field(default_factory=dict)

    def add(self, contribution: Contribution) -> None:
        place = (contribution.spot.file, contribution.spot.key)
        self.changes.setdefault(place, []).append(contribution)


def match(base: Base, networks: Sequence[Applied], blocks: BlockWeights | None) -> Match:
    """Find a place in ``base`` for every module of every network.

    A ratio, or a block's weight, of 0 leaves the module out of the changes, but it has to have its place. Raises
    InputError for shapes that do not fit and for modules of no known algorithm.
    """
    spots = base.spots()
    matched = Match()
    for applied in networks:
        missing = [name for name in applied.network.others if not _is_harmless(name)]
        missing = [name for name in missing if not is_beside(name)]
        _check_unique(base, applied)
        for module in applied.network.modules.values():
            places = spots.get(canonical(module.name), {})
            wanted = list(_kinds(module))
            if not wanted:
                continue
            check_whole(applied.weights, module)
            if any(kind not in places for kind in wanted):
                missing.append(f"{module.name}{_NO_BIAS if 'weight' in places else ''}")
                continue
            matched.modules += 1
            for kind in wanted:
                _check_shape(base, applied, module, places[kind])
                _add(matched, applied, module, places[kind], blocks)
        if missing:
            matched.unmatched[applied.name] = missing
    return matched


def _check_unique(base: Base, applied: Applied) -> None:
    """Raise InputError for two modules of one file that change one layer: which of them counts no file tells."""
    if why := layer_named_twice(applied.network, base.family):
        raise InputError(why)


def left_out(networks: Sequence[Applied]) -> list[str]:
    """Notes on what in the files cannot be in a merge, embeddings and alphas without factors, or is oddly named."""
    notes = []
    for network in networks:
        notes += [f"{network.name}: {note}" for note in first_text_encoder(network.network)]
        for start, what in BESIDE.items():
            names = [name for name in network.network.others if name.startswith(start)]
            if names:
                shown = ", ".join(quote(name)[1:-1] for name in names[:SHOWN])
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                notes.append(f"{network.name}: its {what} are left out: {shown}{more}")
        if lost := lost_alphas(network.network):
            shown = ", ".join(quote(name)[1:-1] for name in lost[:SHOWN])
            more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
            notes.append(
                f"{network.name}: {counted(len(lost), 'alpha', 'have')} no module and "
                f"{'is' if len(lost) == 1 else 'are'} left out: {shown}{more}"
            )
    return notes


def check_match(match: Match, base: Base, networks: Sequence[Applied], *, allow_unmatched: bool) -> list[str]:
    """Raise ProblemFound unless every module found its place, or the rest is allowed; the lines to say otherwise.

    A merge in which no module finds a place is always an error, for it would have no effect, and so is one of
    another family, of which some names fit by chance.
    """
    if not match.modules:
        told = ", ".join(applied.name for applied in networks)
        raise ProblemFound(
            f"{told}: no module fits {base.path}: {_reason(match, base, networks)}; nothing was written"
        )
    lines = []
    for name, missing in match.unmatched.items():
        shown = ", ".join(quote(module)[1:-1] for module in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        lines.append(f"{name}: {len(missing)} without a place in {base.path.name}: {shown}{more}")
    stranger = next((a for a in networks if a.name in match.unmatched and _is_other(a, base)), None)
    if stranger:
        raise ProblemFound(f"{_why(base, [stranger])}; nothing was written")
    if lines and not allow_unmatched:
        why = _reason(match, base, networks)
        raise ProblemFound(
            f"{'; '.join(lines)} ({why}); nothing was written. --allow-unmatched merges the rest"
        )
    return lines


def _reason(match: Match, base: Base, networks: Sequence[Applied]) -> str:
    """Why modules found no place."""
    missing = [name for names in match.unmatched.values() for name in names]
    if missing and all(name.endswith(_NO_BIAS) for name in missing):
        name = quote(missing[0].removesuffix(_NO_BIAS))[1:-1]
        return f"it has no bias where the network changes one, as of {name}"
    return _why(base, networks)


def _why(base: Base, networks: Sequence[Applied]) -> str:
    title = FAMILIES[base.family].title
    for applied in networks:
        if _is_other(applied, base):
            return f"{applied.name} is for {applied.network.title}, the base is {title}"
    if base.kind != "checkpoint" and not base.folder:
        return "the base has only a part of a model; give the whole checkpoint, or the diffusers folder it is from"
    return f"the base is {title}"


def _is_other(applied: Applied, base: Base) -> bool:
    network = applied.network
    return network.foreign is not None or network.family not in (None, base.family)


def _kinds(module: NetworkModule) -> Iterator[str]:
    """The tensors of the layer that the module changes."""
    suffixes = set(module.keys) - _NO_CHANGE
    if suffixes & _BIAS:
        yield "bias"
    if suffixes - _BIAS:
        yield "weight"


def _is_harmless(name: str) -> bool:
    """Tensors that belong to no module and say nothing of a change."""
    return name.endswith((".alpha", "position_ids")) or name.startswith("lora_te_text_model_embeddings")


def _add(
    match: Match,
    applied: Applied,
    module: NetworkModule,
    spot: Spot,
    blocks: BlockWeights | None,
) -> None:
    block = block_of(spot.place.part, spot.ldm_path)
    multiplier = applied.ratio * (blocks.of(block) if blocks else 1.0)
    if multiplier:
        match.add(Contribution(applied.weights, module, spot, multiplier, block))


# -------------------------------------------------------------------------------- shapes


def _check_shape(base: Base, applied: Applied, module: NetworkModule, spot: Spot) -> None:
    """Compare what the factors give with the layer, before anything is written. Only plain factors tell at once."""
    rows, columns = _layer_size(base.info(spot.file, spot.key), spot)
    infos = {suffix: applied.weights.tensors[key].shape for suffix, key in module.keys.items()}
    if spot.place.kind == "bias":
        made = next((infos[s] for s in sorted(_BIAS) if s in infos), None)
        wrong = made is not None and made != (rows,)
    else:
        rule = known_rule(module.keys)
        made = rule.made_shape(infos) if rule and rule.made_shape else None
        wrong = made is not None and made != (rows, columns)
    if wrong:
        layer = (rows,) if spot.place.kind == "bias" else (rows, columns)
        hint = ""
        if _is_other(applied, base):
            title = FAMILIES[base.family].title
            hint = f"; {applied.name} is for {applied.network.title}, the base is {title}"
        raise InputError(
            f"{applied.name}: {quote(module.name)[1:-1]} makes a change of {made}, {spot.key} of the base has {layer}"
            + hint
        )


def _layer_size(info: TensorInfo, spot: Spot) -> tuple[int, int]:
    """Rows and columns of the layer's weight as a matrix."""
    columns = 1
    for size in info.shape[1:]:
        columns *= size
    rows = spot.place.stop - spot.place.start
    return (columns, rows) if spot.place.transposed else (rows, columns)
