"""Captions from sidecars: which picture a post belongs to, and the tags taken of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.captions.tags import with_spaces
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.sidecars import read_sidecar
from lorapipe_dataset.sidecars.post import Post
from lorapipe_dataset.texts.vocabulary import canonical
from lorapipe_engine.errors import LoraError


@dataclass
class Pictures:
    """The pictures of a folder, by name, by stem, and in order."""

    paths: list[Path]
    _by_name: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            self._by_name.setdefault(path.stem, path)
        for path in self.paths:
            self._by_name[path.name] = path

    def find(self, names: Iterable[str]) -> Path | None:
        """The picture with the first of the names that one has, else with an MD5 in its name."""
        names = list(names)
        for name in names:
            if name in self._by_name:
                return self._by_name[name]
        sums = [name for name in names if len(name) == 32 and all(c in "0123456789abcdef" for c in name)]
        return next((path for md5 in sums for path in self.paths if md5 in path.name), None)


@dataclass(frozen=True)
class Match:
    """A sidecar's post with its picture (None where the folder has none for it); ``error`` if it cannot be read."""

    sidecar: Path
    post: Post | None = None
    picture: Path | None = None
    error: str | None = None


def read_matches(sidecar: Path, pictures: Pictures, root: Path) -> Iterator[Match]:
    """The posts of a sidecar below ``root`` and their pictures."""
    try:
        posts = read_sidecar(sidecar, root)
    except LoraError as error:
        yield Match(sidecar, error=str(error))
        return
    for post in posts:
        yield Match(sidecar, post, pictures.find(post.names))


def post_caption(post: Post, options: Options) -> tuple[str, Facts]:
    """A post as a caption: the tags of the wanted categories in their order, and the rating if it is wanted."""
    tags = post.listed(options.categories)
    facts = Facts({canonical(tag): name for name in post.tags for tag in post.tags[name]})
    rating = post.rating if options.rules.rating in ("first", "last") else None
    if options.rules.spelling == "keep":
        # Sites spell tags with underscores; captions have spaces.
        tags = list(map(with_spaces, tags))
    # A comma in a tag would make two of it.
    words = [tag.replace(options.rules.separators[0], "") for tag in (*tags, *([rating] if rating else ()))]
    return options.rules.join.join(words), facts
