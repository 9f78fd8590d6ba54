"""One checkpoint as tables: a single file by its own keys, or any by its layers' canonical names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.checkpoints.opened import said_prediction
from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import InputError, ProblemFound
from lorapipe_engine.files.folders import COMPONENTS, read_scheduler, weight_files
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.bases import describe_kind, resolve_base
from lorapipe_engine.models.families import VAE_PREFIX, Recognised, get_family, recognise
from lorapipe_engine.models.keys import (
    find_layout,
    locate,
    openclip_key,
    text_path,
    unet_to_ldm,
    vae_to_diffusers,
    vae_to_ldm,
)
from lorapipe_engine.models.predictions import V
from lorapipe_engine.networks.scaled import is_mark, scales_of
from lorapipe_merge.models.plan import EMA, average_notes, is_wanted, vae_table, weights_of
from lorapipe_merge.single.tensors import Made, Part, mark, position_ids, whole

PARTS = {"unet": "unet", "vae": "vae", "text_encoder": "te1", "text_encoder_2": "te2"}
POSITION_IDS = "position_ids"
ZERO_SNR = "ztsnr"  # the mark of a model whose noise ends without a signal
TOKENS = 77
OPENCLIP_H_LAYERS = 23  # of SD 2.x's text encoder, without the last, which no program runs
SHOWN = 5
# SD 1.x as NovelAI's file and those made from it name its text encoder.
_OLD_TEXT = re.compile(r"(cond_stage_model\.transformer\.)(embeddings|encoder|final_layer_norm)\.")
_VAE_ATTENTION = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight")

Layers = dict[tuple[str, str], Made]  # by part and canonical tensor name


@dataclass
class Model:
    """An open checkpoint. ``keys``: the tensors of a single file's result by their keys, empty for a folder;
    ``layers``: those of layers by their canonical names.
    """

    path: Path
    family: str
    folder: bool
    files: list[WeightFile]
    keys: dict[str, Made] = field(default_factory=dict)
    layers: Layers = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def prediction(self) -> str | None:
        """What the model says that it predicts (:func:`lorapipe_engine.checkpoints.opened.said_prediction`)."""
        return said_prediction(self.path, self.files)

    @property
    def zero_snr(self) -> bool:
        """Whether the model says that its noise ends without a signal."""
        if self.folder:
            return read_scheduler(self.path).get("rescale_betas_zero_snr") is True
        return any(ZERO_SNR in file.tensors for file in self.files)


def open_model(name: str, stack: ExitStack, *, ema: str, prune: bool, vae: Path | None) -> Model:
    """Read what a checkpoint holds, and what becomes of each tensor. Raises InputError for anything else."""
    path = resolve_base(name)
    if not isinstance(path, Path):
        raise InputError(f"{name}: no such file or folder (a model of the hub has to be downloaded first)")
    table = None
    if vae is not None:
        table = vae_table(stack.enter_context(open_weights(vae)))
    model = _open_folder(path, stack) if path.is_dir() else _open_file(path, stack, ema=ema, prune=prune)
    if table is not None:
        _replace_vae(model, {key: Part(source.file, source.key) for key, source in table.items()})
    return model


# -------------------------------------------------------------------------------- a single file


def _open_file(path: Path, stack: ExitStack, *, ema: str, prune: bool) -> Model:
    file = stack.enter_context(open_weights(path))
    recognised = recognise({key: info.shape for key, info in file.tensors.items()})
    if recognised.kind not in ("checkpoint", "unet") or recognised.family is None:
        raise InputError(
            f"{path}: this is {describe_kind(recognised)}, not a checkpoint of SD 1.x, SD 2.x or SDXL"
        )
    model = Model(path, recognised.family, False, [file])
    if ema == "use":
        model.notes += average_notes([file])
    scales, layout = scales_of(file.tensors), find_layout(file.tensors)
    dropped, renamed, repaired = [], 0, 0
    for key, info in file.tensors.items():
        if is_mark(key, scales, file.tensors):
            continue
        name = _OLD_TEXT.sub(r"\1text_model.\2.", key)
        places = locate(name, info.shape, recognised.family, layout)
        if (key.startswith(EMA) and (ema != "keep" or prune)) or (
            prune and not places and not is_wanted(key)
        ):
            dropped.append(key)
            continue
        renamed += name != key
        if key.endswith(f".{POSITION_IDS}"):
            model.keys[name] = position_ids(info.shape[-1] if info.shape else TOKENS)
            repaired += not _are_positions(file, key)
            continue
        source = weights_of(file, key, ema).key
        if source != key and file.tensors[source].shape != info.shape:
            raise InputError(f"{path}: the average {quote(source)[1:-1]} has another shape than its weight")
        made = whole(file, source, layer=bool(places) or key.startswith(EMA), scale=scales.get(source))
        model.keys[name] = made
        for place in places:
            part = Part(file, source, place.start, place.stop, place.transposed, scales.get(source))
            model.layers[place.part, place.tensor] = Made((part,), part.shape, True)
    _tell_repairs(model, file, dropped, renamed, repaired, len(scales))
    return model


def _are_positions(file: WeightFile, key: str) -> bool:
    info, values = file.tensors[key], file.read(key).reshape(-1).tolist()
    return info.dtype == "I64" and len(info.shape) == 2 and values == list(range(len(values)))


def _tell_repairs(
    model: Model, file: WeightFile, dropped: list[str], renamed: int, repaired: int, scaled: int
) -> None:
    if dropped:
        shown = ", ".join(quote(key)[1:-1] for key in dropped[:SHOWN])
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        model.notes.append(f"{counted(len(dropped), 'tensor', 'are')} left out: {shown}{more}")
    if renamed:
        model.notes.append(
            f"{counted(renamed, 'tensor')} of the text encoder got the names that programs look for"
        )
    if repaired:
        model.notes.append("position_ids were damaged and are 0, 1, 2, ... again")
    if scaled:
        model.notes.append(
            f"{counted(scaled, 'weight', 'were')} stored divided by a scale, which is multiplied in now"
        )
    if not any(part == "vae" for part, _ in model.layers):
        model.notes.append(f"{file.path.name} has no VAE")


# -------------------------------------------------------------------------------- a folder


def _open_folder(path: Path, stack: ExitStack) -> Model:
    files: dict[str, list[WeightFile]] = {}
    notes = []
    for folder in COMPONENTS:
        for source in weight_files(path / folder):
            try:
                files.setdefault(folder, []).append(stack.enter_context(open_weights(source)))
            except InputError as error:
                if folder != "vae":
                    raise
                why = str(error).removeprefix(f"{source}: ")
                notes.append(f"the VAE is left out: {source.relative_to(path).as_posix()} {why}")
    unet = {key: info.shape for file in files.get("unet", []) for key, info in file.tensors.items()}
    if not unet:
        raise InputError(f"{path}: is no diffusers model: it has no weights in unet/")
    recognised = recognise(unet)
    if (path / "text_encoder_2").is_dir():
        recognised = Recognised(recognised.kind, "sdxl")
    if recognised.family is None or recognised.kind != "unet":
        raise InputError(
            f"{path}: its unet is {describe_kind(recognised)}, not one of SD 1.x, SD 2.x or SDXL"
        )
    model = Model(
        path, recognised.family, True, [file for group in files.values() for file in group], notes=notes
    )
    for folder, group in files.items():
        for file in group:
            _read_component(model, PARTS[folder], file)
    return model


def _read_component(model: Model, part: str, file: WeightFile) -> None:
    scales = scales_of(file.tensors)
    levels = [
        int(match[1]) for key in file.tensors if (match := re.match(r"encoder\.down_blocks\.(\d+)", key))
    ]
    for key in file.tensors:
        if is_mark(key, scales, file.tensors) or key.endswith(POSITION_IDS):
            continue
        name = text_path(key) if part.startswith("te") else key
        if part == "vae":  # older names of its attention
            count = max(levels, default=3) + 1
            name = vae_to_diffusers(vae_to_ldm(key, count) or "", count) or key
        made = whole(file, key, layer=True, scale=scales.get(key))
        model.layers[part, name] = made
    if scales:
        model.notes.append(f"{file.path.name}: {counted(len(scales), 'scale', 'are')} multiplied in")


# -------------------------------------------------------------------------------- another VAE


def _replace_vae(model: Model, table: Mapping[str, Part]) -> None:
    """Put a VAE's tensors, by their keys in a checkpoint, in the place of the model's. Raises InputError for others."""
    levels = find_layout(table).vae_levels
    fresh: Layers = {}
    for key, part in table.items():
        path = vae_to_diffusers(key.removeprefix(VAE_PREFIX), levels)
        if path is not None:
            fresh["vae", path] = Made((part,), part.shape, True)
    old = {key for key in model.layers if key[0] == "vae"}
    if missing := old - fresh.keys():
        raise InputError(f"--vae: has no {sorted(missing)[0][1]}; it is of another architecture")
    for name in sorted(name for _, name in old):
        before, after = model.layers["vae", name].shape, fresh["vae", name].shape
        if [n for n in before if n != 1] != [n for n in after if n != 1]:
            raise InputError(f"--vae: {name} has shape {after}, the model's {before}")
    model.layers |= fresh
    model.notes = [note for note in model.notes if not note.endswith("has no VAE")]
    if not model.folder:
        for (_, name), made in fresh.items():
            place, ready = vae_in_file(name, made, levels)
            model.keys[place] = ready


def vae_in_file(name: str, made: Made, levels: int) -> tuple[str, Made]:
    """Key and form of a VAE's tensor in a single file, whose attention layers are 1x1 convolutions."""
    key = vae_to_ldm(name, levels)
    if key is None:
        raise ProblemFound(f"the VAE's {quote(name)[1:-1]} has no name in a single file; nothing was written")
    shape = made.shape
    if _VAE_ATTENTION.fullmatch(name) and len(shape) == 2:
        shape = (*shape, 1, 1)
    return VAE_PREFIX + key, Made(made.parts, shape, made.layer, made.fixed)


