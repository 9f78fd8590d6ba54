"""What a dataset's files and folders are: pictures, captions, concept folders, and what is left out and why.

The rule is the trainer's: pictures in a folder ``N_concept`` with a whole number N of 1 or more in front of the first
underscore are trained, and none in folders inside it. Every tool asks here, so all count alike. A folder without any
``N_concept`` in it holds pictures that are to become a dataset: each folder in it is a concept then.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.command.records import check_folder, find_files, is_left_out
from lorapipe_engine.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
# Drawings and films, which no tool here opens.
NOT_OPENED = frozenset({".psd", ".svg", ".mp4", ".webm"})
# Pictures by their names that no trainer takes.
OTHER_PICTURES = frozenset(
    {
        ".gif", ".tif", ".tiff", ".heic", ".heif", ".jfif", ".jpe", ".apng", ".tga", ".ppm", ".pgm", ".dds", ".jp2",
        *NOT_OPENED,
    }
)  # fmt: skip
MASK_MARK = "-masklabel"
MASK_FOLDERS = frozenset({"mask", "masks"})
MOST_REPEATS = 10_000
MOST_NAMED = 5  # files in a line
_FORK = "._"  # what macOS keeps of a file beside it, which is no picture
_REPEATS = re.compile(r"(\d+)_(.*)", re.DOTALL)
_NUMBERED = re.compile(r"(\d+)[\s.-]+(\S.*)", re.DOTALL)
# What lies beside pictures and is none: it is not opened to be sure of that.
_BESIDE = frozenset({".txt", ".caption", ".npz", ".json", ".jsonl", ".csv", ".toml", ".xmp", ".safetensors"})
_SIGNATURES = (
    b"\x89PNG\r\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
)


# -------------------------------------------------------------------------------- names of folders


@dataclass(frozen=True)
class RepeatFolder:
    """A folder ``N_concept``: its pictures come N times an epoch."""

    path: Path
    repeats: int
    concept: str


def as_repeat_folder(path: Path) -> RepeatFolder | None:
    """Read a folder's name; None where it is not of the form N_concept with N of 1 or more.

    Raises InputError for more than ``MOST_REPEATS``: names that begin with a picture's number on some site.
    """
    match = _REPEATS.fullmatch(path.name)
    if not match or int(match.group(1)) < 1:
        return None
    if int(match.group(1)) > MOST_REPEATS:
        raise InputError(
            f"{path}: its name asks for {int(match.group(1)):,} repeats of each picture, more than {MOST_REPEATS:,}; "
            f"rename it to '1_{path.name}', or to the number that is meant"
        )
    return RepeatFolder(path, int(match.group(1)), match.group(2))


def concept_of(name: str) -> str:
    """The concept that a folder's name stands for: what is behind its repeats, all of it where it has none."""
    match = _REPEATS.fullmatch(name)
    return match.group(2) if match and 1 <= int(match.group(1)) <= MOST_REPEATS else name


def is_switched_off(name: str) -> bool:
    """Whether a folder's name asks for 0 repeats, by which people leave a concept out for a time."""
    match = _REPEATS.fullmatch(name)
    return match is not None and int(match.group(1)) == 0


def repeat_folders(root: Path) -> list[RepeatFolder]:
    """The folders ``N_concept`` in ``root``, sorted by name; ``root`` itself where it is one and holds pictures.

    Raises InputError where there is none, saying which folders to rename.
    """
    inside = subfolders(root)
    numbered = [folder for path in inside if (folder := as_repeat_folder(path))]
    if numbered:
        return numbered
    itself = as_repeat_folder(root.resolve())
    if itself and find_images(root):
        return [RepeatFolder(root, itself.repeats, itself.concept)]
    raise InputError(f"{root}: no folder named N_concept in it; {_what_to_rename(root, inside)}")


def subfolders(root: Path) -> list[Path]:
    """The folders in ``root`` that may hold a concept, sorted by name. Links to folders count, but for those back to
    ``root`` or a folder above it; hidden folders, and those that other programs make, do not.

    Raises InputError if it cannot be read.
    """
    check_folder(root)
    try:
        inside = [path for path in root.iterdir() if not is_left_out(path.name) and path.is_dir()]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from error
    own = root.resolve()
    return sorted(
        (path for path in inside if not path.is_symlink() or not own.is_relative_to(path.resolve())),
        key=lambda path: path.parts,
    )


