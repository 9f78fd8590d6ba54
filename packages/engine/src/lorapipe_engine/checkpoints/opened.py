"""A checkpoint opened: one file, or a diffusers folder, whose weights lie in several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.folders import read_config, read_scheduler, weight_files
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile
from lorapipe_engine.models.bases import describe_kind, resolve_base
from lorapipe_engine.models.families import Recognised, get_family, recognise
from lorapipe_engine.models.keys import Place, find_layout, locate, lora_names, lora_names_of, unet_to_ldm
from lorapipe_engine.models.predictions import find_prediction, marked_prediction, scheduler_prediction

# Folders of a diffusers model that networks change.
PARTS: Mapping[str, str] = MappingProxyType({"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"})
ALL_PARTS: Mapping[str, str] = MappingProxyType({**PARTS, "vae": "vae"})
MERGEABLE = ("checkpoint", "unet", "text_encoder")
_BLOCKS = ("down_blocks.", "up_blocks.", "mid_block.")


@dataclass(frozen=True)
class BaseFile:
    """One file of the base. ``output``: its path inside the result, "" if that is a single file. ``part``: "unet",
    "te1", "te2", "vae" for a file whose keys are those of that part alone, with diffusers' names.
    """

    weights: WeightFile
    output: str
    part: str | None = None


@dataclass(frozen=True)
class Spot:
    """A tensor of the base that a network's module can change: file, key, place in it, and the LDM path of a UNet
    layer, which tells its block.
    """

    file: int
    key: str
    place: Place
    ldm_path: str | None


@dataclass(frozen=True)
class Base:
    """An open base. ``kind`` is what it was recognised as; ``folder`` that of a diffusers model."""

    path: Path
    family: str
    kind: str
    files: tuple[BaseFile, ...]
    folder: bool

    def info(self, file: int, key: str) -> TensorInfo:
        return self.files[file].weights.tensors[key]

    def spots(self) -> dict[str, dict[str, Spot]]:
        """Every name that a module may have -> its tensors in the base by kind ("weight", "bias")."""
        by_name: dict[str, dict[str, Spot]] = {}
        for number, file in enumerate(self.files):
            for names, spot in _spots_of(file, number, self.family):
                for name in names:
                    by_name.setdefault(name, {}).setdefault(spot.place.kind, spot)
        return by_name

    @property
    def prediction(self) -> str | None:
        """What the base says that it predicts (:func:`said_prediction`)."""
        return said_prediction(self.path, [file.weights for file in self.files])


def _spots_of(file: BaseFile, number: int, family: str) -> Iterator[tuple[tuple[str, ...], Spot]]:
    if file.part is not None:
        plain = get_family(family).plain_up_blocks
        for key, info in file.weights.tensors.items():
            path, _, kind = key.rpartition(".")
            if kind in ("weight", "bias") and info.shape:
                ldm = unet_to_ldm(path, 2, plain) if file.part == "unet" else None
                place = Place(file.part, path, kind, 0, info.shape[0])
                yield lora_names(family, file.part, path, checkpoint_path=ldm), Spot(number, key, place, ldm)
        return
    layout = find_layout(file.weights.tensors)
    for key, info in file.weights.tensors.items():
        names: dict[Place, list[str]] = {}
        for name, place in lora_names_of(key, info.shape, family, layout).items():
            names.setdefault(place, []).append(name)
        for place, answers in names.items():
            ldm = key.rpartition(".")[0] if place.part == "unet" else None
            yield tuple(answers), Spot(number, key, place, ldm)


def said_prediction(path: Path, files: Iterable[WeightFile]) -> str | None:
    """What a model says that it predicts, by a name of :mod:`lorapipe_engine.models.predictions`: the scheduler of a
    folder, a mark among the tensors, or the metadata; None where nothing does.

    Raises InputError for a scheduler's configuration that is broken.
    """
    if path.is_dir() and (said := scheduler_prediction(read_scheduler(path))):
        return said
    for file in files:
        word = file.metadata.get("modelspec.prediction_type", "").lower()
        if said := marked_prediction(file.tensors) or find_prediction(word):
            return said
    return None


def is_layer(file: BaseFile, key: str, family: str) -> bool:
    """Whether the tensor belongs to a layer of the model (or its EMA copy): what a change of precision is for.

    Schedules (``alphas_cumprod``) and marks (``v_pred``) are no layers' and stay as they are.
    """
    if file.part is not None or key.startswith("model_ema."):
        return True
    return bool(locate(key, file.weights.tensors[key].shape, family))


@contextmanager
def open_base(name: str, parts: Mapping[str, str] = PARTS) -> Iterator[Base]:
    """Open the base that ``name`` stands for: a file, a diffusers folder (of it ``parts``), or ``demo``.

    Raises InputError for anything else, a hub id too: the file has to be on this disk.
    """
    path = resolve_base(name)
    if not isinstance(path, Path):
        raise InputError(f"{name}: no such file or folder (a model of the hub has to be downloaded first)")
    with ExitStack() as stack:
        yield _open_folder(path, parts, stack) if path.is_dir() else _open_file(path, stack)


def _open_file(path: Path, stack: ExitStack) -> Base:
    weights = stack.enter_context(open_weights(path))
    recognised = recognise({key: info.shape for key, info in weights.tensors.items()})
    # A UNet as diffusers names it, without its folder.
    part = (
        "unet"
        if recognised.kind == "unet" and any(key.startswith(_BLOCKS) for key in weights.tensors)
        else None
    )
    return _checked(
        Base(path, recognised.family or "", recognised.kind, (BaseFile(weights, "", part),), False),
        recognised,
    )


def _open_folder(path: Path, parts: Mapping[str, str], stack: ExitStack) -> Base:
    files = []
    shapes = {}
    for folder, part in parts.items():
        for source in weight_files(path / folder):
            weights = stack.enter_context(open_weights(source))
            output = f"{folder}/{source.stem}.safetensors"
            files.append(BaseFile(weights, output, part))
            if part == "unet":
                shapes.update({key: info.shape for key, info in weights.tensors.items()})
    if not files:
        raise InputError(
            f"{path}: is no diffusers model: it has no weights in {', '.join(f'{p}/' for p in PARTS)}"
        )
    if not shapes:
        raise InputError(
            f"{path}: has no weights in unet/ under a name that diffusers gives them, such as "
            "diffusion_pytorch_model.safetensors or diffusion_pytorch_model.fp16.safetensors"
        )
    recognised = recognise(shapes)
    if (path / "text_encoder_2").is_dir():
        recognised = Recognised(recognised.kind, "sdxl")
    return _checked(Base(path, recognised.family or "", recognised.kind, tuple(files), True), recognised)


def _checked(base: Base, recognised: Recognised) -> Base:
    if recognised.kind not in MERGEABLE or recognised.family is None:
        raise InputError(
            f"{base.path}: this is {describe_kind(recognised)}, not a checkpoint of SD 1.x, SD 2.x or SDXL"
            f"{'; it goes on top of one' if recognised.kind == 'lora' else ''}"
        )
    return base


def unread_files(base: Base) -> list[str]:
    """Files of a folder that keep weights beside those that were opened, such as variants in another type; their paths
    in the folder.
    """
    if not base.folder:
        return []
    used = {file.weights.path for file in base.files}
    return [
        path.relative_to(base.path).as_posix()
        for folder in sorted({path.parent for path in used})
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".bin") and path not in used
    ]


def index_files(folder: Path) -> list[Path]:
    """The lists of shards in a diffusers folder, which name types of files that a merge may change."""
    return [path for part in PARTS for path in sorted((folder / part).glob("*.index*.json"))]


def renamed_index(path: Path) -> str:
    """A list of shards with the names that the merged shards have."""
    table = read_config(path)
    names = table.get("weight_map", {})
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path}: no weight_map")
    table["weight_map"] = {key: f"{Path(name).stem}.safetensors" for key, name in names.items()}
    return json.dumps(table, indent=2) + "\n"