# -------------------------------------------------------------------------------- the result


def in_file(model: Model) -> dict[str, Made]:
    """The tensors of a single file. Raises ProblemFound for a layer that has no name there."""
    if not model.folder:
        return model.keys
    family = get_family(model.family)
    depth, levels = _sizes(model.layers)
    result: dict[str, Made] = {}
    fused: dict[str, dict[int, Made]] = {}
    for (part, name), made in model.layers.items():
        prefix = family.checkpoint_prefixes[part]
        if part == "vae":
            key, ready = vae_in_file(name, made, levels)
            result[key] = ready
        elif part == "unet":
            result[prefix + _named(unet_to_ldm(name, depth, family.plain_up_blocks), name)] = made
        elif prefix.endswith(".model."):
            _add_openclip(prefix, name, made, result, fused)
        else:
            result[prefix + name] = made
    for key, thirds in fused.items():
        result[key] = _joined(key, thirds)
    _add_spare_layers(model, result)
    if model.prediction == V.name:
        # What the scheduler says. SD 2.x has a kind of its own for it in the metadata.
        names = [*(() if family.v_architecture else V.marks), *([ZERO_SNR] if model.zero_snr else [])]
        result |= {name: mark() for name in names}
    for part in family.text_parts:
        prefix = family.checkpoint_prefixes[part]
        table = model.layers.get((part, "text_model.embeddings.position_embedding.weight"))
        if table is not None and not prefix.endswith(".model."):
            result[f"{prefix}text_model.embeddings.{POSITION_IDS}"] = position_ids(table.shape[0])
    return result


