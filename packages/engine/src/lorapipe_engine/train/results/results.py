"""Everything a run leaves behind: networks, samples, curves. Every file is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType

import torch

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.dtypes import encode
from lorapipe_engine.files.writing.atomic import atomic_write, check_output
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.data.examples import Dataset
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.average import NetworkAverage
from lorapipe_engine.train.network.files.network_file import write_network
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.optimizers import evaluating, rates_in_force
from lorapipe_engine.train.plan import RunPlan
from lorapipe_engine.train.results.log import NoLog, RunLog
from lorapipe_engine.train.results.numbering import (
    average_of,
    best_file,
    end_state,
    epoch_file,
    final_file,
    stale_epoch,
    stale_step,
    step_file,
)
from lorapipe_engine.train.results.outputs import sample_folder
from lorapipe_engine.train.results.record import RunRecord
from lorapipe_engine.train.results.state import SUFFIX as STATE
from lorapipe_engine.train.results.state import State, state_file
from lorapipe_engine.train.results.underflow import underflow_note
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

PRECISION_NAMES = {"float": "F32", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}


class Results:
    """Saves and records while a run goes on, each network with its ``average`` if there is one; ``files`` are the
    networks saved and still there, ``replaces`` says whether files that are there may be replaced."""

    writes = True

    def __init__(
        self,
        settings: TrainSettings,
        dataset: Dataset,
        network: Network,
        family: Family,
        objective: Objective,
        plan: RunPlan,
        prompts: Sequence[Prompt],
        optimizer: torch.optim.Optimizer,
        state: State,
        save_state: Callable[[Path], None],
        average: NetworkAverage | None = None,
    ) -> None:
        self.run = settings.run
        self.average = average
        self._save_state = save_state
        self._suffix = f".{settings.run.save_model_as}"
        self.settings = settings
        self.network = network
        self.family = family
        self.objective = objective
        self.prompts = prompts
        self.optimizer = optimizer
        self.files: list[Path] = []
        self._begun: set[Path] = set()
        self.samples: list[Path] = []
        self._told_of_underflow = False
        self.plan = plan
        # What is there when a run goes on is its own.
        self.replaces = self.run.overwrite or bool(state.step)
        self._make_record = partial(
            RunRecord,
            settings,
            dataset,
            family,
            plan,
            prediction=objective.prediction,
            began=state.began,
        )
        self.log = self._open_log(state.step)

    @cached_property
    def record_of_run(self) -> RunRecord:
        """What all files tell of the run. It needs the base's hash, so it is made with the first of them."""
        return self._make_record()

    def _open_log(self, after: int) -> RunLog:
        return RunLog(self.run, after=after)

    def record(self, step: int, loss: float, average: float, norm: float, more: Mapping[str, float]) -> None:
        """Write the numbers of a step; ``more`` by their TensorBoard tags."""
        values = {"loss/current": loss, "loss/average": average, "grad_norm": norm, **more}
        self.log.scalars(step, values | rates_in_force(self.optimizer))

    def after_step(self, step: int, epoch: int, *, last: bool) -> None:
        """Save and sample where the step asks for it."""
        run, every = self.run, self.run.save_every_n_steps
        if every and step % every == 0 and not last:
            self._save(self._of_step(step), step, epoch)
            stale = partial(stale_step, step, every)
            self._keep_last(self._of_step, step, stale, run.save_last_n_steps, run.save_last_n_steps_state)
        between = None if run.sample_every_n_epochs else run.sample_every_n_steps
        if between and step % between == 0:
            self._sample(step, f"{step:06d}")

    def after_epoch(self, step: int, epoch: int, average: float, *, last: bool) -> None:
        """Save and sample where the epoch asks for it; ``average`` is its mean loss."""
        run, every = self.run, self.run.save_every_n_epochs
        self.log.epoch(epoch, {"loss/epoch_average": average})
        if every and epoch % every == 0 and not last:
            self._save(self._of_epoch(epoch), step, epoch)
            stale = partial(stale_epoch, epoch, every)
            self._keep_last(
                self._of_epoch, epoch, stale, run.save_last_n_epochs, run.save_last_n_epochs_state
            )
        if run.sample_every_n_epochs and epoch % run.sample_every_n_epochs == 0:
            self._sample(step, f"e{epoch:06d}")

    def sample_at_first(self) -> None:
        """Draw the samples of the untrained network, if asked for."""
        if self.run.sample_at_first:
            self._sample(0, "e000000")

    def save_final(self, step: int, epoch: int) -> None:
        """The result of the whole run."""
        self._save(final_file(self.run.output_dir, self.run.output_name, self._suffix), step, epoch)
        if self.run.save_state or self.run.save_state_on_train_end:
            self._save_state(end_state(self.run.output_dir, self.run.output_name))

    @property
    def best_file(self) -> Path:
        """Where the best network so far is kept."""
        return best_file(self.run.output_dir, self.run.output_name, self._suffix)

    def save_best(self, step: int, epoch: int) -> None:
        """The best network so far, in the place of the one before it."""
        self._save(self.best_file, step, epoch)

    def keep_best_of(self, epoch: int) -> bool:
        """Have the network that was saved after an epoch as the best so far; whether it is there."""
        source, target = self._of_epoch(epoch), self.best_file
        pairs = [(source, target)]
        if self.average is not None:
            pairs.insert(0, (average_of(source), average_of(target)))
        if not all(one.is_file() for one, _ in pairs):
            return False
        for one, other in pairs:
            with (
                one.open("rb") as saved,
                atomic_write(other, force=self.replaces or other in self.files) as file,
            ):
                shutil.copyfileobj(saved, file)
            if other not in self.files:
                self.files.append(other)
        return True

    def write_state(self) -> None:
        """Write the state now, for an end that is not the run's own fault."""
        self._save_state(state_file(self.run))

    def save_interrupted(self, step: int, epoch: int) -> None:
        """What an interrupted run has learned so far, unless that was nothing."""
        path = self._of_step(step)
        if step and path not in self.files:
            self._save(path, step, epoch)

    def listed(self) -> str:
        """The networks saved so far, in words."""
        return ", ".join(str(path) for path in self.files) or "nothing yet"

    def _save(self, path: Path, step: int, epoch: int) -> None:
        # The average first, so that the last file of a run is the network itself.
        if self.average is not None:
            with self.average.in_place():
                self._write(average_of(path), step, epoch, is_average=True)
        with evaluating(self.optimizer):
            self._write(path, step, epoch)

    def _write(self, path: Path, step: int, epoch: int, *, is_average: bool = False) -> None:
        kind = PRECISION_NAMES[self.settings.run.save_precision or self.record_of_run.default_precision]
        values = {key: tensor.numpy() for key, tensor in self.network.file_tensors().items()}
        tensors = {
            # A rank-sized scale such as 11.1 would not survive half precision.
            key: encode(array, "F32" if key.endswith(".alpha") else kind)
            for key, array in values.items()
        }
        if kind == "F16" and not self._told_of_underflow and (note := underflow_note(values.values())):
            self._told_of_underflow = True
            say(f"note: {note}")
        metadata = self.record_of_run.metadata(tensors, step=step, epoch=epoch, is_average=is_average)
        is_own = self.replaces or path in self.files or path in self._begun
        if not is_own:
            check_output(path, force=False)
            # A signal may end this when the file has its name already; it is the run's own then, to write again.
            self._begun.add(path)
        try:
            write_network(path, tensors, metadata, force=is_own)
        except OutputError:
            if not is_own:
                self._begun.discard(path)
            raise
        if path not in self.files:
            self.files.append(path)

    def _of_step(self, step: int) -> Path:
        return step_file(self.run.output_dir, self.run.output_name, step, self._suffix)

    def _of_epoch(self, epoch: int) -> Path:
        return epoch_file(self.run.output_dir, self.run.output_name, epoch, self._suffix)

    def _keep_last(
        self,
        named: Callable[[int], Path],
        number: int,
        stale: Callable[[int | None], int | None],
        networks: int | None,
        states: int | None,
    ) -> None:
        """Remove the network that is no longer among the last ``networks``. With --save_state save the state of
        ``number`` too, and remove the one that is no longer among the last ``states``, or else ``networks``.
        """
        self._prune(named, stale(networks), "")
        if self.run.save_state:
            self._save_state(named(number).with_suffix(STATE))
            self._prune(named, stale(states or networks), STATE)

    def _prune(self, named: Callable[[int], Path], number: int | None, suffix: str) -> None:
        """Remove an older network, or with a suffix its state."""
        if number is None:
            return
        path = named(number).with_suffix(suffix) if suffix else named(number)
        for gone in (path,) if suffix or self.average is None else (path, average_of(path)):
            gone.unlink(missing_ok=True)
            if gone in self.files:
                self.files.remove(gone)

    def _sample(self, step: int, stamp: str) -> None:
        if not self.prompts:
            return
        folder = sample_folder(self.run)
        with self.drawing():
            pictures = draw(
                self.family,
                self.objective,
                self.prompts,
                sampler=self.run.sample_sampler,
                seed=self.run.seed,
            )
            for index, picture in enumerate(pictures):
                path = folder / f"{self.run.output_name}_{stamp}_{index:02d}.png"
                with atomic_write(path, force=self.replaces, inside=self.run.output_dir) as file:
                    picture.save(file, "PNG")
                self.samples.append(path)
                self.log.picture(step, f"sample/{index:02d}", picture)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Have the network as pictures are drawn with it: at rest, an optimizer's or the run's average in its place."""
        self.network.train(False)
        drawn = self.average.in_place() if self.average and self.run.sample_ema else nullcontext()
        with evaluating(self.optimizer), drawn:
            yield
        self.network.train()
        if (
            self.settings.data.cache_text_encoder_outputs
            or self.settings.data.cache_text_encoder_outputs_to_disk
        ):
            self.family.text.move_to_cpu()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.__exit__(kind, error, trace)


class Onlooker(Results):
    """What every process but the first has in place of :class:`Results`: nothing is written or drawn, but at the same
    moments, so that an optimizer that averages puts its weights to and fro alike everywhere.
    """

    writes = False

    def _open_log(self, after: int) -> RunLog:  # noqa: ARG002
        return NoLog()

    def _save(self, path: Path, step: int, epoch: int) -> None:  # noqa: ARG002
        with evaluating(self.optimizer):
            pass

    def keep_best_of(self, epoch: int) -> bool:  # noqa: ARG002
        return True

    def write_state(self) -> None:
        pass

    def _prune(self, named: Callable[[int], Path], number: int | None, suffix: str) -> None:
        pass

    def _sample(self, step: int, stamp: str) -> None:  # noqa: ARG002
        if self.prompts:
            with evaluating(self.optimizer):
                pass
