"""What lies in a dataset's folders: pictures with their captions and headers, and files that belong to none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorapipe_dataset.check.pictures.dataset import Dataset, Picture, Place
from lorapipe_dataset.repeats.sources import read_name
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import Record, is_left_out
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import LeadsOut, check_inside, leads_out, within
from lorapipe_engine.pictures.captions import read_caption
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.layout import (
    IMAGE_SUFFIXES,
    CaptionNames,
    as_repeat_folder,
    is_mask,
    split_suffix,
    survey,
)

WORKERS = max(2, os.cpu_count() or 1)


# -------------------------------------------------------------------------------- finding files


def scan(
    records: Iterable[Record], extension: str, *, masks: bool = False, recursive: bool = False
) -> Dataset:
    """Find everything in the folders, or just the pictures that a list names. ``recursive``: pictures in folders inside
    a concept's folder are taken for its own, as lora-repeats --recursive puts them there.

    Raises InputError for a folder that is not there, and where there is no picture at all.
    """
    dataset = Dataset(masks_count=masks)
    loose: dict[Path, set[str]] = {}
    for record in records:
        if record.path.is_file():
            loose.setdefault(record.path.parent, set()).add(record.path.name)
        else:
            _scan_root(record.path, dataset, extension, recursive)
    for folder, names in loose.items():
        _scan_loose(folder, names, dataset, extension)
    if not dataset.pictures and not dataset.masks:
        formats = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise InputError(f"no pictures found ({formats})")
    dataset.pictures.sort(key=lambda picture: picture.path.parts)
    dataset.others.sort()
    return dataset


def _scan_root(root: Path, dataset: Dataset, extension: str, recursive: bool) -> None:
    surveyed = survey(root)
    dataset.unread += surveyed.unread
    hint = (
        ": checked, as lora-repeats --recursive takes them in" if recursive else " (--recursive checks them)"
    )
    dataset.left_out += [f"{root}: {line}" for line in surveyed.left_out(hint=hint)]
    repeats = {part.path: part.repeats for part in surveyed.parts}
    for part in surveyed.parts:
        taken = part.reason is None or (recursive and part.is_inner)
        if not taken:
            dataset.untrained[part.path] = str(part.reason)
        place = Place(
            part.path,
            read_name(part.top if part.is_inner else part.path)[0],
            repeats[part.top] if part.is_inner else part.repeats,
            taken,
            root,
            None if part.path == root else leads_out(part.path, root),
            part.is_inner,
        )
        _sort_files(place, part.names, dataset, extension)


def _scan_loose(folder: Path, names: set[str], dataset: Dataset, extension: str) -> None:
    try:
        inside = sorted(
            path.name for path in folder.iterdir() if not is_left_out(path.name) and not path.is_dir()
        )
    except OSError as error:
        dataset.unread.append(f"{folder}: cannot be read ({error.strerror})")
        return
    captions = CaptionNames(inside, extension)
    wanted = {caption for name in names for caption in captions.of(name)}
    stems = {split_suffix(name)[0] for name in names}
    wanted |= {
        name
        for name in inside
        if name in names
        or (split_suffix(name)[1].lower() not in IMAGE_SUFFIXES and split_suffix(name)[0] in stems)
    }
    numbered = as_repeat_folder(folder.resolve())
    place = Place(folder, read_name(folder)[0], numbered.repeats if numbered else None, True)
    _sort_files(place, [name for name in inside if name in wanted], dataset, extension)


def _sort_files(place: Place, names: Sequence[str], dataset: Dataset, extension: str) -> None:
    """Sort a folder's files into pictures with captions, masks and others."""
    folder = place.path
    beside = CaptionNames(names, extension)
    pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    masks = {name for name in pictures if is_mask(folder / name) and not dataset.masks_count}
    used = set(masks)
    for name in pictures:
        if name in masks:
            continue
        captions = [folder / caption for caption in beside.of(name)]
        used |= {name, *(path.name for path in captions)}
        dataset.pictures.append(
            Picture(folder / name, place, captions[0] if captions else None, tuple(captions[1:]))
        )
    if len(used) > len(masks):
        dataset.places.append(place)
    dataset.masks += [folder / name for name in sorted(masks)]
    dataset.others += [folder / name for name in names if name not in used]


# -------------------------------------------------------------------------------- reading them


def read_files(dataset: Dataset) -> None:
    """Read all captions, and the pictures' headers."""
    with progress(len(dataset.pictures), "reading", "file") as bar, ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(_read, dataset.pictures):
            bar.update()


def _read(picture: Picture) -> None:
    if picture.caption_path is not None:
        try:
            root = picture.place.root or picture.place.path
            if picture.place.linked is not None:
                check_inside(picture.caption_path, root)
            text = read_caption(picture.caption_path, every_line=True, read=within(root))
            picture.lines = text.count("\n") + 1 if text else 0
            picture.caption = text.split("\n", 1)[0]
        except LeadsOut as error:
            picture.outside = error.target
        except InputError as error:
            picture.trouble = _reason(error, picture.caption_path)
    try:
        picture.size = image_size(picture.path)
    except InputError as error:
        picture.problem = _reason(error, picture.path)


def _reason(error: Exception, path: Path) -> str:
    """The message without the file's name in front and the advice behind."""
    return str(error).removeprefix(f"{path}: ").split(";")[0]
