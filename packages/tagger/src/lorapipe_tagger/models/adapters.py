"""How families of taggers want their pictures and give their answers.

Layout, size and batch are read from the ONNX file; what stands here is what it does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lorapipe_engine.errors import InputError
from lorapipe_tagger.models.labels import CHARACTER, GENERAL

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A family of taggers.

    Inputs are (pixel - ``mean``) / ``std`` with pixels in 0..255, channels in the order ``channels``. ``logits``:
    the outputs want a sigmoid. ``outputs``: names of the output, the best first; where there is none of them,
    the first (or, with ``last_output``, the last) that fits the labels. ``size`` counts where the file has none.
    """

    name: str
    models: tuple[str, ...]
    labels: tuple[str, ...]
    channels: Literal["BGR", "RGB"] = "BGR"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    size: int = 448
    padding: tuple[int, int, int] = (255, 255, 255)
    squash: bool = False
    logits: bool = False
    outputs: tuple[str, ...] = ()
    last_output: bool = False
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
    squash=True,
    outputs=("prediction",),
    thresholds=MappingProxyType({GENERAL: 0.30, CHARACTER: 0.85}),
)
CL = Adapter(
    name="cl",
    models=("model_optimized.onnx", "model.onnx"),
    labels=("tag_mapping.json", "model_vocabulary.json"),
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    logits=True,
    thresholds=MappingProxyType({GENERAL: 0.55, CHARACTER: 0.60}),
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
    size=512,
    padding=(0, 0, 0),
    logits=True,
    last_output=True,
    thresholds=MappingProxyType({GENERAL: 0.33, CHARACTER: 0.33}),
    **_IMAGENET,  # type: ignore[arg-type]
)
# Tried in this order on a folder; pixai's files are called as wd's, so it has to be named or be seen by its list.
ADAPTERS: tuple[Adapter, ...] = (CAMIE, CAMIE_1, CL, WD)
PIXAI_COLUMN = "ips"


def choose_adapter(folder: Path) -> tuple[Adapter, Path, Path]:
    """The adapter of the model in a folder, with the paths of its network and of its labels.

    Raises InputError where a file is missing, saying which.
    """
    for adapter in ADAPTERS:
        labels = _first(folder, adapter.labels)
        model = _first(folder, adapter.models)
        if labels and model:
            return (PIXAI if adapter is WD and _is_pixai(labels) else adapter), model, labels
    networks = sorted(path.name for path in folder.glob("*.onnx"))
    if networks:
        raise InputError(
            f"{folder}: has {networks[0]} but no list of tags beside it; put the model's selected_tags.csv there"
        )
    if _first(folder, WD.labels):
        raise InputError(f"{folder}: has selected_tags.csv but no model.onnx")
    raise InputError(f"{folder}: no tagger in it; it needs model.onnx and selected_tags.csv")


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _is_pixai(labels: Path) -> bool:
    with labels.open("rb") as file:
        head = file.readline(1000)
    return PIXAI_COLUMN.encode() in head.rstrip().split(b",")
