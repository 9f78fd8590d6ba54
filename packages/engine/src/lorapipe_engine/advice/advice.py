"""The table of advice: a row for each thing that is worth a line before a run. Every line says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorapipe_engine.datasets.kinds import KINDS
from lorapipe_engine.datasets.leading import leading_tag
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.networks.algorithms import asked_algorithm
from lorapipe_engine.pictures.batches import batches_per_epoch
from lorapipe_engine.settings import TrainSettings

LOW_STRENGTH = 1 / 8  # alpha / rank from which on a rate for full strength learns little
USUAL_RATE = 2e-4  # of AdamW at full strength
SMALLEST_RANK = 32  # of the families' own ranks; taken where no rank is given and the base is not read yet
BATCH_SHARE = 4  # pictures for each one in a batch


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run as it is planned: its options, its pictures, and its length in updates. ``processes``: how many share
    the work, each with a batch of its own."""

    settings: TrainSettings
    dataset: Dataset
    steps: int
    processes: int = 1

    @property
    def shown(self) -> int:
        """Pictures shown in the whole run, each as often as it is shown."""
        batch = max(self.dataset.batch_sizes) * self.processes
        return self.steps * batch * self.settings.optimizer.gradient_accumulation_steps


Row = Callable[[Planned], Iterator[str]]


def advice(planned: Planned) -> list[str]:
    """A line for each row that the run earns; most often none."""
    rows = ROWS if planned.dataset.pairs is None else OF_ANY
    return [line for row in rows for line in row(planned)]


def low_alpha(planned: Planned) -> Iterator[str]:
    """A small alpha at the rate for full strength: the change is scaled down, and nothing makes up for it."""
    network, optimizer = planned.settings.network, planned.settings.optimizer
    alpha, rank = network.network_alpha, network.network_dim or SMALLEST_RANK
    rates = (optimizer.unet_lr, optimizer.learning_rate, 1e-4)
    rate = next(value for value in rates if value is not None)
    row = asked_algorithm(network.algorithm, network.network_module, network.network_args)
    if row is None or not row.scaled:
        return
    if not alpha or not optimizer.optimizer_type.lower().startswith("adamw"):
        return
    if alpha / rank <= LOW_STRENGTH and 0 < rate <= USUAL_RATE:
        yield (
            f"network_alpha {alpha:g} of network_dim {rank} scales every change to {alpha / rank:.2g} of itself, so at "
            f"rate {rate:g} little is learned: raise unet_lr up to 1e-3, or network_alpha to {rank // 4} or more"
        )


def length_for_kind(planned: Planned) -> Iterator[str]:
    """A run that is shorter or longer than what its kind takes."""
    name = planned.settings.run.kind
    if name is None:
        return
    kind, shown = KINDS[name], planned.shown
    low, high = kind.total_range
    if low <= shown <= high:
        return
    word, effect = ("few", "learns too little") if shown < low else ("many", "burns in what it has seen")
    per_step = max(1, shown // max(1, planned.steps))
    yield (
        f"{shown:,} pictures shown in the run are {word} for a {name}, which takes {low:,} to {high:,} and else "
        f"{effect}: --max_train_steps {round(kind.total / per_step)} shows {kind.total:,}"
    )


def large_batch(planned: Planned) -> Iterator[str]:
    """A batch that is large for the set takes the same pictures together again and again."""
    counts = Counter(picture.dataset for picture in planned.dataset.pictures)
    for number, spec in enumerate(planned.dataset.specs):
        if spec.batch_size > max(1, counts[number] // BATCH_SHARE):
            yield (
                f"train_batch_size {spec.batch_size} is large for {counts[number]} pictures, which meet in the same "
                "batches again and again; a quarter of them or fewer trains better"
            )


def trigger_in_front(planned: Planned) -> Iterator[str]:
    """A tag that begins all captions and that the shuffle moves, or that keeps all others in one order."""
    for number, row in enumerate(planned.dataset.folders):
        rule = row.subset.captions
        if row.subset.is_reg or rule.keep_tokens_separator or rule.keep_tokens:
            continue
        texts = [picture.caption for picture in planned.dataset.pictures if picture.subset == number]
        tag = leading_tag(texts, rule.separator)
        if tag is None:
            continue
        name = row.subset.folder.name
        if rule.shuffle:
            yield (
                f"{name}: all captions begin with '{tag}', and shuffle_caption moves it, so it is learned no better "
                "than the others: --keep_tokens 1 leaves it first"
            )
        elif all(len(text.split(rule.separator)) >= 3 for text in texts):
            yield (
                f"{name}: all captions begin with '{tag}', and their tags stand in one order, which is learned too: "
                "--shuffle_caption --keep_tokens 1 varies all but the first"
            )


def patience_beyond_the_end(planned: Planned) -> Iterator[str]:
    """A run that is measured too seldom to be stopped early."""
    run, sizes = planned.settings.run, [size * planned.processes for size in planned.dataset.batch_sizes]
    if run.early_stop is None:
        return
    batches = batches_per_epoch(planned.dataset.buckets, planned.dataset.repeats, sizes)
    epochs = -(-planned.steps // -(-batches // planned.settings.optimizer.gradient_accumulation_steps))
    if run.by_figures is not None:
        count = -(-epochs // (run.save_every_n_epochs or 1))  # the last epoch among them
    else:
        every, epochs_apart = run.validate_every_n_steps, run.validate_every_n_epochs
        count = planned.steps // every if every else 0
        count += 0 if every and not epochs_apart else epochs // (epochs_apart or 1)
    if count <= run.early_stop:
        times = "once" if count == 1 else f"{count} times"
        yield (
            f"early_stop {run.early_stop}: the run is measured {times}, so it cannot end early, and the best of these "
            "is kept: train longer, measure more often, or give less"
        )


OF_ANY: tuple[Row, ...] = (low_alpha,)  # the others are about pictures
ROWS: tuple[Row, ...] = (*OF_ANY, length_for_kind, large_batch, trigger_in_front, patience_beyond_the_end)
