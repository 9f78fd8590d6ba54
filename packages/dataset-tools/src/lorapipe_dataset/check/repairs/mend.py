"""What ``--fix`` would do: new texts of captions, files to remove, files to rename. Nothing is written here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.findings import Finding
from lorapipe_dataset.check.pictures.dataset import Dataset, Picture
from lorapipe_dataset.clean.captions.tags import MARK, join_caption, split_caption
from lorapipe_dataset.texts.vocabulary import canonical, rating_of
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.links import read_within
from lorapipe_engine.pictures.captions import caption_lines, decode_caption

Tags = list[str]


@dataclass
class Repairs:
    """Changes to make, each file in one of them. ``texts`` are captions' bytes and their new texts, ``renamed`` and
    ``copies`` are (from, to). ``left``: captions that are no longer as the check saw them, so no change is made.
    """

    texts: dict[Path, tuple[bytes, str]] = field(default_factory=dict)
    removed: list[Path] = field(default_factory=list)
    renamed: list[tuple[Path, Path]] = field(default_factory=list)
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)

    def by_folder(self) -> dict[Path, Repairs]:
        """The changes of each folder; none leads from one to another."""
        parts: dict[Path, Repairs] = {}
        for path, text in self.texts.items():
            parts.setdefault(path.parent, Repairs()).texts[path] = text
        for path in self.removed:
            parts.setdefault(path.parent, Repairs()).removed.append(path)
        for pair in self.renamed:
            parts.setdefault(pair[0].parent, Repairs()).renamed.append(pair)
        for pair in self.copies:
            parts.setdefault(pair[0].parent, Repairs()).copies.append(pair)
        return parts

    def as_record(self) -> dict[str, Any]:
        """The changes as JSON."""
        return {
            "rewritten": {str(path): new for path, (_, new) in self.texts.items()},
            "removed": [str(path) for path in self.removed],
            "renamed": {str(old): str(new) for old, new in self.renamed},
            "copied": {str(new): str(old) for old, new in self.copies},
            "left": [str(path) for path in self.left],
        }

    def __bool__(self) -> bool:
        return bool(self.texts or self.removed or self.renamed or self.copies)


def plan_repairs(dataset: Dataset, findings: Iterable[Finding], rules: Sequence[str]) -> Repairs:
    """The changes that mend the findings of ``rules``, in that order."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule.id, []).append(finding)
    desk = _Desk(dataset)
    for rule in rules:
        for finding in by_rule.get(rule, ()):
            _REPAIRS[rule](desk, finding)
    return desk.repairs()


class _Desk:
    """The captions being worked on, and the files that go or get another name."""

    def __init__(self, dataset: Dataset) -> None:
        self.pictures = {picture.path: picture for picture in dataset.pictures}
        self.captions: dict[Path, Tags] = {}
        self.joined: set[Path] = set()
        self.read: dict[Path, tuple[bytes, list[str]]] = {}
        self.left: dict[Path, None] = {}
        self.gone: dict[Path, None] = {}
        self.renamed: dict[Path, Path] = {}
        self.copies: dict[Path, Path] = {}
        names = [picture.path for picture in dataset.pictures]
        self.taken = {_folded(path) for path in [*names, *dataset.others, *dataset.masks]}
        self.real: dict[Path, str] = {}
        known = [one.caption_path for one in dataset.pictures if one.caption_path and one.caption is not None]
        self.owners = {self.place(path): path for path in known if not path.is_symlink()}

    def place(self, path: Path) -> str:
        """Where a file lies that other names may lead to."""
        if path.is_symlink():
            return os.path.realpath(path)
        if path.parent not in self.real:
            self.real[path.parent] = os.path.realpath(path.parent)
        return os.path.join(self.real[path.parent], path.name)  # noqa: PTH118 - as realpath has it

    def file_of(self, caption: Path) -> Path:
        """The caption itself, or that of another picture which it is a link to: it is written once, for both."""
        return self.owners.get(self.place(caption), caption)

    def edit(self, finding: Finding, change: Callable[[Tags, Mapping[str, Any]], Tags]) -> None:
        """Change the tags of each picture's caption."""
        for path in finding.paths:
            picture = self.pictures.get(path)
            if picture is not None and picture.caption is not None and (current := self.seen(picture)):
                caption, _ = current
                self.captions[caption] = change(
                    list(self.captions.get(caption, picture.pieces)), finding.data
                )

    def seen(self, picture: Picture) -> tuple[Path, list[str]] | None:
        """The file of a picture's caption and its lines; None where it has none, or no longer the one that the check
        saw."""
        if picture.caption_path is None:
            return None
        caption = self.file_of(picture.caption_path)
        try:
            _, lines = self.held(picture.caption_path, picture.place.root)
            is_seen = "".join(lines[:1]) == picture.caption and len(lines) == picture.lines
        except (LoraError, OSError):
            is_seen = False
        if not is_seen:
            self.left[caption] = None
            return None
        return caption, lines

    def held(self, path: Path, root: Path | None) -> tuple[bytes, list[str]]:
        """A caption's bytes and its lines, of one reading. Raises LoraError or OSError."""
        if path not in self.read:
            data = read_within(path, root)
            self.read[path] = data, caption_lines(decode_caption(data, path))
        return self.read[path]

    def remove(self, path: Path) -> None:
        """Let a file go; with a picture its captions, unless another picture has them."""
        self.gone[path] = None
        picture = self.pictures.get(path)
        for caption in () if picture is None else picture.captions:
            if all(one.path in self.gone for one in self.pictures.values() if caption in one.captions):
                self.gone[caption] = None

    def rename(self, picture: Picture, *, share: bool) -> None:
        """Give a picture a free name, and its captions too; ``share``: another one keeps the caption, so copy it."""
        number = 2
        while _folded(path := picture.path.with_stem(f"{picture.path.stem}_{number}")) in self.taken:
            number += 1
        self.taken.add(_folded(path))
        self.renamed[picture.path] = path
        for caption in picture.captions[:1] if share else picture.captions:
            named = caption.stem == picture.path.name  # a.png.txt
            target = path.with_name(f"{path.name if named else path.stem}{caption.suffix}")
            if share:
                self.copies[target] = caption
            else:
                self.renamed[caption] = target

    def repairs(self) -> Repairs:
        """What is to be done in the end; a file that goes is not edited first."""
        texts = {link: self.text_of(link, picture) for link, picture in self.left_behind()}
        for path, tags in self.captions.items():
            picture = next(p for p in self.pictures.values() if p.caption_path == path)
            if path not in self.gone and (tags != picture.pieces or path in self.joined):
                texts[path] = self.text_of(path, picture)
        renamed = [(old, new) for old, new in self.renamed.items() if old not in self.gone]
        copies = [(old, new) for new, old in self.copies.items() if old not in self.gone]
        return Repairs(
            texts, list(self.gone), renamed, copies, [path for path in self.left if path not in self.gone]
        )

    def text_of(self, path: Path, picture: Picture) -> tuple[bytes, str]:
        """The bytes of a caption, and its text as edited."""
        data, lines = self.held(path, picture.place.root)
        if (caption := self.file_of(path)) in self.captions:
            rest = [] if caption in self.joined else lines[1:]
            lines = [join_caption(self.captions[caption], ", "), *rest]
        return data, "\n".join(lines) + "\n"

    def left_behind(self) -> Iterator[tuple[Path, Picture]]:
        """The captions that stay and are links to files that go or get another name: they become files of their own."""
        going = {self.place(path) for path in [*self.gone, *self.renamed] if not path.is_symlink()}
        for picture in self.pictures.values() if going else ():
            link = picture.caption_path
            if link is None or picture.caption is None or link in self.gone or not link.is_symlink():
                continue
            if self.place(link) in going:
                yield link, picture


