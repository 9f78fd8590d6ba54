"""All figures of a grid: of cells for the page, of networks for the choice, and the lines that say what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.judge import constants, tags
from lorapipe_inspect.grid.judge.choose import SELECTIVITY, Choice, choose, gates_failed, untested_gates
from lorapipe_inspect.grid.judge.figures import Figures, cell_figures, headroom, network_figures
from lorapipe_inspect.grid.judge.models import ByModel
from lorapipe_inspect.grid.judge.pairs import Key, Pairs, pair_cells
from lorapipe_inspect.grid.judge.tags import Tagged, Unasked
from lorapipe_inspect.grid.layout import Grid
from lorapipe_inspect.grid.looks import Look
from lorapipe_inspect.grid.settings import BestSettings, FigureSettings

MOST_FAILED = 12  # networks that the verdict names with their gates
MOST_NAMED = 5  # networks in a line of such
# Of those that were asked for, the first that is there decides. Pictures go before tags: these see nothing of a
# character that the tagger has no tag for.
PREFERRED = ("ccip", "dino", "clip", "encoder", "recall", "tags")
COLUMNS = (*PREFERRED, "clip_t")  # the last tells obedience to the prompt, not the concept


@dataclass(frozen=True)
class Study:
    """What was measured. ``rows``: figures of each cell by name. ``concept``: rises over the base by figure."""

    grid: Grid
    pairs: Pairs
    rows: Sequence[dict[str, float]]
    networks: Mapping[Key, Figures]
    headroom: Mapping[Key, float]
    unasked: Mapping[Key, Unasked]
    concept: Mapping[str, Sequence[float | None]]
    vendi: Mapping[str, Mapping[Key, float]] = field(default_factory=dict)
    ways: Mapping[str, Mapping[Key, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def measure(grid: Grid, looks: Sequence[Look | None], wanted: FigureSettings) -> Study:
    """Measure everything that the cells and the options allow. Raises ConfigError for an option without a use here,
    InputError and MissingExtra for models.
    """
    pairs = pair_cells(grid, wanted.trigger)
    rows = cell_figures(pairs, looks)
    networks = network_figures(grid, pairs, looks, rows)
    by, models = _by_models(grid.cells, pairs, wanted)
    _check(wanted, by, pairs)
    concept = {one.name: one.rises for one in models}
    unasked: dict[Key, Unasked] = {}
    if by is not None:
        concept["recall"] = tags.recall_rises(grid.cells, pairs, by)
        if wanted.dataset is not None:
            unasked = tags.unasked(grid.cells, pairs, by, tags.dataset_tags(wanted.dataset))
    for name, values in concept.items():
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[name] = value
    vendi = {one.name: one.vendi for one in models if one.vendi}
    ways = {one.name: one.ways for one in models if one.ways}
    notes = [note for one in models for note in one.notes]
    return Study(grid, pairs, rows, networks, headroom(pairs, networks), unasked, concept, vendi, ways, notes)


def _by_models(
    cells: Sequence[Cell], pairs: Pairs, wanted: FigureSettings
) -> tuple[Tagged | None, list[ByModel]]:
    columns: list[ByModel] = []
    by = None
    if wanted.tagger is None:
        known = tags.read_vocabulary(wanted.vocabulary) if wanted.vocabulary else None
        by = tags.tagged(cells, known)
    encoders = (("dino", wanted.dino), ("clip", wanted.clip), ("encoder", wanted.encoder))
    if not any((wanted.tagger, wanted.ccip, *(path for _, path in encoders))):
        return by, columns
    from lorapipe_inspect.grid.judge import models

    if wanted.tagger is not None:
        by, vectors, encoder, general = models.tag_in_full(wanted.tagger, cells)
        if wanted.dataset is not None:
            columns.append(models.tag_cosine(encoder, general, wanted.dataset, vectors, pairs))
    for name, path in encoders:
        if path is not None and wanted.held_out is not None:
            columns += models.likeness(name, path, wanted.held_out, wanted.dataset, cells, pairs)
    if wanted.ccip is not None and wanted.held_out is not None:
        columns.append(models.character(wanted.ccip, wanted.held_out, cells, pairs))
    return by, columns


def _check(wanted: FigureSettings, by: Tagged | None, pairs: Pairs) -> None:
    """Raise ConfigError for options that nothing in the cells has a use for."""
    if wanted.vocabulary is not None and (by is None or wanted.tagger is not None):
        raise ConfigError(
            "--vocabulary has a use only with records of a tagger; these cells have none from lora-tag"
        )
    has_encoder = any((wanted.dino, wanted.clip, wanted.encoder))
    if wanted.dataset is not None and by is None and not has_encoder:
        raise ConfigError(
            "--dataset has a use only with tags (lora-tag's records, --tagger), --dino, --clip or --encoder"
        )
    if wanted.trigger is not None and "T" not in pairs.parts:
        raise ConfigError(f"--trigger {wanted.trigger}: no prompt of these cells has it")


# -------------------------------------------------------------------------------- the choice


def decide(study: Study, by: BestSettings) -> Choice:
    """The network to take. Raises ConfigError where the figure that was asked for is not there."""
    available = [name for name in PREFERRED if any(one is not None for one in study.concept.get(name, ()))]
    figure = by.by if by.by != "auto" else next(iter(available), SELECTIVITY)
    if not study.pairs.networks:
        raise ConfigError("--best: no cell of these has a network")
    if not any(base is not None for base in study.pairs.bases):
        raise ConfigError(
            "--best: no base cells: render the prompts and seeds without a network too (weight 0)"
        )
    if figure == SELECTIVITY and not {"T"} < {part for part in study.pairs.parts if part}:
        raise ConfigError(
            "--best: nothing to compare by: give --trigger WORD and prompts with and without it, tags (lora-tag's "
            "records), or --dino, --clip, --ccip, --encoder with --held-out"
        )
    if figure not in (SELECTIVITY, *available):
        raise ConfigError(
            f"--by {figure}: these cells have no such figure; there is {', '.join([SELECTIVITY, *available])}"
        )
    rises = {network: one.deviations for network, one in study.unasked.items()}
    failed = {
        network: gates
        for network, one in study.networks.items()
        if (gates := gates_failed(one, rises.get(network)))
    }
    rows = [row.get("move") for row in study.rows] if figure == SELECTIVITY else list(study.concept[figure])
    order = {network: _order(study, network) for network in study.pairs.networks}
    return choose(study.pairs, figure, rows, failed, order, untested_gates(study.networks, rises))


def _order(study: Study, network: Key) -> tuple[float, float]:
    """The place of a network among the epochs, and its weight; 1 where the cells do not say."""
    names = study.pairs.names
    place, weight = 0.0, 1.0
    for name, value in zip(names, network, strict=True):
        axis = study.grid.axis(name)
        if name in ("weight", "unet") and isinstance(value, int | float):
            weight = float(value)
        elif name != "te" and axis is not None and value in axis.values:
            place = place * len(axis.values) + axis.values.index(value)
    return place, weight


def name_of(study: Study, network: Key) -> str:
    """A network in the words of its axes: ``mina-000004, weight 0.8``."""
    words = []
    for name, value in zip(study.pairs.names, network, strict=True):
        axis = study.grid.axis(name)
        if axis is None or value not in axis.values or value is None:
            continue
        label = axis.labels[axis.values.index(value)]
        words.append(label if name == "file" else f"{axis.title} {label}")
    return ", ".join(words) or "the network"


# -------------------------------------------------------------------------------- in words


def verdict(study: Study, choice: Choice) -> list[str]:
    """What was chosen and why, the chosen one first, one fact a line."""

    def name(network: Key) -> str:
        return name_of(study, network)

    def value(network: Key) -> str:
        return f"{choice.values[network]:.3g}"

    if choice.network is None:
        lines = [f"cannot tell: {choice.reason}"]
        if choice.ties:
            lines.append(
                f"the earliest of them: {name(choice.ties[0])}, {choice.figure} {value(choice.ties[0])}"
            )
    else:
        lines = [f"take {name(choice.network)}: {choice.figure} {value(choice.network)}"]
    if choice.interval:
        low, high = choice.interval
        lines.append(
            f"90 % interval of the highest: {low:.3g} to {high:.3g}, {choice.pictures} pictures of the concept each"
        )
    if len(choice.ties) > 1:
        shown = "; ".join(map(name, choice.ties[1 : 1 + MOST_NAMED]))
        more = " ..." if len(choice.ties) > 1 + MOST_NAMED else ""
        lines.append(f"cannot be told apart from it: {shown}{more}")
    if choice.network is not None:
        lines.append(
            f"runner-up: {name(choice.runner_up)}, {choice.figure} {value(choice.runner_up)}"
            if choice.runner_up
            else "runner-up: none, all others fail a gate"
        )
        lines += _advice(study, choice)
    lines += _way(study, choice)
    failed = [
        f"does not pass: {name(network)}: {'; '.join(why)}"
        for network, why in choice.failed.items()
        if network not in choice.few
    ]
    lines += failed[:MOST_FAILED]
    if len(failed) > MOST_FAILED:
        lines.append(f"does not pass: {len(failed) - MOST_FAILED} more")
    if choice.few:
        shown = "; ".join(map(name, choice.few[:MOST_NAMED]))
        more = f" and {len(choice.few) - MOST_NAMED} more" if len(choice.few) > MOST_NAMED else ""
        lines.append(f"not compared, for too few pictures: {shown}{more}")
    lines += [f"not tested: {gate}" for gate in choice.untested]
    lines += _unseen(choice)
    return [*lines, *study.notes]


def _advice(study: Study, choice: Choice) -> list[str]:
    if choice.network is None:
        return []
    places = [_order(study, one) for one in study.pairs.networks if one not in choice.few]
    place, weight = _order(study, choice.network)
    epochs, weights = {one for one, _ in places}, {one for _, one in places}
    lines = []
    if len(epochs) > 1 and place == max(epochs) and len(weights) > 1 and weight == max(weights):
        lines.append("train longer: the last epoch at the highest weight is the best")
    if weight < constants.LOW_WEIGHT:
        lines.append(f"stop earlier: the best weight is below {constants.LOW_WEIGHT:g}")
    return lines


def _way(study: Study, choice: Choice) -> list[str]:
    """How near to the held-out pictures the first of those that were named comes, and that this is not near."""
    way = way_of(study, choice)
    if way is None:
        return []
    lines = [
        f"{choice.figure}: {name_of(study, choice.ties[0])} goes {way:.0%} of the way from the base's pictures to the "
        "held-out ones"
    ]
    if way < constants.LEAST_WAY:
        lines.append(
            f"train longer, or at a higher rate: less than {constants.LEAST_WAY:.0%} of that way is what too short a "
            "training of the demo goes"
        )
    return lines


def way_of(study: Study, choice: Choice) -> float | None:
    """How much of the way to the held-out pictures the first of the ties goes; None where nothing says."""
    return study.ways.get(choice.figure, {}).get(choice.ties[0]) if choice.ties else None


def _unseen(choice: Choice) -> list[str]:
    if choice.figure != SELECTIVITY:
        return []
    return [
        "not seen: whether it is the concept that is drawn. selectivity tells that the trigger moves pictures, not "
        "that it moves them rightly: look at the page, or give --encoder, --dino, --clip or --ccip with --held-out"
    ]


def _without_weight(study: Study, file: Key) -> str:
    """A file in the words of its axes, given its network's values without the weight."""
    at = study.pairs.names.index("weight")
    return name_of(study, (*file[:at], None, *file[at:]))


