"""One checkpoint in, the same out: cast, pruned, repaired, as a single file or as a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.tensorfile import check_weights_output, write_planned
from lorapipe_engine.files.writing.dates import date_of_inputs
from lorapipe_merge.convert.run import new_folder
from lorapipe_merge.recipe import RECIPE_KEY, Source, merged_metadata, recipe
from lorapipe_merge.single.configs import copy_configs, write_configs
from lorapipe_merge.single.model import Model, in_file, in_folder, open_model
from lorapipe_merge.single.tensors import Losses, Made, make

DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How the result is to be. ``precision``: "keep", "fp16", "bf16" or "fp32"; ``configs``: a folder like it."""

    precision: str = "keep"
    ema: str = "keep"
    prune: bool = False
    vae: Path | None = None
    configs: Path | None = None
    metadata: bool = True
    allow_nonfinite: bool = False
    dry_run: bool = False
    force: bool = False


@dataclass
class Turned:
    """What was done: ``tensors`` of the result, ``cast`` of them in another type, and notes."""

    source: str
    output: Path
    tensors: int
    cast: int
    notes: list[str] = field(default_factory=list)


def turn(name: str, output: Path, wishes: Wishes) -> Turned:
    """Write the checkpoint ``name`` as ``output``: a single file if it is called .safetensors, else a folder.

    Raises LoraErrors; nothing that stood there before is changed unless all went well.
    """
    to_file = output.suffix == ".safetensors"
    _check_output(output, to_file, wishes)
    with ExitStack() as stack:
        model = open_model(name, stack, ema=wishes.ema, prune=wishes.prune, vae=wishes.vae)
        if output.exists() and output.samefile(model.path) and not wishes.force:
            raise ConfigError(f"{output}: is the model itself; give --force to replace it, or another -o")
        if model.folder and wishes.ema == "use":
            raise ConfigError("--ema use: a folder has no averages beside its weights")
        losses = Losses()
        if to_file:
            tables = {"": in_file(model)}
        else:
            tables, notes = in_folder(model)
            model.notes += notes
        if not wishes.dry_run:
            if to_file:
                _write(
                    output, tables[""], _metadata(model, output, wishes), losses, wishes, force=wishes.force
                )
            else:
                _write_folder(model, output, tables, losses, wishes)
    return _report(name, output, model, tables, losses, wishes)


def _check_output(output: Path, to_file: bool, wishes: Wishes) -> None:
    if to_file and output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the file, as in -o {output / 'model.safetensors'}")
    if to_file and wishes.configs is not None:
        raise ConfigError("--configs has a use only for a folder as result: -o FOLDER")
    if to_file and not wishes.dry_run:
        check_weights_output(output, force=wishes.force)
    if not to_file and output.suffix:
        check_weights_output(output, force=True)
        raise ConfigError(f"{output}: a single file is called .safetensors, a folder has no ending")


def _metadata(model: Model, output: Path, wishes: Wishes) -> dict[str, str]:
    """The metadata of a single file. A merge's recipe stays; else the recipe says what was done here."""
    old = dict(model.files[0].metadata)
    if not wishes.metadata:
        return old
    paths = [file.path for file in model.files]
    text = old.get(RECIPE_KEY) if model.folder else None
    if text is None:
        text = recipe(
            "single",
            {"models": [Source(path, known_sha256(path)) for path in paths]},
            precision=wishes.precision,
            prune=wishes.prune or None,
            ema=wishes.ema,
            vae=wishes.vae and Source(wishes.vae, known_sha256(wishes.vae)).as_record(),
        )
    return merged_metadata(
        old,
        text,
        family=model.family,
        title=output.stem,
        merged_from=[model.path.name],
        date=date_of_inputs(paths),
        prediction=model.prediction,
    )


def _write(
    path: Path,
    table: Mapping[str, Made],
    metadata: Mapping[str, str],
    losses: Losses,
    wishes: Wishes,
    *,
    force: bool,
) -> None:
    precision = DTYPES.get(wishes.precision)
    kinds = {key: (made.dtype(precision), made.shape) for key, made in table.items()}
    write_planned(
        path,
        kinds,
        lambda key: make(key, table[key], kinds[key][0], losses, allow=wishes.allow_nonfinite),
        metadata,
        force=force,
    )


def _write_folder(
    model: Model, output: Path, tables: Mapping[str, Mapping[str, Made]], losses: Losses, wishes: Wishes
) -> None:
    shapes = {folder: {key: made.shape for key, made in table.items()} for folder, table in tables.items()}
    missing = {"unet", "text_encoder"} - tables.keys()
    if missing:
        raise InputError(
            f"{model.path}: has no {' and no '.join(sorted(missing))}, so it makes no whole folder"
        )
    with new_folder(output, force=wishes.force) as folder:
        configs = wishes.configs or (model.path if model.folder else None)
        if configs is not None:
            model.notes += copy_configs(model, configs, folder, shapes)
        else:
            model.notes += write_configs(model, folder, shapes)
        for name, table in tables.items():
            (folder / name).mkdir(exist_ok=True)
            path = folder / name / f"{_NAMES.get(name, 'model')}.safetensors"
            _write(path, table, {"format": "pt"}, losses, wishes, force=False)


def _report(
    name: str,
    output: Path,
    model: Model,
    tables: Mapping[str, Mapping[str, Made]],
    losses: Losses,
    wishes: Wishes,
) -> Turned:
    precision = DTYPES.get(wishes.precision)
    every = [made for table in tables.values() for made in table.values()]
    cast = sum(made.fixed is None and made.dtype(precision) != made.parts[0].dtype for made in every)
    notes = list(model.notes)
    if losses.vanished:
        notes.append(
            f"of {counted(len(losses.tensors), 'tensor')} {counted(losses.vanished, 'number', 'are')} too small for "
            f"{'its' if losses.vanished == 1 else 'their'} type: now 0"
        )
    if not cast and not notes and model.folder is (output.suffix != ".safetensors"):
        notes.append("nothing was asked for that changes it: the result is a copy")
    return Turned(name, output, len(every), cast, notes)
