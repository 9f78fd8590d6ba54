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
_CHANGED = "no longer as it was checked, so it is left alone; run this again"


@dataclass(frozen=True)
class Copy:
    """A caption for another picture. ``data``: what ``source`` holds in the end; ``before``: what ``target`` holds now,
    None where there is no such file.
    """

    source: Path
    target: Path
    data: bytes
    before: bytes | None = None


@dataclass
class Repairs:
    """Changes to make, each file in one of them. ``texts`` are captions' bytes and their new texts, ``renamed`` are
    (from, to). ``left``: files for which no change is made, and why.
    """

    texts: dict[Path, tuple[bytes, str]] = field(default_factory=dict)
    removed: list[Path] = field(default_factory=list)
    renamed: list[tuple[Path, Path]] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)

    def by_folder(self) -> dict[Path, Repairs]:
        """The changes of each folder. Those that get captions come first: they may be of files that go elsewhere."""
        parts: dict[Path, Repairs] = {}
        for copy in self.copies:
            parts.setdefault(copy.target.parent, Repairs()).copies.append(copy)
        for path, text in self.texts.items():
            parts.setdefault(path.parent, Repairs()).texts[path] = text
        for path in self.removed:
            parts.setdefault(path.parent, Repairs()).removed.append(path)
        for pair in self.renamed:
            parts.setdefault(pair[0].parent, Repairs()).renamed.append(pair)
        return parts

    def as_record(self) -> dict[str, Any]:
        """The changes as JSON."""
        return {
            "rewritten": {str(path): new for path, (_, new) in self.texts.items()},
            "removed": [str(path) for path in self.removed],
            "renamed": {str(old): str(new) for old, new in self.renamed},
            "copied": {str(copy.target): str(copy.source) for copy in self.copies},
            "left": [str(path) for path in self.left],
        }

    def __bool__(self) -> bool:
        return bool(self.texts or self.removed or self.renamed or self.copies)


