"""Models from the Hugging Face hub: downloaded once at a fixed commit, afterwards taken from the disk alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.hub import first_line, quiet_client, why_unreachable
from lorapipe_tagger.models.adapters import ADAPTERS, SETTINGS_FILES
from lorapipe_tagger.models.known import HubModel

_WANTED = frozenset(name for adapter in ADAPTERS for name in (*adapter.models, *adapter.labels)) | {
    *SETTINGS_FILES
}


def fetch_model(model: HubModel, *, revision: str | None, model_dir: Path | None, offline: bool) -> Path:
    """The folder with a model's files.

    They are looked for in ``model_dir`` (in a folder of the repository's name), then in the hub's cache; only then
    the hub is asked. Raises InputError in one line where they cannot be had.
    """
    revision = revision or model.revision
    target = model_dir / model.repository.rpartition("/")[2] if model_dir else None
    here = _in_folder(target, model) or _in_cache(model, revision, target)
    if here:
        return here
    try:
        why = "--offline" if offline else why_unreachable()
        if why is None:
            return _download(model, revision, target)
    except InputError:
        raise
    except Exception as error:  # of whichever HTTP library this version of the hub's client uses
        why = first_line(error)
        if type(error).__name__ == "GatedRepoError":
            why = f"accept its terms at huggingface.co/{model.repository} and log in: hf auth login"
    raise InputError(
        f"{model.repository}: is not on this disk and not to be had from the hub ({why}); "
        f"download its files elsewhere and give their folder as --model"
    )


def _in_folder(target: Path | None, model: HubModel) -> Path | None:
    folder = target / model.folder if target else None
    return folder if folder and _complete([path.name for path in _files(folder)]) else None


def _in_cache(model: HubModel, revision: str, target: Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if target is not None:  # who names a folder wants it there
        return None
    try:
        snapshot = snapshot_download(model.repository, revision=revision, local_files_only=True)
    except HFValidationError as error:
        raise InputError(f"--model {model.repository}: {first_line(error)}") from error
    except (OSError, LocalEntryNotFoundError, ValueError):
        return None
    folder = Path(snapshot) / model.folder
    return folder if _complete([path.name for path in _files(folder)]) else None


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _complete(names: list[str]) -> bool:
    return any(set(names) & set(adapter.models) and set(names) & set(adapter.labels) for adapter in ADAPTERS)


def _download(model: HubModel, revision: str, target: Path | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    prefix = f"{model.folder}/" if model.folder else ""
    with _quiet():
        present = HfApi().list_repo_files(model.repository, revision=revision)
        inside = [name.removeprefix(prefix) for name in present if name.startswith(prefix)]
        names = [name for name in inside if name.removesuffix(".data") in _WANTED]
        if "model.onnx" in names:  # of two precisions the first that is taken on a disk
            names = [name for name in names if name != "model_fp16.onnx"]
        if not _complete(names):
            raise InputError(_not_a_tagger(model, present))
        if revision == "main":
            say(f"lora-tag: note: no fixed commit of {model.repository} is known here: the newest is taken")
        say(f"lora-tag: downloading {model.repository} ({', '.join(names)}) at {revision[:12]}")
        # The network comes last: a folder with it is whole.
        for name in sorted(names, key=lambda name: name.endswith(".onnx")):
            path = Path(hf_hub_download(model.repository, prefix + name, revision=revision, local_dir=target))
    return path.parent


def _not_a_tagger(model: HubModel, present: list[str]) -> str:
    folders = sorted({name.rpartition("/")[0] for name in present if name.endswith(".onnx") and "/" in name})
    hint = f"; name one of its folders, such as {model.repository}/{folders[0]}" if folders else ""
    place = f"{model.repository}/{model.folder}".rstrip("/")
    return f"{place}: has no model.onnx with selected_tags.csv{hint}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's talk about its tries off the screen, and its bars where they do not belong."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    if QUIET.get() or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with quiet_client():
            yield
    finally:
        if shown:
            enable_progress_bars()
