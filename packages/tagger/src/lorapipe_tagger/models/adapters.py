"""How families of taggers want their pictures and give their answers.

Layout, size and batch are read from the ONNX file; what stands here is what it does not tell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lorapipe_engine.errors import InputError
from lorapipe_tagger.models.labels import CHARACTER, GENERAL, MOST_BYTES
from lorapipe_tagger.settings import Geometry

Triple = tuple[float, float, float]
_HYDRA = re.compile(r"jtp[-_ ]?3|hydra", re.IGNORECASE)
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A family of taggers.

    Inputs are (pixel - ``mean``) / ``std`` with pixels in 0..255, channels in the order ``channels``. ``logits``:
    the outputs want a sigmoid. ``outputs``: names of the output, the best first; where there is none of them,
    the first (or, with ``last_output``, the last) that fits the labels. ``size`` counts where the file has none.
    ``planes``: the network is of the family only with inputs NCHW. ``settings``: a file beside it that says how
    pictures are prepared. ``note``: what a user should know of a choice that was made here.
    """

    name: str
    models: tuple[str, ...]
    labels: tuple[str, ...]
    channels: Literal["BGR", "RGB"] = "BGR"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    size: int = 448
    padding: tuple[int, int, int] = (255, 255, 255)
    geometry: Geometry = "pad"
    logits: bool = False
    outputs: tuple[str, ...] = ()
    last_output: bool = False
    planes: bool = False
    settings: str | None = None
    note: str = ""
    thresholds: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({GENERAL: 0.35, CHARACTER: 0.85})
    )

    @property
    def plain(self) -> bool:
        """Whether pixels go in as they are."""
        return self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)


