"""What lies in a dataset's folders: pictures with their captions and headers, and files that belong to none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorapipe_dataset.check.pictures.dataset import Dataset, Picture, Place
from lorapipe_dataset.repeats.sources import read_name
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import Record, check_folder
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import LeadsOut, check_inside, leads_out, within
from lorapipe_engine.pictures.captions import read_caption
from lorapipe_engine.pictures.images import IMAGE_SUFFIXES, as_repeat_folder, image_size

CAPTION_SUFFIXES = (".txt", ".caption")
OTHER_PICTURES = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".psd", ".tga", ".jfif", ".apng", ".mp4", ".webm", ".svg"}
)
MASK_MARK = "-masklabel"
MASK_FOLDERS = frozenset({"mask", "masks"})
WORKERS = max(2, os.cpu_count() or 1)


# -------------------------------------------------------------------------------- finding files


def scan(records: Iterable[Record], extension: str, *, masks: bool = False) -> Dataset:
    """Find everything in the folders, or just the pictures that a list names.

    Raises InputError for a folder that is not there, and where there is no picture at all.
    """
    dataset = Dataset(masks_count=masks)
    loose: dict[Path, set[str]] = {}
    for record in records:
        if record.path.is_file():
            loose.setdefault(record.path.parent, set()).add(record.path.name)
        else:
            _scan_root(record.path, dataset, extension)
    for folder, names in loose.items():
        _scan_loose(folder, names, dataset, extension)
    if not dataset.pictures and not dataset.masks:
        formats = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise InputError(f"no pictures found ({formats})")
    dataset.pictures.sort(key=lambda picture: picture.path.parts)
    dataset.others.sort()
    return dataset


def _scan_root(root: Path, dataset: Dataset, extension: str) -> None:
    check_folder(root)
    folders = dict(_walk(root, dataset.unread))
    if root not in folders:
        raise InputError(dataset.unread[-1])
    numbered = {path for path in folders if path.parent == root and path != root and as_repeat_folder(path)}
    if not numbered and as_repeat_folder(root.resolve()):
        numbered = {root}
    for path, names in sorted(folders.items()):
        # A folder's name counts as training reads it: that of a link, not of what it leads to.
        numbered_here = (
            as_repeat_folder(path.resolve() if path == root else path) if path in numbered else None
        )
        place = Place(
            path,
            read_name(path)[0],
            numbered_here.repeats if numbered_here else None,
            bool(numbered_here) or not numbered,
            root,
            None if path == root else leads_out(path, root),
        )
        _sort_files(place, names, dataset, extension)


def _scan_loose(folder: Path, names: set[str], dataset: Dataset, extension: str) -> None:
    inside = dict(_walk(folder, dataset.unread, deep=False)).get(folder, [])
    stems = {Path(name).stem for name in names}
    wanted = [
        name
        for name in inside
        if name in names or (Path(name).suffix.lower() not in IMAGE_SUFFIXES and Path(name).stem in stems)
    ]
    numbered = as_repeat_folder(folder.resolve())
    place = Place(folder, read_name(folder)[0], numbered.repeats if numbered else None, True)
    _sort_files(place, wanted, dataset, extension)


def _walk(root: Path, unread: list[str], *, deep: bool = True) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with its files' names. Hidden ones are left out, links are followed once, loops are not."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                rows = [
                    (entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")
                ]
        except OSError as error:
            unread.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        yield folder, sorted(name for name, is_folder in rows if not is_folder)
        if deep:
            waiting += sorted((folder / name for name, is_folder in rows if is_folder), reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sort_files(place: Place, names: Sequence[str], dataset: Dataset, extension: str) -> None:
    """Sort a folder's files into pictures with captions, masks and others."""
    folder, here = place.path, set(names)
    dotted = extension if extension.startswith(".") else f".{extension}"
    suffixes = tuple(dict.fromkeys((dotted, *CAPTION_SUFFIXES)))
    pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    masks = {name for name in pictures if is_mask(folder / name) and not dataset.masks_count}
    used = set(masks)
    for name in pictures:
        if name in masks:
            continue
        stem = Path(name).stem
        captions = [stem + suffix for suffix in suffixes if stem + suffix in here]
        used |= {name, *captions}
        caption = folder / captions[0] if captions else None
        dataset.pictures.append(Picture(folder / name, place, caption))
    if len(used) > len(masks):
        dataset.places.append(place)
    dataset.masks += [folder / name for name in sorted(masks)]
    dataset.others += [folder / name for name in names if name not in used]


def is_mask(path: Path) -> bool:
    """Whether a picture is a mask of another: ``a-masklabel.png``, or any in a folder ``masks``."""
    return path.stem.endswith(MASK_MARK) or path.parent.name.lower() in MASK_FOLDERS


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
