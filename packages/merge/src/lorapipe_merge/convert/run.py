"""A network converted, from top to bottom: open, place each module, plan its form, write, prove."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import ConfigError, InputError, OutputError, ProblemFound, naming
from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, quote, write_planned
from lorapipe_engine.files.writing.atomic import check_output
from lorapipe_engine.models.families import get_family
from lorapipe_engine.networks.algorithms import is_plain
from lorapipe_engine.networks.describe import Network, NetworkModule, describe_network
from lorapipe_engine.networks.kohya_names import first_text_encoder, known_layer, text_encoder_alone
from lorapipe_engine.networks.layers import Layer, layer_of
from lorapipe_engine.networks.read import BESIDE, is_beside, network_path, require_understood
from lorapipe_engine.networks.underflow import Loss, lacks_digits, rounding_notes
from lorapipe_merge.convert.forms import (
    Form,
    Target,
    can_be_lora,
    finite,
    is_computed,
    is_exact,
    plan_form,
    why_not,
    write_form,
)
from lorapipe_merge.convert.metadata import adapter_config, converted_metadata, why_no_adapter
from lorapipe_merge.convert.prove import largest_difference, rounding_loss
from lorapipe_merge.convert.schemes import Scheme

SHOWN = 5
EMBEDDING = "bundle_emb."
PARTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
TOLERANCE = {"F16": 2e-3, "BF16": 1.6e-2, "F32": 1e-5}  # of a module's change, by the type that is written
ALPHA_SUFFIX = "alpha"
Kinds = dict[str, tuple[str, tuple[int, ...]]]  # types and shapes of a file's tensors


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a network is to be converted. ``one_alpha``: True, False, or None for where ranks differ."""

    precision: str = "keep"
    family: str | None = None
    one_alpha: bool | None = None
    to_lora: bool = False
    skip: bool = False
    verify: bool = False
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True)
class Report:
    """What a conversion did. ``difference``: the largest relative difference of a module's change, where it was
    proved.
    """

    source: str
    output: str
    scheme: str
    modules: int
    skipped: list[str]
    notes: list[str]
    difference: float | None

    def as_record(self) -> dict[str, object]:
        return {
            "path": self.output,
            "source": self.source,
            "to": self.scheme,
            "modules": self.modules,
            "skipped": self.skipped,
            "notes": self.notes,
            "difference": self.difference,
        }


def convert(source: Path, output: Path, scheme: Scheme, wishes: Wishes) -> Report:
    """Write the network ``source`` in a scheme. Raises LoraErrors that name the file and the module."""
    path = network_path(source)
    with open_weights(path) as file, naming(path):
        network = describe_network(file)
        require_understood(network)
        _check_alphas(network)
        family = _family_of(network, wishes.family)
        forms, skipped = plan(file, network, family, scheme, wishes)
        notes = _notes(file, network, forms, scheme)
        notes += first_text_encoder(network)
        if wishes.family is None and scheme.alphas:  # the others name the encoder alike in both
            notes += text_encoder_alone(network)
        if not wishes.dry_run:
            target = Target(scheme, family, wishes.precision)
            notes += rounding_notes(_write(file, network, forms, target, output, force=wishes.force))
        difference = None
        if wishes.verify and not wishes.dry_run:
            difference = _prove(file, forms, output, scheme)
        return Report(str(source), str(output), scheme.name, len(forms), skipped, notes, difference)


def _check_alphas(network: Network) -> None:
    for module in network.modules.values():
        if module.alpha is not None and not math.isfinite(module.alpha):
            raise InputError(
                f"{network.path}: {quote(module.name)[1:-1]}: its alpha is {module.alpha:g}, no strength"
            )


def _family_of(network: Network, asked: str | None) -> str:
    if network.foreign is not None:
        raise InputError(f"{network.path}: is for {network.title}, whose names are not known here")
    family = asked or network.family
    if asked is not None and asked not in network.possible:
        raise InputError(
            f"{network.path}: is for {network.title}; --family {asked} would give its layers another model's names"
        )
    if family is None:
        raise InputError(f"{network.path}: its names do not tell which model it is for; say it with --family")
    return get_family(family).name


# -------------------------------------------------------------------------------- the plan