def table(study: Study, order: Callable[[Key], Any] | None = None) -> list[str]:
    """The figures of the networks in columns."""
    if not any(one.move is not None for one in study.networks.values()):
        return []
    names = {network: name_of(study, network) for network in study.networks}
    wide = min(48, max(map(len, names.values())))
    head = (
        f"{'':<{wide}}{'move':>7}{'select':>8}{'leak U':>8}{'leak O':>8}{'step':>7}{'spread':>8}{'burn':>7}"
    )
    more = [name for name in COLUMNS if name in study.concept]
    head += "".join(f"{name:>8}" for name in more) + (f"{'unasked':>9}" if study.unasked else "")
    lines = [head]
    for network in sorted(study.networks, key=order or (lambda one: _order(study, one))):
        one = study.networks[network]
        burn = max(one.burn.values(), key=abs) if one.burn else None
        cells = [
            (one.move, 7),
            (one.selectivity, 8),
            (one.leak_u, 8),
            (one.leak_o, 8),
            (one.step, 7),
            (one.spread, 8),
            (burn, 7),
        ]
        asked = study.pairs.of_concept(network)
        for name in more:
            known = [value for i in asked if (value := study.concept[name][i]) is not None]
            cells.append((sum(known) / len(known) if known else None, 8))
        if study.unasked:
            cells.append((study.unasked[network].rise if network in study.unasked else None, 9))
        row = "".join(f"{'-' if value is None else f'{value:.2f}':>{width}}" for value, width in cells)
        lines.append(f"{names[network][:wide]:<{wide}}{row}")
    lines += [
        f"headroom of {_without_weight(study, file)}: {knee:+.2g}" for file, knee in study.headroom.items()
    ]
    for network, risen in study.unasked.items():
        shown = ", ".join(f"{tag} {rise:+.2f}" for tag, rise in risen.tags if rise > 0)
        lines += [f"unasked with {names[network]}: {shown}"] if shown else []
    for name, values in study.vendi.items():
        lines += [
            f"{name}: {names[network]} makes {value:.1f} different pictures"
            for network, value in values.items()
        ]
    return lines