def _what_to_rename(root: Path, inside: Sequence[Path]) -> str:
    for folder in inside:  # GUIs make a folder with img, reg, model and log
        for deeper in folder.iterdir() if os.access(folder, os.R_OK) else ():
            if concept_of(deeper.name) != deeper.name and deeper.is_dir():
                return f"name {folder} in its place, which holds '{deeper.name}'"
    if inside:
        repeats, name = _with_repeats(inside[0].name)
        return f"rename '{inside[0].name}' to '{repeats}_{name}' ({repeats} is how often its pictures come in an epoch)"
    if find_images(root):
        return f"put its pictures into a folder such as '10_{root.resolve().name}' inside it"
    return "it is empty; put pictures into a folder such as '10_concept' inside it"


def _with_repeats(name: str) -> tuple[int, str]:
    """Repeats and concept that a folder's name should have: its own number, where it begins with one, or 10."""
    if is_switched_off(name):
        return 10, name.partition("_")[2]
    bare = name.strip()
    match = _NUMBERED.fullmatch(bare) or _REPEATS.fullmatch(bare)
    if match and 1 <= int(match[1]) <= MOST_REPEATS:
        return int(match[1]), match[2]
    return 10, name


# -------------------------------------------------------------------------------- files


def find_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The pictures of a folder by suffix (any case), sorted by the letters' code points. Hidden files and masks
    ``a-masklabel.png`` are left out.

    Raises InputError if the folder cannot be read.
    """
    files = find_files(folder, IMAGE_SUFFIXES, recursive=recursive)
    return [path for path in files if not _has_mask_mark(path.name)]


def is_mask(path: Path) -> bool:
    """Whether a picture is a mask of another: ``a-masklabel.png``, or any in a folder ``masks``."""
    return _has_mask_mark(path.name) or path.parent.name.lower() in MASK_FOLDERS


def _has_mask_mark(name: str) -> bool:
    return MASK_MARK in name and split_suffix(name)[0].endswith(MASK_MARK)


def has_signature(path: Path) -> bool:
    """Whether a file begins as pictures do, whatever its name; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_bmp = head[:2] == b"BM" and head[6:10] == bytes(4)
    return head.startswith(_SIGNATURES) or head[4:8] == b"ftyp" or is_webp or is_bmp


def strange_kind(path: Path) -> str | None:
    """The kind of a picture that is trained under no such name: its suffix (``.gif``, ``.jpg_large``), or ``no
    suffix``; None for pictures that are trained, and for what is no picture."""
    suffix = split_suffix(path.name)[1].lower()
    if suffix in OTHER_PICTURES:
        return suffix
    if suffix in IMAGE_SUFFIXES or suffix in _BESIDE or not has_signature(path):
        return None
    return suffix or "no suffix"


def split_suffix(name: str) -> tuple[str, str]:
    """A file's name without its suffix, and the suffix, "" for none: as path objects have it, for less time."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if 0 < dot < len(name) - 1 else (name, "")


# -------------------------------------------------------------------------------- a whole dataset


@dataclass(frozen=True)
class Part:
    """A folder of a dataset and its files, sorted. ``repeats`` is None where its name has no number; ``reason`` says
    why its pictures are not trained, None where they are. ``top`` is the concept's folder: itself, or the one that an
    inner folder lies in; ``concept`` is that one's.
    """

    path: Path
    names: tuple[str, ...]
    concept: str
    top: Path
    repeats: int | None = None
    reason: str | None = None

    @property
    def is_inner(self) -> bool:
        """Whether it lies inside a concept's folder."""
        return self.reason == _INNER

    @property
    def pictures(self) -> list[str]:
        """The names of the pictures in formats that are trained."""
        return [name for name in self.names if _is_picture(name) and not _has_mask_mark(name)]

    @property
    def masks(self) -> list[str]:
        """The names of the masks ``a-masklabel.png`` that lie beside the pictures."""
        return [name for name in self.names if _has_mask_mark(name) and _is_picture(name)]