def plan(
    file: WeightFile, network: Network, family: str, scheme: Scheme, wishes: Wishes
) -> tuple[list[Form], list[str]]:
    """The form of each module, and the names of what is left out as asked. Raises ProblemFound for what has no form."""
    alpha = _one_alpha(network, scheme, wishes)
    forms: list[Form] = []
    refused: list[tuple[str, str]] = [(name, "belongs to no module") for name in _strangers(network)]
    for module in network.modules.values():
        if set(module.keys) <= {ALPHA_SUFFIX}:
            refused.append((module.name, "has an alpha and no factors"))
            continue
        layer = known_layer(module.name, family)
        reason = "is no layer of " + get_family(family).title if layer is None else None
        as_lora = wishes.to_lora and can_be_lora(module, file)
        reason = reason or why_not(scheme, module, file, to_lora=as_lora)
        if reason or layer is None:
            refused.append((module.name, reason or ""))
        else:
            forms.append(plan_form(scheme, module, layer, to_lora=as_lora, alpha=alpha))
    _check_refused(network, scheme, refused, skip=wishes.skip)
    if not forms:
        raise ProblemFound(
            f"{network.path}: none of its modules can be written as {scheme.name}; nothing was written"
        )
    _check_names(network, forms, family, scheme)
    for part in PARTS if scheme.folder else ():
        if reason := why_no_adapter([form for form in forms if form.layer.part == part]):
            raise ProblemFound(f"{network.path}: {part}: {reason}; nothing was written")
    return forms, [name for name, _ in refused]


def _strangers(network: Network) -> list[str]:
    kept = [name for name in network.others if not name.endswith("position_ids")]
    return [name for name in kept if not is_beside(name)]


def _check_refused(
    network: Network, scheme: Scheme, refused: Sequence[tuple[str, str]], *, skip: bool
) -> None:
    if not refused or skip:
        return
    reasons: dict[str, list[str]] = {}
    for name, reason in refused:
        reasons.setdefault(reason, []).append(quote(name)[1:-1])
    told = "; ".join(
        f"{', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}: {reason}"
        for reason, names in reasons.items()
    )
    raise ProblemFound(
        f"{network.path}: {len(refused)} cannot be written as {scheme.name}: {told}; nothing was written. "
        "--skip leaves them out"
    )


def _check_names(network: Network, forms: Sequence[Form], family: str, scheme: Scheme) -> None:
    seen: dict[str, str] = {}
    for form in forms:
        name = f"{form.layer.part} {scheme.name_of(family, form.layer, '')}"
        if name in seen:
            raise InputError(
                f"{network.path}: names one layer twice, as {seen[name]} and as {form.module.path}"
            )
        seen[name] = form.module.path


def _one_alpha(network: Network, scheme: Scheme, wishes: Wishes) -> float | None:
    """The alpha that all modules get, or None. diffusers' loader takes the commonest one of a part for all of it."""
    if not scheme.alphas or wishes.one_alpha is False:
        return None
    plain = [module for module in network.modules.values() if is_plain(module.algorithm) and module.rank]
    alphas = Counter(module.effective_alpha for module in plain if module.effective_alpha)
    mixed = len({module.rank for module in plain}) > 1 or len(alphas) > 1
    if not alphas or not (wishes.one_alpha or (mixed and scheme.name == "kohya")):
        return None
    return alphas.most_common(1)[0][0]


def _notes(file: WeightFile, network: Network, forms: Sequence[Form], scheme: Scheme) -> list[str]:
    notes = []
    folded = [form for form in forms if form.strength != 1.0]
    if rounded := [form for form in folded if not is_exact(form.strength)]:
        notes.append(
            f"the strengths of {counted(len(rounded), 'module')} are in their factors now, which rounds these once"
        )
    elif folded:
        notes.append(f"the strengths of {counted(len(folded), 'module')} are in their factors now, exactly")
    if computed := [form for form in forms if form.to_lora]:
        notes.append(
            f"{counted(len(computed), 'module', 'were')} made into plain factors of ranks up to what they need"
        )
    for start, what in BESIDE.items():
        dropped = [name for name in network.others if name.startswith(start)]
        if dropped and not (scheme.embeddings and start == EMBEDDING):
            notes.append(
                f"left out {len(dropped)} {what}, which have no form there: {', '.join(dropped[:SHOWN])}"
            )
    if scheme.lycoris and any(_per_output(form, file) for form in forms):
        notes.append("DoRA by outputs: A1111 takes it by inputs, ComfyUI and Forge divide by another norm")
    return notes


def _per_output(form: Form, file: WeightFile) -> bool:
    key = form.module.keys.get("dora_scale")
    return key is not None and (form.module.magnitude_per_output or file.tensors[key].shape[0] != 1)


# -------------------------------------------------------------------------------- writing


