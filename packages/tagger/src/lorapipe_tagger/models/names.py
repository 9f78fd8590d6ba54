"""Which model a name means: a short name, a hub id, or a folder; and its files on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.errors import InputError
from lorapipe_engine.models.bases import demo_asset
from lorapipe_tagger.models.adapters import Adapter, check_no_hydra, choose_adapter
from lorapipe_tagger.models.hub import fetch_model
from lorapipe_tagger.models.known import hub_model, unknown
from lorapipe_tagger.models.preprocess import with_settings

DEMO = "demo"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on disk: what to call it, its adapter, its network, its list of tags."""

    name: str
    adapter: Adapter
    network: Path
    labels: Path
    balanced: float | None = None


def find_model(word: str, *, revision: str | None, model_dir: Path | None, offline: bool) -> ModelFiles:
    """The files of the model that ``word`` names, downloaded if need be.

    A folder or an ``.onnx`` file here goes first, then short names, then hub ids (``owner/name``, or
    ``owner/name/folder``). Raises InputError in one line where it cannot be had.
    """
    path = Path(word).expanduser()
    if path.is_file() and path.suffix == ".onnx":
        path = path.parent
    if path.is_dir():
        return _from_folder(path, path.resolve().name)
    if word == DEMO:
        return _from_folder(demo_asset("tagger", "model"), DEMO)
    check_no_hydra(word)
    known = hub_model(word)
    if known is None:
        raise InputError(unknown(word))
    folder = fetch_model(known, revision=revision, model_dir=model_dir, offline=offline)
    return _from_folder(folder, known.repository.rpartition("/")[2], known.balanced)


def _from_folder(folder: Path, name: str, balanced: float | None = None) -> ModelFiles:
    adapter, network, labels = choose_adapter(folder)
    if adapter.settings is not None:
        adapter = with_settings(adapter, folder / adapter.settings)
    return ModelFiles(name=name, adapter=adapter, network=network, labels=labels, balanced=balanced)