@dataclass
class Survey:
    """All folders of a dataset. ``numbered``: whether it has folders ``N_concept``, or is one; ``aside``: pictures in
    folders of other programs and hidden ones, by the folder's name; ``hidden``: pictures with a dot in front of their
    name; ``dead``: names of pictures that lead to no file (broken links, pipes); ``unread``: folders that cannot be
    read, and why.
    """

    root: Path
    numbered: bool = False
    parts: list[Part] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def trained(self) -> list[Part]:
        """The folders whose pictures are trained."""
        return [part for part in self.parts if part.reason is None]

    def left_out(self, *, inner: bool = True, hint: str = "", apart: Sequence[Path] = ()) -> list[str]:
        """What is not trained and why, a line for each reason. Without ``inner``, pictures in folders inside a
        concept's folder are not told; ``hint`` is put behind their line. ``apart``: folders that have a use of their
        own, as masks and regularisation pictures have, of which nothing is told.
        """
        counts = Counter[str]()
        used = [folder.resolve() for folder in apart]
        for part in self.parts:
            if any(part.path.resolve().is_relative_to(folder) for folder in used):
                continue
            held = [*part.pictures, *(part.masks if part.reason == _MASKS else ())]
            if part.reason is not None and held and (inner or not part.is_inner):
                counts[part.reason] += len(held)
        lines = [
            f"{_pictures(count)} {reason}{hint if reason == _INNER else ''}"
            for reason, count in counts.items()
        ]
        return [*lines, *self.passed_by()]

    def passed_by(self) -> list[str]:
        """What is no picture to train wherever it lies: a line for each kind."""
        lines = []
        if self.aside:
            names = ", ".join(sorted(self.aside))
            lines.append(
                f"{_pictures(self.aside.total())} in folders that are no part of a dataset ({names})"
            )
        masks = [name for part in self.parts if part.reason != _MASKS for name in part.masks]
        for lost, what in (
            (self.hidden, "hidden by a dot in front of the name"),
            (self.dead, "whose name leads to no file"),
        ):
            lines += [f"{_pictures(len(lost))} {what} ({few_of(sorted(lost))})"] if lost else []
        if masks:
            lines.append(
                f"{len(masks)} mask{'s' * (len(masks) != 1)} beside the pictures ({few_of(sorted(masks))})"
            )
        return [*lines, *self._other_formats()]

    def linked(self) -> list[str]:
        """What lies in folders that are links, for tools that change nothing behind a link: a line for each."""
        return [
            _behind_link(part.path, len(part.pictures))
            for part in self.parts
            if part.path != self.root and part.path.is_symlink() and part.pictures
        ]

    def _other_formats(self) -> Iterator[str]:
        kinds: Counter[str] = Counter()
        for part in self.trained:
            kinds.update(kind for name in part.names if (kind := strange_kind(part.path / name)))
        if kinds:
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            yield f"{_pictures(kinds.total())} of kinds that are not trained ({listed}): convert them to png"


def survey_one(folder: Path) -> Survey:
    """One folder as if all of it were trained and no folder were in it. Raises InputError if it cannot be read."""
    surveyed = Survey(folder, numbered=True)
    surveyed.parts.append(Part(folder, _names(folder, surveyed), folder.name, folder))
    return surveyed


def notes_of(folder: Path, *, recursive: bool, alone: str) -> list[str]:
    """What a tool that works on a folder's captions should say of it: what is not trained, and what is ``alone``
    ("not tagged"), because it lies in folders that are not looked into or behind a link.
    """
    if recursive:
        try:
            laid = survey(folder)
        except InputError as error:
            return [str(error)]  # a name that matters where it is trained
        lines, apart = laid.left_out() if laid.numbered else laid.passed_by(), laid.linked()
    else:
        lines = survey_one(folder).passed_by()
        counts = {path: _count_inside(path) for path in subfolders(folder)}
        apart = [_behind_link(path, count) for path, count in counts.items() if count and path.is_symlink()]
        inside = sum(count for path, count in counts.items() if not path.is_symlink())
        apart += [f"{_pictures(inside)} in folders inside (--recursive takes them in)"] * bool(inside)
    return [*(f"not trained: {line}" for line in lines), *(f"{alone}: {line}" for line in apart)]


def _behind_link(path: Path, count: int) -> str:
    return f"{_pictures(count)} in '{path.name}', a link to a folder: name that folder itself"


