"""What lies in a dataset's folders: pictures with their captions and headers, and files that belong to none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorapipe_dataset.check.pictures.dataset import Dataset, Picture, Place
from lorapipe_dataset.repeats.sources import read_name
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import Record, is_left_out
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import LeadsOut, check_inside, leads_out, read_within, within
from lorapipe_engine.pictures.caption_files import CaptionNames
from lorapipe_engine.pictures.captions import caption_suffixes, read_caption
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.layout import (
    IMAGE_SUFFIXES,
    OTHER_PICTURES,
    as_repeat_folder,
    few_of,
    is_mask,
    split_suffix,
    survey,
)

WORKERS = max(2, os.cpu_count() or 1)


# -------------------------------------------------------------------------------- finding files


def scan(records: Iterable[Record], extension: str, *, recursive: bool = False) -> Dataset:
    """Find everything in the folders, or just the pictures that a list names. ``recursive``: pictures in folders inside
    a concept's folder are taken for its own, as lora-repeats --recursive puts them there.

    Raises InputError for a folder that is not there, and where there is no picture at all.
    """
    dataset = Dataset()
    loose: dict[Path, set[str]] = {}
    number = 0
    for number, record in enumerate(records, 1):  # noqa: B007 - how many there are
        if record.path.is_file():
            loose.setdefault(record.path.parent, set()).add(record.path.name)
        else:
            _scan_root(record.path, dataset, extension, recursive)
    for folder, names in loose.items():
        _scan_loose(folder, names, dataset, extension)
    if not number:
        raise InputError("no pictures to check: the list on standard input is empty")
    if not dataset.pictures and not dataset.masks:
        formats = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise InputError("; ".join([f"no pictures found ({formats})", *dataset.left_out[:1]]))
    dataset.left_out = list(dict.fromkeys(dataset.left_out))
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
    # A caption that is named stands for its picture.
    owners = [name for name in inside if _is_picture(name) and not names.isdisjoint(captions.of(name))]
    names = {*names, *owners}
    wanted = {caption for name in names for caption in captions.of(name)}
    stems = {split_suffix(name)[0] for name in names}
    wanted |= {
        name for name in inside if name in names or (not _is_picture(name) and split_suffix(name)[0] in stems)
    }
    strange = sorted(name for name in names if not _is_known(name, extension))
    if strange:
        count = f"{len(strange)} file{'s' * (len(strange) != 1)}"
        dataset.left_out.append(
            f"{folder}: {count} that {'are' if len(strange) > 1 else 'is'} no picture ({few_of(strange)})"
        )
    numbered = as_repeat_folder(folder.resolve())
    place = Place(folder, read_name(folder)[0], numbered.repeats if numbered else None, True)
    _sort_files(place, [name for name in inside if name in wanted], dataset, extension)


def _is_picture(name: str) -> bool:
    return split_suffix(name)[1].lower() in IMAGE_SUFFIXES


def _is_known(name: str, extension: str) -> bool:
    """Whether a file that was named is one that the rules speak of."""
    suffix = split_suffix(name)[1].lower()
    known = {*IMAGE_SUFFIXES, *OTHER_PICTURES, *caption_suffixes(extension), ".npz"}
    return suffix in known


def _sort_files(place: Place, names: Sequence[str], dataset: Dataset, extension: str) -> None:
    """Sort a folder's files into pictures with captions, masks and others; those that are there already are left."""
    folder = place.path
    start = os.path.join(os.path.abspath(folder), "")  # noqa: PTH100, PTH118 - links are not to be followed
    names = [name for name in names if start + name not in dataset.seen]
    dataset.seen.update(start + name for name in names)
    beside = CaptionNames(names, extension)
    pictures = [name for name in names if _is_picture(name)]
    masks = {name for name in pictures if is_mask(folder / name)}
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
    read_words(picture)
    read_header(picture)


def read_words(picture: Picture, read: Callable[[Path], bytes] | None = None) -> None:
    """Read a picture's caption, or why that cannot be. ``read`` brings the bytes, without following a link out of the
    folder that was named; :func:`within` it by default.
    """
    if picture.caption_path is None:
        return
    try:
        root = picture.place.root or picture.place.path
        if picture.place.linked is not None:
            check_inside(picture.caption_path, root)
        text = read_caption(picture.caption_path, every_line=True, read=read or within(root))
        picture.lines = text.count("\n") + 1 if text else 0
        picture.caption = text.split("\n", 1)[0]
    except LeadsOut as error:
        picture.outside = error.target
        picture.trouble = _trouble_outside(picture.caption_path, error.target)
    except InputError as error:
        picture.trouble = _reason(error, picture.caption_path)


def _trouble_outside(caption: Path, target: Path) -> str | None:
    """Why training cannot read a caption that is a link out of the dataset. Its words are not kept."""
    try:
        read_caption(caption, read=lambda _: read_within(target, None))
    except InputError as error:
        return _reason(error, caption)
    return None


def read_header(picture: Picture) -> None:
    """Read how large a picture is, or why that cannot be."""
    try:
        picture.size = image_size(picture.path)
    except InputError as error:
        picture.problem = _reason(error, picture.path)


def _reason(error: Exception, path: Path) -> str:
    """The message without the file's name in front and the advice behind."""
    return str(error).removeprefix(f"{path}: ").split(";")[0]
