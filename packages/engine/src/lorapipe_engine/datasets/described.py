"""What a scanned dataset holds and what is odd about it, in lines for the user."""

from __future__ import annotations

from collections import Counter

from lorapipe_engine.command.text import counted
from lorapipe_engine.datasets.losses import loss_notes
from lorapipe_engine.datasets.scan import Dataset, Folder
from lorapipe_engine.datasets.signs import sign_notes
from lorapipe_engine.pictures.layout import few_of, survey
from lorapipe_engine.settings import DataSettings

_LONGEST_KEY = 60  # letters of one that a line shows


def folder_lines(dataset: Dataset) -> list[str]:
    """One line for each folder: its pictures, repeats, and captions that are missing."""
    return [_folder_line(number, row, dataset) for number, row in enumerate(dataset.folders)]


def _folder_line(number: int, row: Folder, dataset: Dataset) -> str:
    subset = row.subset
    if subset.pairs is not None:
        return f"{subset.folder.name}: {len(subset.pairs.rows)} pairs of prompts x {subset.repeats}"
    parts = [f"{row.pictures} pictures x {subset.repeats}"]
    if subset.is_reg:
        used = sum(picture.repeats for picture in dataset.pictures if dataset.subset_of(picture) is subset)
        parts = [f"{row.pictures} regularisation pictures, {used} an epoch"]
    if subset.is_preserved:
        parts.append("held to the base's answers")
    if row.without_caption:
        instead = f"'{subset.class_tokens}' is used" if subset.class_tokens else "an empty one is used"
        parts.append(f"{row.without_caption} without a caption ({instead})")
    if row.empty_captions:
        parts.append(f"{row.empty_captions} with an empty caption")
    if row.private_captions:
        links = f"{row.private_captions} captions are links out of the dataset"
        parts.append(f"warning: {links}: they are trained, and left out of the metadata")
    kept = sum(picture.subset == number for picture in dataset.validation)
    if kept:
        parts.append(f"{kept} kept for validation")
    name = subset.folder.name or str(subset.folder)
    if len(dataset.specs) > 1:
        width, height = dataset.specs[row.dataset].buckets.resolution
        name = f"{name} at {width}x{height}"
    return f"{name}: {', '.join(parts)}"


def dataset_notes(data: DataSettings, dataset: Dataset) -> list[str]:
    """What the user should know of a dataset before it is trained."""
    if data.slider is not None:
        return []
    notes = []
    if data.dataset_config is not None:
        unused = [name for name in ("train_data_dir", "reg_data_dir") if getattr(data, name) is not None]
        notes += [f"{name} is not used: dataset_config names the folders" for name in unused]
        if data.in_json is not None:
            notes.append("in_json is not used: dataset_config names such files as metadata_file in a subset")
        notes += dict.fromkeys(
            f"{data.dataset_config}: {note}" for spec in dataset.specs for note in spec.notes
        )
    elif data.in_json is None:
        roots = [root for root in (data.train_data_dir, data.reg_data_dir) if root is not None]
        for root in roots:
            others = (*roots, data.conditioning_data_dir)
            apart = [other for other in others if other is not None and other != root]
            notes += [f"{root}: not trained: {line}" for line in survey(root).left_out(apart=apart)]
    counts = Counter(picture.dataset for picture in dataset.pictures)
    for number, spec in enumerate(dataset.specs):
        if spec.asked_step is not None:
            notes.append(
                f"bucket_reso_steps {spec.asked_step} is taken as {spec.buckets.step}, the finest that this base has"
            )
        if spec.validation_split and not any(row.dataset == number for row in dataset.validation):
            notes.append(f"validation_split {spec.validation_split:g} of {counts[number]} pictures is none")
    # One file may be that of several subsets.
    notes += dict.fromkeys(_unread(row) for row in dataset.folders if row.unread)
    for row in dataset.folders:
        notes += _caption_notes(row)
    return [*notes, *loss_notes(data, dataset), *sign_notes(data, dataset)]


def _unread(row: Folder) -> str:
    """The keys of a metadata file that nothing reads."""
    keys = [f"{key[:_LONGEST_KEY]} in {counted(count, 'row')}" for key, count in row.unread]
    return f"{row.subset.metadata}: not used: {few_of(keys)}; caption and tags are read"


def _caption_notes(row: Folder) -> list[str]:
    """Captions of which a part is not trained, and those that are trained for two pictures."""
    notes = []
    if row.cut_captions:
        count = "1 caption has" if row.cut_captions == 1 else f"{row.cut_captions} captions have"
        notes.append(
            f"{row.subset.folder}: {count} several lines, of which the first is trained (enable_wildcard takes one at "
            "a time)"
        )
    if row.shared:
        notes.append(
            f"{row.subset.folder}: {len(row.shared)} pictures share a caption file, as their names differ in the "
            f"suffix only ({few_of(row.shared)}): lora-check --fix stem-clash keeps them apart"
        )
    return notes