def _write(
    file: WeightFile, network: Network, forms: Sequence[Form], target: Target, output: Path, *, force: bool
) -> list[Loss]:
    """Write the file or the folder; what its number type takes of the modules."""
    losses: list[Loss] = []
    if not target.scheme.folder:
        if output.is_dir():
            raise ConfigError(
                f"{output}: is a folder; name the file, as in -o {output / 'network.safetensors'}"
            )
        metadata = converted_metadata(network, forms, target.family, target.scheme)
        kinds, make = _planned(file, network, forms, target, losses)
        write_planned(output, kinds, make, metadata, force=force)
        return losses
    with new_folder(output, force=force) as folder:
        for part in dict.fromkeys(form.layer.part for form in forms):
            own = [form for form in forms if form.layer.part == part]
            place = folder / PARTS[part]
            place.mkdir()
            kinds, make = _planned(file, network, own, target, losses)
            path = place / "adapter_model.safetensors"
            write_planned(path, kinds, make, {"format": "pt"}, force=force)
            config = adapter_config(own, _ranks(own, kinds, target))
            (place / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return losses


def _planned(
    file: WeightFile, network: Network, forms: Sequence[Form], target: Target, losses: list[Loss]
) -> tuple[Kinds, Callable[[str], Encoded]]:
    """The tensors of one file: the type and the shape of each by name, and what makes each and adds to ``losses``."""
    scheme = target.scheme
    kinds: Kinds = {}
    makers: dict[str, Callable[[], Encoded]] = {}
    for form in forms:
        done = is_computed(form, scheme)
        for suffix, tensor in write_form(form, file, target, dry=True).items():
            name = scheme.name_of(target.family, form.layer, suffix)
            kinds[name] = (tensor.dtype, tensor.shape)
            makers[name] = _maker(form, suffix, file, target, tensor if done else None, losses)
    if scheme.embeddings:
        for name in network.others:
            if name.startswith(EMBEDDING):
                info = file.tensors[name]
                kinds[name] = (info.dtype, info.shape)
                makers[name] = _copier(file, name)
    return kinds, lambda name: makers[name]()


def _ranks(forms: Sequence[Form], kinds: Kinds, target: Target) -> dict[Layer, int]:
    """The ranks of the factors as they were written."""
    ranks = {}
    for form in forms:
        down = kinds.get(target.scheme.name_of(target.family, form.layer, "lora_down.weight"))
        ranks[form.layer] = down[1][0] if down else form.module.rank or 1
    return ranks


def _maker(
    form: Form,
    suffix: str,
    file: WeightFile,
    target: Target,
    done: Encoded | None,
    losses: list[Loss],
) -> Callable[[], Encoded]:
    def make() -> Encoded:
        tensor = done or write_form(form, file, target, only=suffix)[suffix]
        if not finite(tensor):
            raise InputError(
                f"{file.path}: {quote(form.module.name)[1:-1]}: NaN, infinite values, or values too large for "
                f"{tensor.dtype} in {suffix}"
            )
        losses.extend(rounding_loss(form, suffix, tensor, file, target))
        return tensor

    return make


def _copier(file: WeightFile, name: str) -> Callable[[], Encoded]:
    info = file.tensors[name]
    return lambda: Encoded(info.dtype, info.shape, file.raw(name))


@contextmanager
def new_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """A folder that becomes ``output`` when the block ends well, and leaves no trace when it does not."""
    if os.path.lexists(output):
        if force:
            raise OutputError(f"{output}: exists already; a folder is not replaced, give another name")
        raise OutputError(f"{output}: exists already; give a new folder")
    check_output(output.parent / f".{output.name}", force=True)
    work = output.with_name(f".lorapipe-{secrets.token_hex(8)}.tmp")
    work.mkdir()
    try:
        yield work
        work.rename(output)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(work)
        raise


# -------------------------------------------------------------------------------- the proof


def _too_small(file: WeightFile, module: NetworkModule) -> str:
    """What is said of a written module where fp16 has few digits for its numbers; nothing where it has all."""
    half = [key for key in module.keys.values() if file.tensors[key].dtype == "F16"]
    if not any(lacks_digits(file.read(key)) for key in half):
        return ""
    return ": its numbers are too small for fp16; --save-precision bf16 or fp32 keeps them"


def _prove(file: WeightFile, forms: Sequence[Form], output: Path, scheme: Scheme) -> float:
    """The largest relative difference of a module's change. Raises ProblemFound where it is more than rounding."""
    worst = 0.0
    parts = dict.fromkeys(form.layer.part for form in forms)
    paths = (
        [output / PARTS[part] / "adapter_model.safetensors" for part in parts] if scheme.folder else [output]
    )
    written: dict[tuple[str, str], tuple[WeightFile, NetworkModule]] = {}
    opened = [open_weights(path) for path in paths]
    try:
        for result in opened:
            for module in describe_network(result).modules.values():
                if layer := layer_of(module.name):
                    written[layer] = result, module
        for form in forms:
            if form.layer not in written:
                raise ProblemFound(
                    f"{output}: {form.layer.path} is not in it again, which is a fault of lora-convert"
                )
            result, module = written[form.layer]
            apart = largest_difference(file, form.module, result, module)
            types = [
                result.tensors[key].dtype for suffix, key in module.keys.items() if suffix != ALPHA_SUFFIX
            ]
            limit = max(TOLERANCE.get(dtype, 1e-5) for dtype in types)
            if not apart <= limit:
                why = _too_small(result, module)
                raise ProblemFound(
                    f"{output}: {form.layer.path} changes by another {apart:.3g} of itself{why}"
                )
            worst = max(worst, apart)
    finally:
        for result in opened:
            result.close()
    return worst
