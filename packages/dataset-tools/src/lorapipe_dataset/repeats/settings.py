"""What each mode of ``lora-repeats`` can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorapipe_dataset.bucketing import BucketSettings
from lorapipe_engine.command.foreign import refused
from lorapipe_engine.command.modes import Mode, flag

Kind = Literal["character", "style", "concept"]
Share = Literal["equal", "sqrt", "weight"]


@dataclass(frozen=True, kw_only=True)
class NumberSettings:
    """How often each picture comes"""

    kind: Kind = flag(
        "concept",
        "What is trained: sets the pictures of an epoch (400, 500, 400) and of the whole run.",
    )
    per_epoch: int | None = flag(None, "Pictures of an epoch, repeats counted.", min=1, metavar="N")
    by: Share | None = flag(
        None, "Share of each concept: equal, by the root of its pictures, by weights.  [default: equal]"
    )
    weight: tuple[str, ...] = flag(
        (),
        "Let this concept come W times as often as one of weight 1 (folders {1.5}name say it too).",
        metavar="NAME=W",
    )
    repeats: tuple[str, ...] = flag(
        (),
        "Let each picture come N times an epoch, of all concepts or of one, instead of choosing the number.",
        metavar="[NAME=]N",
    )
    concept: str | None = flag(
        None,
        "Put all pictures into one concept.",
        *("--concept", "--name", "--concept-name"),
        metavar="NAME",
    )
    recursive: bool = flag(False, "Take folders inside a concept's folder too.", "-r", "--recursive")
    gradient_accumulation_steps: int = flag(
        1, "Batches that lora-train sums for one step, by which steps are counted.", min=1
    )
    as_json: bool = flag(False, "Print the numbers as one JSON object.", "--json")


@dataclass(frozen=True, kw_only=True)
class DrySettings:
    """How often each picture comes"""

    dry_run: bool = flag(False, "Say what would be done, write nothing.", "-n", "--dry-run")


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Instead of a dataset"""

    undo: bool = flag(False, "Take your last --rename or --move in these folders back; -n shows what goes.")
    run: str | None = flag(None, "With --undo: take this run back, whoever made it.", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The dataset"""

    output: str | None = flag(
        None,
        "Folder to build, or a .toml file that names the folders.",
        *("-o", "--output"),
        metavar="OUT",
    )
    caption_extension: str = flag(".txt", "Suffix of captions (.caption is tried too).", metavar="SUFFIX")
    force: bool = flag(False, "Add to a folder that has something in it; replace a .toml.")


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """The dataset"""

    link: Literal["hard", "symlink"] | None = flag(
        None, "Link the pictures instead of copying them; captions are copied."
    )
    move: bool = flag(False, "Move pictures and captions instead of copying them.")


@dataclass(frozen=True, kw_only=True)
class RenameSettings:
    """The dataset"""

    rename: bool = flag(False, "Rename the folders where they are, no -o.")


def _is_toml(flags: Mapping[str, Any]) -> bool:
    return str(flags.get("output") or "").lower().endswith(".toml")


MODES = (
    Mode("printing the numbers", (NumberSettings, DrySettings, BucketSettings)),
    Mode(
        "-o FOLDER",
        (OutputSettings, FolderSettings, NumberSettings, DrySettings, BucketSettings),
        by="output",
    ),
    Mode("-o FILE.toml", (OutputSettings, NumberSettings, DrySettings, BucketSettings), by=_is_toml),
    Mode("--rename", (RenameSettings, NumberSettings, DrySettings, BucketSettings), by="rename"),
    Mode("--undo", (UndoSettings, DrySettings), by="undo"),
)
# Of sd-scripts, whose options people have at hand.
FOREIGN = {
    **refused("name the folder itself: lora-repeats DIR", "train_data_dir", "image_dir"),
    **refused("name the folders that the file names", "dataset_config"),
    **refused(
        "name the folder of the pictures; lora-clean FILE --to txt puts the file's captions beside them",
        "in_json",
    ),
}
