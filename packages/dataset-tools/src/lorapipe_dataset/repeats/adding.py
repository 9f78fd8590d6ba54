"""Adding to a tree that is there: what lies in it stays as it is, and what is new gives way to it."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorapipe_dataset.repeats.tree import Item, Layout, free_stem, text_of
from lorapipe_engine.errors import OutputError
from lorapipe_engine.pictures.captions import caption_suffixes
from lorapipe_engine.pictures.layout import concept_of


def folders_to_rename(new: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    """Old and new name of each folder among ``there`` whose concept comes with another number. Of several with one
    concept the first gets it, and none does where a folder of the new name is there.
    """
    names: dict[str, str] = {}
    for old in there:
        concept = concept_of(old)
        if concept == old or old in new:
            continue
        same = next((name for name in new if name.partition("_")[2] == concept), None)
        if same is not None and same not in there and same not in names.values():
            names[old] = same
    return names


def add_to(output: Path, layout: Layout) -> Layout:
    """The layout without what lies in ``output`` already, and with other names for pictures whose names are taken
    there. Raises OutputError where a file there cannot be read.
    """
    there = sorted(path.name for path in output.iterdir() if path.is_dir() and not path.is_symlink())
    old_names = {new: old for old, new in folders_to_rename(layout.folders, there).items()}
    folders: dict[str, _Folder] = {}
    items: list[Item] = []
    same: list[Path] = []
    kept: list[Path] = []
    renamed = layout.renamed
    for picture, caption in _pairs(layout.items):
        name = picture.target.parent.name
        if name not in folders:
            folders[name] = _Folder.of(output / old_names.get(name, name))
        folder = folders[name]
        stem, is_there = folder.choose(picture)
        renamed += stem != picture.target.stem
        target = picture.target.with_name(f"{stem}{picture.target.suffix}")
        if is_there:
            same.append(target)
        else:
            items.append(replace(picture, target=target))
        if caption is None:
            continue
        target = caption.target.with_name(f"{stem}{caption.target.suffix}")
        names = [f"{stem}{suffix}" for suffix in caption_suffixes(caption.target.suffix)]
        own = next((name for name in names if folder.has(name)), None)
        if own is None:
            items.append(replace(caption, target=target))
            continue
        same.append(target.with_name(own))
        if not folder.holds(own, caption):
            kept.append(output / same[-1])
    return replace(
        layout, items=tuple(items), renamed=renamed, there=tuple(same), kept=tuple(kept), old_names=old_names
    )


def _pairs(items: Sequence[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each picture with its caption, which comes behind it."""
    for number, item in enumerate(items):
        if not item.is_caption:
            behind = items[number + 1] if number + 1 < len(items) else None
            yield item, behind if behind is not None and behind.is_caption else None


@dataclass
class _Folder:
    """A folder of the tree that is there: names of its files, and stems that this run has used."""

    path: Path
    names: Mapping[str, Path]
    stems: frozenset[str]
    used: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, path: Path) -> _Folder:
        """A folder, empty where there is none."""
        files = list(path.iterdir()) if path.is_dir() else []
        return cls(
            path,
            {file.name.casefold(): file for file in files},
            frozenset(file.stem.casefold() for file in files),
        )

    def has(self, name: str) -> bool:
        """Whether a file of the name is there, in any case of its letters."""
        return name.casefold() in self.names

    def choose(self, picture: Item) -> tuple[str, bool]:
        """The stem that a picture has in the folder, and whether it lies there already."""
        taken = set(self.used)
        while True:
            stem = free_stem(picture.target.stem, taken)
            is_there = self.holds(f"{stem}{picture.target.suffix}", picture)
            if is_there or stem.casefold() not in self.stems:
                self.used.add(stem.casefold())
                return stem, is_there

    def holds(self, name: str, item: Item) -> bool:
        """Whether a file of the name has the bytes that ``item`` will have."""
        path = self.names.get(name.casefold())
        if path is None or not path.is_file():
            return False
        try:
            if item.text is not None:
                return path.read_bytes() == text_of(item.text)
            return item.source is not None and filecmp.cmp(item.source, path, shallow=False)
        except OSError as error:
            raise OutputError(f"{path}: cannot be compared with what is new: {error.strerror}") from error