WD = Adapter(name="wd", models=("model.onnx",), labels=("selected_tags.csv",))
PIXAI = Adapter(
    name="pixai",
    models=("model.onnx",),
    labels=("selected_tags.csv",),
    channels="RGB",
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    geometry="squash",
    outputs=("prediction",),
    thresholds=MappingProxyType({GENERAL: 0.30, CHARACTER: 0.85}),
)
CL = Adapter(
    name="cl",
    models=("model_optimized.onnx", "model.onnx"),
    labels=("tag_mapping.json",),
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    logits=True,
    thresholds=MappingProxyType({GENERAL: 0.55, CHARACTER: 0.60}),
)
CL_2 = Adapter(
    name="cl-v2",
    models=("model.onnx", "model_optimized.onnx"),
    labels=("model_vocabulary.json",),
    channels="RGB",
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    size=384,
    geometry="squash",
    logits=True,
    note="pictures are squashed to a square, as SigLIP 2 has them; some programs pad them instead",
    thresholds=MappingProxyType({GENERAL: 0.55, CHARACTER: 0.55}),
)
PIXAI_1 = Adapter(
    name="pixai-v1",
    models=("model.onnx", "model_fp16.onnx"),
    labels=("selected_tags.csv",),
    channels="RGB",
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    size=1008,
    padding=(0, 0, 0),
    logits=True,
    planes=True,
    thresholds=MappingProxyType(
        {GENERAL: 0.17, CHARACTER: 0.27, "copyright": 0.24, "artist": 0.15, "meta": 0.17}
    ),
)
_IMAGENET: Mapping[str, Triple] = MappingProxyType(
    {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
)
CAMIE = Adapter(
    name="camie",
    models=("camie-tagger-v2.onnx",),
    labels=("camie-tagger-v2-metadata.json",),
    channels="RGB",
    size=512,
    padding=(124, 116, 104),
    logits=True,
    last_output=True,
    thresholds=MappingProxyType({GENERAL: 0.61, CHARACTER: 0.61}),
    **_IMAGENET,  # type: ignore[arg-type]
)
CAMIE_1 = Adapter(
    name="camie-v1",
    models=("model_initial.onnx", "camie_tagger_initial.onnx"),
    labels=("model_initial_metadata.json", "metadata.json"),
    channels="RGB",
    std=(255.0, 255.0, 255.0),
    size=512,
    padding=(0, 0, 0),
    logits=True,
    last_output=True,
    thresholds=MappingProxyType({GENERAL: 0.33, CHARACTER: 0.33}),
)
# The list has a threshold for each tag; how pictures are prepared stands in a file of its own.
ANIMETIMM = Adapter(
    name="animetimm",
    models=("model.onnx",),
    labels=("selected_tags.csv",),
    channels="RGB",
    logits=True,
    planes=True,
    outputs=("logits",),
    settings="preprocess.json",
    **_IMAGENET,  # type: ignore[arg-type]
)
Z3D = Adapter(
    name="z3d-e621",
    models=("model.onnx",),
    labels=("tags-selected.csv",),
    thresholds=MappingProxyType({GENERAL: 0.35, CHARACTER: 0.85, "species": 0.35}),
)
# Tried in this order on a folder. The files of WD, PixAI and animetimm are called alike: the list of tags tells them.
ADAPTERS: tuple[Adapter, ...] = (CAMIE, CAMIE_1, CL, CL_2, Z3D, WD, PIXAI_1)
SETTINGS_FILES = ("preprocess.json",)
_PIXAI_CONFIG = "config.json"
_PIXAI_COLUMN, _OWN_THRESHOLDS = "ips", "best_threshold"
# WD's lists have general tags, characters and ratings only.
_BEYOND_WD = frozenset({"1", "3", "5"})


def choose_adapter(folder: Path) -> tuple[Adapter, Path, Path]:
    """The adapter of the model in a folder, with the paths of its network and of its labels.

    Raises InputError where a file is missing, saying which.
    """
    for adapter in ADAPTERS:
        labels = _first(folder, adapter.labels)
        model = _first(folder, adapter.models)
        if labels and model:
            return _by_list(adapter, labels), model, labels
    check_no_hydra(folder.resolve().name, folder)
    config, model = folder / _PIXAI_CONFIG, _first(folder, PIXAI_1.models)
    if model and _has_tags(config):
        return PIXAI_1, model, config
    networks = sorted(path.name for path in folder.glob("*.onnx"))
    if networks:
        raise InputError(
            f"{folder}: has {networks[0]} but no list of tags beside it; put the model's selected_tags.csv there"
        )
    if _first(folder, WD.labels):
        raise InputError(f"{folder}: has selected_tags.csv but no model.onnx")
    raise InputError(f"{folder}: no tagger in it; it needs model.onnx and selected_tags.csv")


def _has_tags(config: Path) -> bool:
    """Whether a ``config.json``, which models of all kinds have, is PixAI's with the list of tags."""
    try:
        return config.stat().st_size <= MOST_BYTES and b'"tags_split"' in config.read_bytes()
    except OSError:
        return False


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def check_no_hydra(name: str, folder: Path | None = None) -> None:
    """Raise InputError for RedRocket's JTP-3, by its name; with ``folder``, for one that holds its weights."""
    if not _HYDRA.search(name) or (folder is not None and not any(folder.glob("*.safetensors"))):
        return
    raise InputError(
        f"{name}: JTP-3 (Hydra) comes as PyTorch weights without an ONNX network, and its pictures are cut into "
        "patches in a way of its own: it is not read here; --model z3d knows e621's tags"
    )


def _by_list(adapter: Adapter, labels: Path) -> Adapter:
    """The adapter among those whose files are called alike, by columns and categories of the list of tags."""
    if adapter not in (WD, PIXAI_1):
        return adapter
    with labels.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(line for line in file if len(line) < _LONGEST_LINE)
        columns = [name.strip() for name in rows.fieldnames or ()]
        if _OWN_THRESHOLDS in columns:
            return ANIMETIMM
        if _PIXAI_COLUMN in columns:
            return PIXAI
        try:
            categories = {(row.get("category") or "").strip() for row in rows}
        except csv.Error:
            categories = set()  # read_labels says what is the matter
    return PIXAI_1 if len(categories & _BEYOND_WD) > 1 else adapter