def _count_inside(folder: Path) -> int:
    """How many pictures lie in a folder and those in it, those of other programs left out."""
    count = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_left_out(name)]
        count += sum(_is_picture(name) and not is_left_out(name) for name in names)
    return count


def survey(root: Path) -> Survey:
    """All folders of a dataset, as the trainer has them. Raises InputError if ``root`` cannot be read, and for a folder
    that asks for more than ``MOST_REPEATS``.
    """
    surveyed = Survey(root)
    inside = subfolders(root)
    numbers = {path: as_repeat_folder(path) for path in inside}
    own = None if any(numbers.values()) else as_repeat_folder(root.resolve())
    surveyed.numbered = own is not None or any(numbers.values())
    loose = _names(root, surveyed)
    children = [(path, _names(path, surveyed)) for path in inside]
    crowd = any(Part(path, names, "", path).pictures for path, names in children)
    surveyed.parts.append(
        Part(
            root,
            loose,
            concept_of(root.name or root.resolve().name),
            root,
            own.repeats if own else None,
            None if own or not (crowd or surveyed.numbered) else "loose beside the concepts' folders",
        )
    )
    for path, names in children:
        number = numbers[path]
        reason = _reason(path, number, numbered=surveyed.numbered, inner=own is not None)
        top = surveyed.parts[0] if own else Part(path, names, concept_of(path.name), path)
        repeats = number.repeats if number else None
        surveyed.parts.append(Part(path, names, top.concept, top.path, repeats, reason))
        surveyed.parts += _deeper(path, top, reason or _INNER, surveyed)
    return surveyed


def _reason(path: Path, number: RepeatFolder | None, *, numbered: bool, inner: bool) -> str | None:
    if path.name.lower() in MASK_FOLDERS:
        return _MASKS
    if inner:
        return _INNER
    if is_switched_off(path.name):
        return f"in '{path.name}', whose name asks for 0 repeats"
    if numbered and number is None:
        repeats, name = _with_repeats(path.name)
        return f"in '{path.name}', which has no number of repeats in front (rename it to '{repeats}_{name}')"
    return None


_INNER = "in folders inside a concept's folder"
_MASKS = "in a folder of masks"


def _deeper(folder: Path, top: Part, outer: str, surveyed: Survey) -> Iterator[Part]:
    """The folders inside a concept's folder. Links are not followed here, so there is an end. ``outer``: why they are
    not trained; inside a folder that is left out itself, for the same reason."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return  # its files could not be listed either, which is told
    for path in inside:
        if not is_left_out(path.name):
            reason = _MASKS if path.name.lower() in MASK_FOLDERS else outer
            yield Part(path, _names(path, surveyed), top.concept, top.path, None, reason)
            yield from _deeper(path, top, reason, surveyed)


def _names(folder: Path, surveyed: Survey) -> tuple[str, ...]:
    """The files of a folder that are not hidden; what lies in folders that are left out is counted."""
    try:
        with os.scandir(folder) as entries:
            rows = [(entry.name, _kind(entry)) for entry in entries]
    except OSError as error:
        if folder == surveyed.root:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
        surveyed.unread.append(f"{folder}: cannot be read ({error.strerror})")
        return ()
    kept = []
    for name, kind in rows:
        if kind == "folder":
            if is_left_out(name) and not (folder / name).is_symlink():
                count = _count_pictures(folder / name)
                surveyed.aside.update({name: count} if count else {})
        elif not is_left_out(name):
            if kind == "none" and _is_picture(name):
                surveyed.dead.append(name)
            else:
                kept.append(name)
        elif _is_picture(name) and kind == "file" and not name.startswith(_FORK):
            surveyed.hidden.append(name)
    return tuple(sorted(kept))


def _kind(entry: os.DirEntry[str]) -> str:
    """``folder``, ``file``, or ``none`` of both: a broken link, a pipe."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "none"
    except OSError:  # a link to itself
        return "none"


def _count_pictures(folder: Path) -> int:
    return sum(_is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _is_picture(name: str) -> bool:
    return split_suffix(name)[1].lower() in IMAGE_SUFFIXES


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether something that stands in a folder is a folder itself, links followed."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def few_of(names: Sequence[str]) -> str:
    """Names in a line of a message: the first ones, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