def _sizes(layers: Layers) -> tuple[int, int]:
    """Residual layers in a UNet level, and levels of the VAE."""
    first = {name.split(".")[3] for _, name in layers if name.startswith("down_blocks.0.resnets.")}
    levels = [
        int(match[1]) for _, name in layers if (match := re.match(r"encoder\.down_blocks\.(\d+)", name))
    ]
    return len(first) or 2, max(levels, default=3) + 1


def _add_openclip(
    prefix: str, name: str, made: Made, result: dict[str, Made], fused: dict[str, dict[int, Made]]
) -> None:
    place = openclip_key(name)
    key = prefix + _named(place and place.key, name)
    if place and place.third is not None:
        fused.setdefault(key, {})[place.third] = made
    elif place and place.transposed:
        parts = tuple(Part(part.file, part.key, transposed=True, scale=part.scale) for part in made.parts)
        result[key] = Made(parts, made.shape[::-1], made.layer)
    else:
        result[key] = made


def _add_spare_layers(model: Model, result: dict[str, Made]) -> None:
    """The last layers of SD 2.x's text encoder, which no program runs and some look for: copies of the one before."""
    family = get_family(model.family)
    prefix = f"{family.checkpoint_prefixes['te1']}transformer.resblocks."
    numbers = [int(key.removeprefix(prefix).split(".")[0]) for key in result if key.startswith(prefix)]
    if not family.spare_text_layers or not numbers:
        return
    last = max(numbers)
    copies = {
        key.replace(f"{prefix}{last}.", f"{prefix}{last + 1}.", 1): made
        for key, made in result.items()
        if key.startswith(f"{prefix}{last}.")
    }
    result |= copies
    model.notes.append(
        "the text encoder's last layer, which folders lack and no program runs, is a copy of another"
    )