def plan_repairs(dataset: Dataset, findings: Iterable[Finding], rules: Sequence[str]) -> Repairs:
    """The changes that mend the findings of ``rules``, in that order; names are changed last, of what stays."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule.id, []).append(finding)
    desk = _Desk(dataset)
    for rule in sorted(dict.fromkeys(rules), key=_RENAMING.__contains__):
        for finding in by_rule.get(rule, ()):
            _REPAIRS[rule](desk, finding)
    return desk.repairs()


class _Desk:
    """The captions being worked on, and the files that go or get another name."""

    def __init__(self, dataset: Dataset) -> None:
        self.pictures = {picture.path: picture for picture in dataset.pictures}
        self.captions: dict[Path, Tags] = {}
        self.joined: set[Path] = set()
        self.read: dict[Path, bytes] = {}
        self.left: dict[Path, str] = {}
        self.gone: dict[Path, None] = {}
        self.renamed: dict[Path, Path] = {}
        self.copies: dict[Path, tuple[Path, Picture]] = {}  # target: the caption and whose it is
        self.given: dict[Path, Picture] = {}  # picture without words: the one whose caption it gets
        self.users: dict[Path, list[Picture]] = {}
        for picture in dataset.pictures:
            for caption in picture.captions:
                self.users.setdefault(caption, []).append(picture)
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
            self.left[caption] = _CHANGED
            return None
        return caption, lines

    def held(self, path: Path, root: Path | None) -> tuple[bytes, list[str]]:
        """A caption's bytes and its lines, of one reading. Raises LoraError or OSError."""
        data = self.bytes_of(path, root)
        return data, caption_lines(decode_caption(data, path))

    def bytes_of(self, path: Path, root: Path | None) -> bytes:
        """A caption's bytes, of one reading. Raises LoraError or OSError."""
        if path not in self.read:
            self.read[path] = read_within(path, root)
        return self.read[path]

    def words_of(self, picture: Picture) -> bytes | None:
        """The bytes of a picture's caption, in any encoding; None where there is none that can be read."""
        if picture.caption_path is None:
            return None
        try:
            return self.bytes_of(picture.caption_path, picture.place.root)
        except (LoraError, OSError):
            return None

    def remove(self, path: Path) -> None:
        """Let a file go; with a picture its captions, unless another picture has them."""
        self.gone[path] = None
        picture = self.pictures.get(path)
        for caption in () if picture is None else picture.captions:
            if all(one.path in self.gone for one in self.users[caption]):
                self.gone[caption] = None

    def keep_first(self, paths: Sequence[Path]) -> None:
        """Let all but the first of one picture's copies go. One without words gets theirs; copies whose words it cannot
        get stay."""
        kept, *copies = (self.pictures[path] for path in paths)
        worded = [one for one in copies if _has_words(one)]
        if worded and not _has_words(kept):
            giver = next((one for one in worded if (self.words_of(one) or b"").strip()), None)
            if giver is not None:
                self.given[kept.path] = giver
            for one in () if giver is not None else worded:
                self.left[one.path] = (
                    f"stays too: {kept.path.name} has no words, and the caption of this one cannot be copied to it"
                )
        for one in copies:
            if one.path not in self.left:
                self.remove(one.path)

    def rename(self, picture: Picture) -> None:
        """Give a picture a free name, and its captions too; the one that it shares with a picture which keeps its name
        is copied, and where that cannot be it keeps its own."""
        shared = [caption for caption in picture.captions if self.is_shared(caption, picture)]
        if picture.caption_path in shared and self.words_of(picture) is None:
            self.left[picture.path] = f"keeps its name: {picture.caption_path} cannot be read, to be copied"
            return
        number = 2
        while _folded(path := picture.path.with_stem(f"{picture.path.stem}_{number}")) in self.taken:
            number += 1
        self.taken.add(_folded(path))
        self.renamed[picture.path] = path
        for caption in picture.captions:
            named = caption.stem == picture.path.name  # a.png.txt
            target = path.with_name(f"{path.name if named else path.stem}{caption.suffix}")
            if caption not in shared:
                self.renamed[caption] = target
            elif caption == picture.caption_path:
                self.copies[target] = caption, picture

    def stays(self, picture: Picture) -> bool:
        """Whether a picture is to be there under the name that it has."""
        return picture.path not in self.gone and picture.path not in self.renamed

    def is_shared(self, caption: Path, picture: Picture) -> bool:
        """Whether a caption is that of another picture too, which stays."""
        return any(one is not picture and self.stays(one) for one in self.users[caption])

    def repairs(self) -> Repairs:
        """What is to be done in the end; a file that goes is not edited first."""
        texts = {link: self.text_of(link, picture) for link, picture in self.left_behind()}
        for path in self.captions:
            if path not in self.gone and self.is_edited(path):
                texts[path] = self.text_of(path, self.owner(path))
        copies = {
            target: Copy(source, target, self.end_of(source, picture))
            for target, (source, picture) in self.copies.items()
        }
        copies |= {copy.target: copy for copy in self.gifts()}
        renamed = [(old, new) for old, new in self.renamed.items() if old not in self.gone]
        left = {path: reason for path, reason in self.left.items() if path not in self.gone}
        return Repairs(texts, list(self.gone), renamed, list(copies.values()), left)

    def gifts(self) -> Iterator[Copy]:
        """The captions of copies that go, for the pictures without words that stay."""
        for path, giver in self.given.items():
            kept, source = self.pictures[path], giver.caption_path
            if path in self.gone or source is None:
                continue
            target = self.own_caption(kept, source.suffix)
            before = self.words_of(kept) if target == kept.caption_path else None
            yield Copy(source, target, self.end_of(source, giver), before)

    def own_caption(self, picture: Picture, suffix: str) -> Path:
        """The caption file of a picture alone: the one that it has, or the one to make."""
        caption = picture.caption_path
        if caption is not None and not self.is_shared(caption, picture):
            return caption  # written before it gets another name
        path = self.renamed.get(picture.path, picture.path)
        crowded = any(
            one is not picture and self.stays(one) and one.path.with_suffix("") == path.with_suffix("")
            for one in self.pictures.values()
        )
        return path.with_name(f"{path.name if crowded else path.stem}{caption.suffix if caption else suffix}")

    def is_edited(self, caption: Path) -> bool:
        """Whether a caption's words become others."""
        return caption in self.captions and (
            caption in self.joined or self.captions[caption] != self.owner(caption).pieces
        )

    def owner(self, caption: Path) -> Picture:
        """The first picture that reads a caption."""
        return next(picture for picture in self.users[caption] if picture.caption_path == caption)

    def end_of(self, caption: Path, picture: Picture) -> bytes:
        """What a caption holds in the end."""
        if self.is_edited(self.file_of(caption)):
            return self.text_of(caption, picture)[1].encode()
        return self.bytes_of(caption, picture.place.root)

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


def _has_words(picture: Picture) -> bool:
    """Whether a picture has a caption in which words may stand, read or not."""
    return bool(picture.caption or picture.trouble or picture.outside)


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
    desk.keep_first(finding.paths)


def _keep_apart(desk: _Desk, finding: Finding) -> None:
    staying = [picture for path in finding.paths if desk.stays(picture := desk.pictures[path])]
    for picture in staying[1:]:
        desk.rename(picture)


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
_RENAMING = frozenset({"stem-clash", "case-clash"})