def _folded(path: Path) -> tuple[Path, str]:
    """What two files of one caption share on any system."""
    return path.parent, path.stem.casefold()


# -------------------------------------------------------------------------------- tags


def _with_trigger(tags: Tags, data: Mapping[str, Any]) -> Tags:
    trigger = str(data["trigger"])
    rest = [tag for tag in tags if canonical(tag) != canonical(trigger)]
    # A mark that has nothing in front of it any more has the trigger there now.
    return [trigger, *rest]


def _renamed(key: str) -> Callable[[Tags, Mapping[str, Any]], Tags]:
    def change(tags: Tags, data: Mapping[str, Any]) -> Tags:
        return [_spelt_like(tag, str(data[key])) if canonical(tag) == data["tag"] else tag for tag in tags]

    return change


def _spelt_like(old: str, new: str) -> str:
    """``new`` with underscores and escaped brackets where ``old`` has them."""
    if "_" in old:
        new = new.replace(" ", "_")
    if "\\(" in old:
        new = new.replace("(", "\\(").replace(")", "\\)")
    return new


def _without(tags: Tags, data: Mapping[str, Any]) -> Tags:
    return [tag for tag in tags if canonical(tag) != data["tag"]]


def _single(tags: Tags, _data: Mapping[str, Any]) -> Tags:
    seen: set[str] = set()
    single = []
    for tag in tags:
        key = canonical(tag)
        if tag == MARK or key not in seen:
            single.append(tag)
        seen.add(key)
    return single


def _unrated(tags: Tags, _data: Mapping[str, Any]) -> Tags:
    return [tag for tag in tags if rating_of(canonical(tag)) is None]


def _editing(change: Callable[[Tags, Mapping[str, Any]], Tags]) -> Callable[[_Desk, Finding], None]:
    return lambda desk, finding: desk.edit(finding, change)


# -------------------------------------------------------------------------------- lines and files


def _join_lines(desk: _Desk, finding: Finding) -> None:
    for picture in (desk.pictures[path] for path in finding.paths):
        if (current := desk.seen(picture)) and current[0] not in desk.joined:
            caption, lines = current
            rest = [tag for line in lines[1:] for tag in split_caption(line, (",",))]
            desk.captions[caption] = [*desk.captions.get(caption, picture.pieces), *rest]
            desk.joined.add(caption)


def _remove_all(desk: _Desk, finding: Finding) -> None:
    for path in finding.paths:
        desk.remove(path)


def _keep_first(desk: _Desk, finding: Finding) -> None:
    for path in finding.paths[1:]:
        desk.remove(path)


def _keep_apart(desk: _Desk, finding: Finding) -> None:
    first, *others = (desk.pictures[path] for path in finding.paths)
    for picture in others:
        desk.rename(picture, share=picture.caption_path == first.caption_path)


_REPAIRS: dict[str, Callable[[_Desk, Finding], None]] = {
    "unreadable": _remove_all,
    "small": _remove_all,
    "orphan-caption": _remove_all,
    "orphan-cache": _remove_all,
    "orphan-mask": _remove_all,
    "duplicate": _keep_first,
    "near-duplicate": _keep_first,
    "stem-clash": _keep_apart,
    "case-clash": _keep_apart,
    "several-lines": _join_lines,
    "no-trigger": _editing(_with_trigger),
    "trigger-not-first": _editing(_with_trigger),
    "misspelt-tag": _editing(_renamed("nearest")),
    "alias": _editing(_renamed("new")),
    "duplicate-tag": _editing(_single),
    "invariant-tag": _editing(_without),
    "rating-mix": _editing(_unrated),
}
FIXABLE = frozenset(_REPAIRS)