def _named(key: str | None, name: str) -> str:
    if key is None:
        raise ProblemFound(f"{quote(name)[1:-1]} has no name in a single file; nothing was written")
    return key


def _joined(key: str, thirds: Mapping[int, Made]) -> Made:
    """q, k and v one below the other."""
    rows = [thirds[number] for number in (0, 1, 2) if number in thirds]
    if len(rows) != 3 or len({(made.shape, made.parts[0].dtype) for made in rows}) != 1:
        raise ProblemFound(
            f"{quote(key)[1:-1]}: q, k and v are not all there, or differ; nothing was written"
        )
    shape = (3 * rows[0].shape[0], *rows[0].shape[1:])
    return Made(tuple(part for made in rows for part in made.parts), shape, True)


def in_folder(model: Model) -> tuple[dict[str, dict[str, Made]], list[str]]:
    """The tensors of a folder's parts by diffusers' and transformers' names; and notes on what has none."""
    parts: dict[str, dict[str, Made]] = {}
    spare = _spare_layers(model)
    left = 0
    for (part, name), made in model.layers.items():
        folder = next(folder for folder, one in PARTS.items() if one == part)
        number = re.match(r"text_model\.encoder\.layers\.(\d+)\.", name)
        is_spare = part == "te1" and (
            (number is not None and int(number[1]) in spare)
            or (bool(spare) and name == "text_projection.weight")
        )
        if is_spare:
            left += 1
            continue
        shape = made.shape
        if part == "vae" and _VAE_ATTENTION.fullmatch(name) and shape[2:] == (1, 1):
            shape = shape[:2]
        parts.setdefault(folder, {})[name] = Made(made.parts, shape, made.layer, made.fixed)
    notes = [f"{left} tensors of the text encoder that no program runs are left out"] if left else []
    others = [
        key
        for key, made in model.keys.items()
        if not made.layer and not key.endswith(POSITION_IDS) and key not in (*V.marks, ZERO_SNR)
    ]
    others += [key for key in model.keys if key.startswith(EMA)]
    if others:
        shown = ", ".join(quote(key)[1:-1] for key in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(
            f"{counted(len(others), 'tensor', 'have')} no place in a folder and "
            f"{'is' if len(others) == 1 else 'are'} left out: {shown}{more}"
        )
    return parts, notes


def _spare_layers(model: Model) -> set[int]:
    """The numbers of the text encoder's layers that a single file has and diffusers does not (SD 2.x)."""
    count = get_family(model.family).spare_text_layers
    numbers = {
        int(match[1])
        for part, name in model.layers
        if part == "te1" and (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))
    }
    whole_already = len(numbers) in (0, OPENCLIP_H_LAYERS)
    return set() if model.folder or not count or whole_already else set(sorted(numbers)[-count:])
