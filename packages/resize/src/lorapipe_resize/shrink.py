"""Resizing one network: spectra of all modules, their new ranks, and the tensors of the smaller file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.text import counted, printable
from lorapipe_engine.delta import known_rule, rules
from lorapipe_engine.delta.spectra import ModuleSpectrum, kernel_of, module_spectrum, spectral_rule
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES, Encoded, decode, encode
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.factors import Balance, Factors, Spectrum, dense_spectrum, rounding_norm
from lorapipe_engine.networks.layers import kernel_in
from lorapipe_engine.networks.ranks import Candidate, RankRule, is_dead, ranks_for_size
from lorapipe_engine.networks.read import magnitude_shape, read_module, scale_of
from lorapipe_engine.networks.underflow import Underflow, check_kept, underflow_of
from lorapipe_resize.report import DORA, ModuleReport

Precision = Literal["keep", "fp16", "bf16", "fp32"]
DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
ITEM_BYTES: Mapping[str, int] = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
ALPHA_BYTES = 4

# Tensors that ride along with a module whose factors are replaced, where readers know them on a plain LoRA.
COMPANIONS = ("dora_scale", "diff_b")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to resize. ``target_bytes`` bounds the bytes of all tensors and takes the place of the rule's
    method.

    ``decompose`` is the SVD for modules that need a dense one. ``alpha``: what all modules get, the rest of their
    strength in the factors, because diffusers' loader gives every module of a part the commonest one; None: each
    keeps its strength in its own. ``kohya``: names of modules in kohya's scheme, by theirs in the file; None keeps
    these. ``family``: whose layers tell the shapes of factors around attention, see
    :func:`~lorapipe_engine.networks.layers.kernel_in`.
    """

    rule: RankRule
    precision: Precision = "keep"
    balance: Balance = "sqrt"
    target_bytes: int | None = None
    drop_zero: bool = False
    allow_nonfinite: bool = False
    decompose: Callable[[NDArray[Any]], Spectrum] = dense_spectrum
    alpha: float | None = None
    kohya: Mapping[str, str] | None = None
    family: str | None = None


@dataclass(frozen=True)
class Shrunk:
    """Tensors of the new file, and what was done. ``precision`` names the types of the new factors."""

    tensors: dict[str, Encoded]
    modules: list[ModuleReport]
    notes: list[str]
    precision: str


@dataclass(frozen=True)
class _Piece:
    """One module's share of the result; ``bad`` are keys of tensors with NaN or infinite values."""

    tensors: dict[str, Encoded]
    report: ModuleReport
    bad: tuple[str, ...] = ()


def shrink(
    file: WeightFile, modules: Sequence[NetworkModule], others: Iterable[str], settings: Settings
) -> Shrunk:
    """Resize every module that has a spectrum of its own; copy the rest, and the keys in ``others``, bit for
    bit.

    With ``target_bytes`` the ranks are those that lose least within that many bytes. Raises InputError for
    tensors that do not fit each other and, unless allowed, for values that are not finite; ConfigError for a
    size that cannot be reached.
    """
    ranks: list[int | None] = [None] * len(modules)
    if settings.target_bytes is not None:
        copied = sum(file.tensors[key].size for key in others)
        ranks = _ranks_within(file, modules, settings, settings.target_bytes - copied)
    jobs = list(zip(modules, ranks, strict=True))
    pieces = map_in_threads(lambda job: _shrink_module(file, job[0], job[1], settings), jobs, "resizing")
    _check_finite([key for piece in pieces for key in piece.bad], settings)
    tensors = {key: tensor for piece in pieces for key, tensor in piece.tensors.items()}
    tensors.update((key, _copy(file, key)) for key in others)
    reports = [piece.report for piece in pieces]
    return Shrunk(tensors, reports, _notes(reports), _precision(tensors))


def _precision(tensors: Mapping[str, Encoded]) -> str:
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtypes = {tensor.dtype for key, tensor in tensors.items() if key.endswith(".weight")}
    return " and ".join(sorted(names.get(dtype, dtype.lower()) for dtype in dtypes))


