"""Base models from the Hugging Face hub: only the files that are read, from its cache where they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.folders import COMPONENTS, weight_files
from lorapipe_engine.files.hub import first_line, quiet_client, why_unreachable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{name}/config.json" for name in COMPONENTS),
    *(f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in ("vocab.json", "merges.txt")),
    *(f"{folder}/tokenizer.json" for folder in ("tokenizer", "tokenizer_2")),
)


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a hub id, ``owner/name``."""
    return _HUB_ID.fullmatch(source) is not None


def fetch_base(source: str, half: bool) -> Path:
    """The folder of a diffusers model from the hub's cache, or else downloaded into it.

    ``half`` prefers the smaller fp16 files. Raises InputError with one line when it cannot be had.
    """
    cached = _cached(source)
    if cached is not None:
        return cached
    reason = "no connection"
    if why_unreachable() is None:
        try:
            return _download(source, half)
        except InputError:
            raise
        except Exception as error:  # of whichever HTTP library this version of the hub's client uses
            reason = first_line(error)
    raise InputError(
        f"{source}: no such file or folder here, and not to be had from the hub ({reason}); "
        f"give a file, a diffusers folder or the id of a model that you may read"
    )


def fetch_files(repository: str, names: Sequence[str]) -> Path | None:
    """The folder of single files of a repository, downloaded or from the cache; None if that fails."""
    from huggingface_hub import hf_hub_download

    if why_unreachable() is not None:
        return None
    try:
        with quiet_client():
            paths = [hf_hub_download(repository, name) for name in names]
    except Exception:  # as above; the caller says what is missing
        return None
    return Path(paths[0]).parent


def _download(source: str, half: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with quiet_client():
        wanted = choose_files(HfApi().list_repo_files(source), half)
        if not wanted:
            raise InputError(
                f"{source}: this hub repository is not a diffusers model (no model_index.json, nor a VAE)"
            )
        return Path(snapshot_download(source, allow_patterns=wanted))


def choose_files(files: Sequence[str], half: bool) -> list[str]:
    """The files of a repository that are needed: small ones, and one set of weights for each component.

    A repository without ``model_index.json`` may be a component itself, such as a VAE. Empty for any other.
    """
    if "model_index.json" not in files:
        weights = _weight_set([name for name in files if "/" not in name], half)
        return ["config.json", *weights] if weights and "config.json" in files else []
    wanted = [name for name in _SMALL_FILES if name in files]
    for component in COMPONENTS:
        inside = [name.removeprefix(f"{component}/") for name in files if name.startswith(f"{component}/")]
        wanted += [f"{component}/{name}" for name in _weight_set(inside, half)]
    return wanted


def _weight_set(names: Sequence[str], half: bool) -> list[str]:
    """Names of one complete set of weights, shards included: safetensors before pickles."""
    for suffix in ("safetensors", "bin"):
        stems = ("diffusion_pytorch_model", "model", "pytorch_model")
        of_kind = [n for n in names if n.startswith(stems) and (f".{suffix}" in n)]
        variant = [n for n in of_kind if ".fp16" in n]
        plain = [n for n in of_kind if re.fullmatch(rf"[a-z_]+(-\d+-of-\d+)?\.{suffix}(\.index\.json)?", n)]
        for chosen in (variant, plain) if half else (plain, variant):
            if chosen:
                return chosen
    return []


def _cached(source: str) -> Path | None:
    """The snapshot in the cache, if its components, or it as a component, have their weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, local_files_only=True))
    except (OSError, LocalEntryNotFoundError, HFValidationError, ValueError):
        return None
    whole = (folder / "model_index.json").is_file() and _complete(folder, COMPONENTS)
    return folder if whole or weight_files(folder) else None


def _complete(folder: Path, components: Iterable[str]) -> bool:
    for name in components:
        inside = folder / name
        needed = name in ("unet", "vae", "text_encoder") or inside.is_dir()
        if needed and not weight_files(inside):
            return False
    return True
