"""Posts as JSON: Danbooru, Gelbooru, Moebooru, e621, and gallery-dl's sidecars, which hold a site's post.

The sites are told apart by their fields: ``tag_string_general`` is Danbooru's, ``tags`` by category e621's, ``tags``
as one text Gelbooru's and Moebooru's, ``tags_general`` what gallery-dl makes of any site's with ``"tags": true``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lorapipe_dataset.sidecars.post import Post, category_of, rating_word, split_words

_LISTS = ("post", "posts")
_URLS = ("file_url", "large_file_url", "image", "file_name", "filename")


def read_posts(data: Any) -> Iterator[Post]:
    """The posts in a file's JSON: one, a list, or a list under ``post`` or ``posts``. Others are passed over."""
    for item in _items(data):
        if (post := read_post(item)) is not None:
            yield post


def _items(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, list):
        for one in data:
            yield from _items(one)
    elif isinstance(data, dict):
        inner = next((data[name] for name in _LISTS if isinstance(data.get(name), list | dict)), None)
        if inner is None:
            yield data
        else:
            yield from _items(inner)


def read_post(item: Mapping[str, Any]) -> Post | None:
    """One post; None for something that has no tags."""
    tags: dict[str, list[str]] = {}
    for prefix in ("tag_string_", "tags_"):
        for name, value in item.items():
            category = category_of(name.removeprefix(prefix)) if name.startswith(prefix) else None
            if category and (words := _words(value)):
                tags.setdefault(category, []).extend(words)
    whole = item.get("tags")
    if not tags and isinstance(whole, dict):
        for name, value in whole.items():
            tags.setdefault(category_of(name) or "meta", []).extend(_words(value))
    elif not tags:
        words = _words(whole) or _words(item.get("tag_string"))
        # A colon comes after a category in some lists.
        for word in words:
            space, colon, rest = word.partition(":")
            category = category_of(space) if colon and rest else None
            tags.setdefault(category or "general", []).append(rest if category else word)
    if not any(tags.values()):
        return None
    danbooru = any(name.startswith("tag_string") for name in item)
    rating = rating_word(item.get("rating"), safe="sensitive" if danbooru else "safe")
    return Post(tags, rating, tuple(_names(item)))


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return split_words(value)
    if isinstance(value, Sequence):
        # Some lists have an object for each tag.
        named = (one.get("name") if isinstance(one, dict) else one for one in value)
        return [one.strip() for one in named if isinstance(one, str) and one.strip()]
    return []


def _names(item: Mapping[str, Any]) -> Iterator[str]:
    """What the picture may be called: by the file's name, its MD5, the post's number."""
    extension = item.get("extension") or item.get("file_ext")
    for name in _URLS:
        value = item.get(name)
        if isinstance(value, str) and value:
            stem = PurePosixPath(urlsplit(value).path).name
            if isinstance(extension, str) and not stem.endswith(f".{extension}"):
                yield f"{stem}.{extension}"
            yield stem
    file = item.get("file")
    for value in (item.get("md5"), file.get("md5") if isinstance(file, dict) else None, item.get("id")):
        if isinstance(value, str | int) and str(value):
            yield str(value)
