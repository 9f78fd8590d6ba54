"""Going on where a run was stopped: its state in one file, written while it runs, taken up by the same command.

A state is a safetensors file (no pickle): the network in float32, every tensor of the optimizer, and as JSON in the
metadata where the run is, the optimizer's plain values and what the run was asked for. Data order and random draws need
no state, being functions of seed, epoch and step; so a run that goes on gives bit for bit what it would have given.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine import __version__
from lorapipe_engine.command.documents import parse_json
from lorapipe_engine.errors import ConfigError, InputError, LoraError
from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.tensorfile import TensorFile, open_tensors, write_tensors
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.settings import RunSettings, TrainSettings
from lorapipe_engine.settings.preserve import read_preserve
from lorapipe_engine.train.base.torchfile import decoded, encoded
from lorapipe_engine.train.data.examples import Dataset
from lorapipe_engine.train.network.average import NetworkAverage

STATE_KEY = "lorapipe.state"
SUFFIX = ".state"
_NETWORK, _OPTIMIZER, _AVERAGE = "network.", "optimizer.", "average."
# Options that may differ: they say where results go and how fast they come, not what they are.
_FREE: Mapping[str, frozenset[str]] = {
    "model": frozenset({"device", "step_capture", "vram", "ignore_memory"}),
    "data": frozenset(
        {
            *("train_data_dir", "reg_data_dir", "dataset_config", "slider"),
            *("cache_latents_to_disk", "cache_dir", "vae_batch_size"),
        }
    ),
}
_RUN_NAMES = ("seed", "max_train_epochs", "max_train_steps")


# What is known of a run before its base is read, whose defaults fill what is not given.
_KNOWN_EARLY = ("pictures", "run.", "optimizer.", "network.")
# What may differ where a state is given with --resume: the length, the rates and their curve.
_FREE_LATER = re.compile(
    r"run\.max_train_(epochs|steps)|optimizer\.(learning_rate|unet_lr|text_encoder_lr|lr_\w+|max_grad_norm)$"
)


@dataclass(frozen=True)
class Kept:
    """What a state holds besides where the run is."""

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: NetworkAverage | None = None


@dataclass
class State:
    """Where the run is: finished optimizer steps, finished epochs, mean loss of late; when it began (seconds);
    the losses of the first steps and of late. Where the run is to stop early: the best figure with its step and epoch,
    the step that was measured last, how many measurements were no better since, and what was measured (``loss`` or a
    figure of lora-grid). Sums of losses by timestep since they were recorded last."""

    step: int = 0
    epoch: int = 0
    loss: float = 0.0
    began: float = 0.0
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    measured: int = -1
    worse: int = 0
    by: str = ""
    times: list[list[float]] = field(default_factory=list)


def state_file(run: RunSettings) -> Path:
    """Where the state of a run stands while it is not finished."""
    return run.output_dir / f"{run.output_name}{SUFFIX}"


def purpose(settings: TrainSettings, dataset: Dataset, processes: int = 1) -> dict[str, Any]:
    """What decides the result of a run: its options, how many processes share a batch, and a hash of pictures, captions
    and repeats."""
    options = {
        f"{part}.{name}": value
        for part, values in asdict(settings).items()
        if part != "run"
        for name, value in values.items()
        if name not in _FREE.get(part, frozenset())
    }
    options |= {f"run.{name}": getattr(settings.run, name) for name in _RUN_NAMES}
    options["run.processes"] = processes
    held = read_preserve(settings.loss.preserve)
    if held is not None and held.file is not None:
        options["loss.captions of preserve"] = sha256(held.file.read_bytes()).hexdigest()[:16]
    rows = [
        (row.path.name, row.caption, row.repeats, row.size, row.path.stat().st_size, row.dataset, row.subset)
        for row in dataset.pictures
    ]
    # How each folder is trained, whatever its name is and wherever that was said.
    rules = [{**asdict(row.subset), "folder": ""} for row in dataset.folders]
    specs = [(asdict(spec.buckets), spec.batch_size) for spec in dataset.specs]
    options["pictures"] = sha256(json.dumps(rows).encode()).hexdigest()
    options["subsets"] = sha256(json.dumps([rules, specs], default=str).encode()).hexdigest()
    return dict(json.loads(json.dumps(options, default=str)))


# -------------------------------------------------------------------------------- writing


class StateKeeper:
    """Writes the state every ``interval`` seconds (0: at every call), and removes it when the run is done."""

    def __init__(self, path: Path, interval: float, save: Callable[[Path], None]) -> None:
        self.path = path
        self.save = save
        self._interval = interval
        self._last = time.monotonic()

    def after_step(self, good: bool = True) -> None:
        """Write the state if it is time to and it is ``good``."""
        if good and time.monotonic() - self._last >= self._interval:
            self.write()

    def write(self) -> None:
        """Write the state now."""
        self.save(self.path)
        self._last = time.monotonic()

    def rescue(self) -> str:
        """Write the state where there is room, because results could not be written; what to do then, in words."""
        with suppress(LoraError, OSError):
            self.save(self.path)
            return f"what was learned is in {self.path}: make room, then the same command goes on"
        with suppress(LoraError, OSError):
            # A folder of its own, for this user only: others may write to the temporary folder too.
            folder = Path(mkdtemp(prefix="lorapipe-"))
            path = folder / self.path.name
            try:
                self.save(path)
            except BaseException:
                folder.rmdir()
                raise
            # A state is one run's, and a command may be of several.
            return f"what was learned is in {path}: make room, then this run by itself with --resume {path} goes on"
        kept = f"; an older state is in {self.path}" if self.path.exists() else ""
        return f"and there is no room for a state either{kept}"

    def done(self) -> None:
        """The run has its result; the state is not needed any more."""
        self.path.unlink(missing_ok=True)


def save_state(path: Path, state: State, kept: Kept, asked: Mapping[str, Any]) -> None:
    """Write a state, whole or not at all. Raises OutputError."""
    tensors: dict[str, Encoded] = {}
    for name, tensor in kept.network.state().items():
        tensors[_NETWORK + name] = encoded(tensor)
    if kept.average is not None:
        tensors |= {_AVERAGE + part: encoded(values) for part, values in kept.average.state().items()}
    described = {
        "version": __version__,
        "state": asdict(state),
        "asked": dict(asked),
        "scaler": kept.scaler.state_dict(),
        "optimizer": _describe(kept.optimizer.state_dict(), tensors),
    }
    write_tensors(path, tensors, {STATE_KEY: json.dumps(described)}, force=True)


def _describe(value: Any, tensors: dict[str, Encoded]) -> Any:
    """A nest of plain values as JSON has it; tensors go into ``tensors`` and leave their name."""
    if isinstance(value, Tensor):
        name = f"{_OPTIMIZER}{sum(key.startswith(_OPTIMIZER) for key in tensors)}"
        tensors[name] = encoded(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        # Keys of optimizer states are numbers, of which JSON would make texts.
        return {"table": [[key, _describe(row, tensors)] for key, row in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_describe(row, tensors) for row in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no state can hold a {type(value).__name__}")


# -------------------------------------------------------------------------------- reading


def take_up(
    path: Path, asked: Mapping[str, Any], kept: Kept, *, another_length: bool = False
) -> tuple[State, list[str]]:
    """Put the state in ``path`` into network and optimizer; where the run is, and what is asked for otherwise.

    ``another_length``: the run may be longer, and its rates and their curve others. Raises InputError for a file that
    is no state, ConfigError for the state of a run that was asked for something else.
    """
    if path.is_dir():
        raise InputError(
            f"resume: {path} is a folder, as sd-scripts writes states; ours are files, such as NAME.state"
        )
    with open_tensors(path) as file:
        described = _described(path, file)
        changed = check_same(path, described["asked"], asked, another_length=another_length)
        own = kept.network.state()
        if missing := [name for name in own if _NETWORK + name not in file.tensors]:
            raise ConfigError(f"{path}: its network has no {missing[0]}; go on with the same options")
        try:
            state = _state(described["state"])
            kept.network.load_state({name: decoded(file, _NETWORK + name) for name in own})
            if kept.average is not None:
                averages = [name for name in file.tensors if name.startswith(_AVERAGE)]
                kept.average.load_state(
                    {name.removeprefix(_AVERAGE): decoded(file, name) for name in averages}
                )
            _take_up_optimizer(kept.optimizer, _restore(described["optimizer"], file))
            if described["scaler"]:
                kept.scaler.load_state_dict(described["scaler"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise InputError(
                f"{path}: is damaged ({type(error).__name__}); give --overwrite to start anew"
            ) from error
    return state, changed


def _take_up_optimizer(optimizer: torch.optim.Optimizer, kept: Any) -> None:
    """Put what was kept into an optimizer, but for the rates that are asked for now. Raises ConfigError where it has
    other parts.

    Rates that are tensors stay where they are. torch would put the kept ones in their place, on the CPU, of which a
    captured step reads the value once, when it is captured: the rate would stay what it was then.
    """
    own = [{key: row[key] for key in ("lr", "base_rate")} for row in optimizer.param_groups]
    before, now = ([row["name"] for row in rows] for rows in (kept["param_groups"], optimizer.param_groups))
    if before != now:
        raise ConfigError(
            f"resume: the state trains {', '.join(before)}, and this run {', '.join(now)}; a rate of 0 leaves a part "
            "out, any other keeps it"
        )
    optimizer.load_state_dict(kept)
    for row, asked in zip(optimizer.param_groups, own, strict=True):
        if isinstance(asked["lr"], Tensor):
            asked["lr"].fill_(float(row["lr"]))
            row["lr"] = asked["lr"]
        row["base_rate"] = asked["base_rate"]


def _state(row: Any) -> State:
    """Where a run was. Raises TypeError, ValueError for what no run has written."""
    state = State(**row)
    by_time = [number for sums in state.times for number in sums]
    early = [*state.best, state.measured, state.worse]
    numbers = [state.loss, state.began, *state.first, *state.recent, *early, *by_time]
    if len(state.best) not in (0, 3):
        raise ValueError("no best network")
    if type(state.step) is not int or type(state.epoch) is not int or not 0 <= state.epoch <= state.step:
        raise ValueError("no step and epoch")
    if not all(isinstance(number, int | float) for number in numbers) or not isinstance(state.by, str):
        raise TypeError("no losses")
    return state


def is_of(path: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a file is the state of a run that was asked for the same."""
    with suppress(LoraError), open_tensors(path) as file:
        return bool(_described(path, file)["asked"] == asked)
    return False