def _check_finite(bad: Sequence[str], settings: Settings) -> None:
    if bad and not settings.allow_nonfinite:
        shown = ", ".join(printable(key) for key in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InputError(f"NaN or infinite values in {shown}{more}; --allow-nonfinite copies such modules")


# -------------------------------------------------------------------------------- one module


def _shrink_module(file: WeightFile, module: NetworkModule, rank: int | None, settings: Settings) -> _Piece:
    """The new tensors of a module; ``rank`` where it is decided already."""
    if module.keys.keys() == {"alpha"}:
        return _copied(file, module, settings, "without factors, which change nothing")
    check_whole(file, module)
    if spectral_rule(module.name, _shapes(file, module)) is None:
        return _copied(file, module, settings, "which have no low-rank form of their own")
    decomposed, bad = _decompose(file, module, settings, vectors=rank or settings.rule.largest)
    if decomposed is None:
        return replace(_copied(file, module, settings, "which have NaN or infinite values"), bad=bad)
    singular, conv = decomposed.spectrum.singular, bool(decomposed.kernel)
    new_rank = rank or settings.rule.choose(singular, limit=decomposed.limit, conv=conv)
    report = _describe(module, decomposed, new_rank, settings)
    if settings.drop_zero and report.dead:
        return _Piece({}, replace(report, new_rank=None, note="dropped, its change is zero"))
    tensors, cast, underflow = _new_tensors(file, module, decomposed, new_rank, settings)
    wanted = None if rank or report.dead else settings.rule.wanted(singular)
    capped = wanted is not None and settings.rule.bound(conv=conv) < min(wanted, decomposed.limit)
    return _Piece(tensors, replace(report, cast=cast, underflow=underflow, capped=capped))


def _decompose(
    file: WeightFile, module: NetworkModule, settings: Settings, vectors: int
) -> tuple[ModuleSpectrum | None, tuple[str, ...]]:
    """The module's spectrum, or None and the keys of tensors that are not finite."""
    arrays = {
        suffix: array for suffix, array in read_module(file, module).items() if suffix not in COMPANIONS
    }
    bad = tuple(
        module.keys[suffix]
        for suffix, array in arrays.items()
        if suffix in module.keys and not np.isfinite(array).all()
    )
    bad += _not_finite(file, (module.keys[suffix] for suffix in COMPANIONS if suffix in module.keys))
    if bad:
        return None, bad
    try:
        decomposed = module_spectrum(module.name, arrays, vectors=vectors, decompose=settings.decompose)
    except np.linalg.LinAlgError as error:
        raise InputError(f"module {module.name}: its singular values cannot be found ({error})") from error
    if module.scale is not None:  # the new file has no configuration, so its factors hold the strength
        decomposed = replace(decomposed, spectrum=decomposed.spectrum.scaled(decomposed.scale), scale=1.0)
    kernel = decomposed.kernel
    if settings.kohya is not None and not kernel:  # flattened, which few readers of these names take
        kernel = kernel_of(module.name, decomposed.spectrum.down.shape[1])
    return replace(decomposed, kernel=kernel_in(settings.family, module.name, kernel)), ()


def _shapes(file: WeightFile, module: NetworkModule) -> dict[str, tuple[int, ...]]:
    return {suffix: file.tensors[key].shape for suffix, key in module.keys.items()}


def _alpha_of(decomposed: ModuleSpectrum, rank: int, settings: Settings) -> float:
    return decomposed.scale * rank if settings.alpha is None else settings.alpha


def _describe(
    module: NetworkModule, decomposed: ModuleSpectrum, rank: int, settings: Settings
) -> ModuleReport:
    singular = decomposed.spectrum.singular
    top, norm, total = (
        float(singular[0]) if singular.size else 0.0,
        decomposed.spectrum.norm(),
        float(singular.sum()),
    )
    lost = decomposed.spectrum.dropped(rank)
    return ModuleReport(
        name=module.name,
        algorithm=DORA if "dora_scale" in module.keys else decomposed.algorithm,
        rank=decomposed.rank,
        new_rank=rank,
        alpha=_alpha_of(decomposed, rank, settings),
        kernel=decomposed.kernel,
        top=top,
        next=float(singular[rank]) / top if top and rank < singular.size else 0.0,
        kept_fro=max(0.0, 1.0 - (lost / norm) ** 2) ** 0.5 if norm else 1.0,
        kept_sum=float(singular[:rank].sum()) / total if total else 1.0,
        norm=abs(decomposed.scale) * norm,
        truncation=lost / norm if norm else 0.0,
        dead=is_dead(singular) or not decomposed.scale,
    )


def _new_tensors(
    file: WeightFile, module: NetworkModule, decomposed: ModuleSpectrum, rank: int, settings: Settings
) -> tuple[dict[str, Encoded], float, Underflow]:
    """The module's tensors at its new rank, keyed as in the file, the relative error of the cast, and what it makes
    zeros of."""
    stored = settings.kohya is not None or _stores_alpha(module)
    spectrum = decomposed.spectrum
    if stored and settings.alpha is not None and decomposed.scale * rank != settings.alpha:
        spectrum = spectrum.scaled(decomposed.scale * rank / settings.alpha)
    exact = _exact_factors(decomposed, spectrum, rank, settings)
    dtype = _dtype(file, module, settings)
    up, down = encode(exact.up, dtype), encode(exact.down, dtype)
    rounded = Factors(decode(dtype, up.data, up.shape), decode(dtype, down.data, down.shape))
    if not all(np.isfinite(side).all() for side in rounded):
        raise InputError(f"module {module.name}: its values do not fit {dtype}; save as bf16 or fp32")
    if np.any(exact.up):
        check_kept(module.name, exact, rounded, dtype)
    tensors = {
        _key(module, "lora_down.weight", settings): Encoded(dtype, decomposed.down_shape(rank), down.data),
        _key(module, "lora_up.weight", settings): Encoded(dtype, decomposed.up_shape(rank), up.data),
    }
    if stored:
        tensors[_key(module, "alpha", settings)] = encode(
            np.asarray(_alpha_of(decomposed, rank, settings)), "F32"
        )
    for suffix in COMPANIONS:
        if suffix in module.keys:
            tensors[_key(module, suffix, settings)] = _companion(
                file, module, suffix, decomposed.kernel, settings
            )
    if "lora_up.bias" in module.keys:  # as strong as it was, at the strength that the module has now
        key = module.keys["lora_up.bias"]
        strength = _alpha_of(decomposed, rank, settings) / rank if stored else 1.0
        name = key
        if settings.kohya is not None:  # to whose readers it is a change of the layer's own bias
            name, strength = _key(module, "diff_b", settings), 1.0
        tensors[name] = encode(file.read(key) * (scale_of(module) / strength), file.tensors[key].dtype)
    norm = spectrum.norm()
    cast = rounding_norm(exact, rounded) / norm if norm else 0.0
    return tensors, cast, underflow_of(exact, rounded)


def _exact_factors(decomposed: ModuleSpectrum, spectrum: Spectrum, rank: int, settings: Settings) -> Factors:
    """The factors of a spectrum with its strength in it, which may be 0 where the change of the factors is not."""
    if np.any(spectrum.singular):
        return spectrum.truncate(rank, settings.balance)
    if not np.any(decomposed.spectrum.singular):
        return _zero_change(decomposed)
    kept = decomposed.spectrum.truncate(rank, settings.balance)
    return Factors(np.zeros_like(kept.up), kept.down)


def _stores_alpha(module: NetworkModule) -> bool:
    """Dotted names have no alpha, which means a scale of 1 to their readers; but PEFT's own, to whom it means a
    configuration beside the file, which a new file does not have.
    """
    return "alpha" in module.keys or "." not in module.name or module.path.startswith("base_model.model.")


def _zero_change(decomposed: ModuleSpectrum) -> Factors:
    """Rank 1, up zero, down as it was: so the file still shows what never got a gradient, and that alone."""
    down = decomposed.spectrum.down
    strongest = int(np.argmax(np.einsum("rn,rn->r", down, down)))
    return Factors(np.zeros((decomposed.spectrum.up.shape[0], 1)), down[strongest : strongest + 1])


def _dtype(file: WeightFile, module: NetworkModule, settings: Settings) -> str:
    """Type of the new factors; "keep" is that of the module's largest tensor, F16 for 8-bit types."""
    if settings.precision != "keep":
        return DTYPES[settings.precision]
    largest = max((file.tensors[key] for key in module.keys.values()), key=lambda info: info.size)
    return largest.dtype if largest.dtype in ITEM_BYTES else "F16"


def _companion(
    file: WeightFile, module: NetworkModule, suffix: str, kernel: tuple[int, ...], settings: Settings
) -> Encoded:
    """A tensor beside the factors as it is; magnitudes in kohya's shape where names are kohya's."""
    tensor = _copy(file, module.keys[suffix])
    if settings.kohya is None or suffix != "dora_scale" or math.prod(tensor.shape) == 1:
        return tensor
    shape = magnitude_shape(tensor.shape, kernel, per_output=module.magnitude_per_output)
    return replace(tensor, shape=shape)


def _key(module: NetworkModule, suffix: str, settings: Settings) -> str:
    """The key of a tensor, also of one that the file does not have yet: named as its neighbours are."""
    if settings.kohya is not None:
        return f"{settings.kohya[module.name]}.{suffix}"
    if suffix in module.keys:
        return module.keys[suffix]
    known, key = next(iter(module.keys.items()))
    return f"{key.removesuffix(known)}{suffix}" if key.endswith(known) else f"{module.name}.{suffix}"


def _copied(file: WeightFile, module: NetworkModule, settings: Settings, why: str) -> _Piece:
    tensors = {_key(module, suffix, settings): _copy(file, key) for suffix, key in module.keys.items()}
    if module.scale is not None and module.rank:  # a configuration said it, which the new file does not have
        tensors[_key(module, "alpha", settings)] = encode(np.asarray(module.scale * module.rank), "F32")
    row = known_rule(module.keys)
    name = "alpha" if row is None else row.name
    return _Piece(
        tensors,
        ModuleReport(name=module.name, algorithm=name, note=f"copied, {why}"),
        _not_finite(file, module.keys.values()),
    )


def _copy(file: WeightFile, key: str) -> Encoded:
    info = file.tensors[key]
    return Encoded(info.dtype, info.shape, file.raw(key))


def _not_finite(file: WeightFile, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        key
        for key in keys
        if file.tensors[key].dtype in FLOAT_DTYPES and not np.isfinite(file.read(key)).all()
    )


# -------------------------------------------------------------------------------- a given size


def _ranks_within(
    file: WeightFile, modules: Sequence[NetworkModule], settings: Settings, budget: int
) -> list[int | None]:
    """The ranks that lose least within ``budget`` bytes of tensors; None for modules that are copied."""
    measured = map_in_threads(lambda module: _candidate(file, module, settings), modules, "measuring")
    fixed = sum(size for size, _ in measured)
    candidates = [candidate for _, candidate in measured if candidate is not None]
    ranks = ranks_for_size(candidates, budget - fixed)
    if ranks is None:
        least = fixed + sum(c.bytes_per_rank for c in candidates) + (settings.target_bytes or 0) - budget
        raise ConfigError(f"--target-size: even at rank 1 the tensors take {least:,} bytes")
    chosen = iter(ranks)
    return [None if candidate is None else next(chosen) for _, candidate in measured]


def _candidate(file: WeightFile, module: NetworkModule, settings: Settings) -> tuple[int, Candidate | None]:
    """Bytes that the module takes whatever its rank, and what its ranks are worth."""
    if not set(module.keys) - {"alpha"} or spectral_rule(module.name, _shapes(file, module)) is None:
        return sum(file.tensors[key].size for key in module.keys.values()), None
    decomposed, _ = _decompose(file, module, settings, vectors=1)
    if decomposed is None:
        return sum(file.tensors[key].size for key in module.keys.values()), None
    item = ITEM_BYTES[_dtype(file, module, settings)]
    sides = math.prod(decomposed.up_shape(1)) + math.prod(decomposed.down_shape(1))
    bound = min(settings.rule.bound(conv=bool(decomposed.kernel)), decomposed.limit)
    energy = np.square(decomposed.scale * decomposed.spectrum.singular)
    kept = sum(file.tensors[module.keys[suffix]].size for suffix in COMPANIONS if suffix in module.keys)
    return kept + ALPHA_BYTES, Candidate(energy, sides * item, bound)


# -------------------------------------------------------------------------------- what to tell


def _notes(reports: Sequence[ModuleReport]) -> list[str]:
    """What the user should know, by algorithm."""
    notes = []
    copied = Counter((m.algorithm, m.note) for m in reports if m.new_rank is None)
    notes += [
        f"{counted(count, f'{algorithm} module')} {note}" for (algorithm, note), count in copied.items()
    ]
    resized = Counter(m.algorithm for m in reports if m.new_rank is not None)
    for name, rule in rules().items():
        if resized[name] and rule.factors is None:
            notes.append(f"{counted(resized[name], f'{name} module', 'are')} now plain LoRA")
    if resized["dora"]:
        notes.append(
            f"{counted(resized['dora'], 'dora module')}: the change was resized, dora_scale kept; norms shift a little"
        )
    return notes
