"""Readers of what other programs write beside pictures: one module for each kind, and the list of formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lorapipe_dataset.sidecars.booru import read_posts
from lorapipe_dataset.sidecars.documents import is_kohya, parse
from lorapipe_dataset.sidecars.post import Post
from lorapipe_dataset.sidecars.texts import read_grabber, read_hydrus, read_spaced
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import read_within

# JSON with posts; they are told apart by their fields, so each name reads all of them.
POST_FORMATS = ("booru", "danbooru", "gelbooru", "moebooru", "e621", "gallery-dl")
TEXT_FORMATS: Mapping[str, Callable[[str], Post]] = {
    "grabber": read_grabber,
    "hydrus": read_hydrus,
    "spaced": read_spaced,
}
DOCUMENT_FORMATS = ("kohya", "metadata", "csv")
PICTURE_FORMAT = "picture"  # captions in the pictures themselves
FORMATS = ("txt", *TEXT_FORMATS, *POST_FORMATS, *DOCUMENT_FORMATS, PICTURE_FORMAT)


def read_sidecar(path: Path, root: Path | None = None) -> list[Post]:
    """The posts in a JSON sidecar; a single one is also called by the sidecar's own name (``a.png.json``, ``a.json``).

    Raises InputError for a file without posts, and for a link out of ``root`` (by default its folder).
    """
    try:
        text = read_within(path, root).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    posts = list(read_posts(parse(text, f"{path}: ")))
    if not posts:
        raise InputError(f"{path}: no post with tags in it")
    if len(posts) == 1:
        return [Post(posts[0].tags, posts[0].rating, (path.stem, *posts[0].names))]
    return posts


def sniff_document(path: Path) -> str | None:
    """``kohya``, ``metadata`` or ``csv`` for a file of many captions, None for one of posts. Raises InputError."""
    if path.suffix.lower() in (".jsonl", ".csv"):
        return {".jsonl": "metadata", ".csv": "csv"}[path.suffix.lower()]
    try:
        text = read_within(path, None).decode("utf-8-sig", "replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return "kohya" if is_kohya(parse(text, f"{path}: ")) else None