def check_begun(settings: TrainSettings, asked: Mapping[str, Any]) -> None:
    """Raise ConfigError where the run would go on from a state of another one, as far as that is known before the base
    is read; InputError for a state that cannot be read. ``asked``: its :func:`purpose` then.
    """
    path = state_file(settings.run)
    if settings.run.overwrite or settings.run.resume is not None or not path.exists():
        return
    with open_tensors(path) as file:
        before = _described(path, file)["asked"]
    parts = [part for part in _KNOWN_EARLY if part != "network." or not settings.network.dim_from_weights]
    now = {
        name: value for name, value in asked.items() if value is not None and name.startswith(tuple(parts))
    }
    check_same(path, {name: before.get(name) for name in now}, now)


def check_same(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, another_length: bool = False
) -> list[str]:
    """Raise ConfigError, naming what differs, unless both ask for the same; what may differ and does, in words."""
    hint = "go on with the same options, or give --overwrite to start anew"
    if before.get("pictures") != now.get("pictures"):
        raise ConfigError(f"{path}: this run began with other pictures, captions or repeats; {hint}")
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = {name: f"{name.partition('.')[2]} was {before.get(name)}, is {now.get(name)}" for name in names}
    changed = [told[name] for name in names if not (another_length and _FREE_LATER.match(name))]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(f"{path}: this run began otherwise ({', '.join(changed[:3])}{more}); {hint}")
    return list(told.values())


def _described(path: Path, file: TensorFile) -> dict[str, Any]:
    try:
        record = parse_json(file.metadata[STATE_KEY], str(path))
        names = {"version", "state", "asked", "scaler", "optimizer"}
    except (KeyError, ConfigError):
        record, names = None, set()
    if not isinstance(record, dict) or set(record) != names or not isinstance(record["asked"], dict):
        raise InputError(f"{path}: is not the state of a training run")
    if record["version"] != __version__:
        raise InputError(
            f"{path}: was written by version {record['version']}, this is {__version__}; "
            "give --overwrite to start anew"
        )
    return record


def _restore(value: Any, file: TensorFile) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, rows),) = value.items()
    if kind == "tensor":
        return decoded(file, rows)
    if kind == "table":
        return {key: _restore(row, file) for key, row in rows}
    restored = [_restore(row, file) for row in rows]
    return tuple(restored) if kind == "tuple" else restored
