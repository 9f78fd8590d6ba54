"""Tags as text: Grabber's files, hydrus' sidecars, lists with spaces."""

from __future__ import annotations

from lorapipe_dataset.sidecars.post import Post, category_of, rating_word


def read_grabber(text: str) -> Post:
    """Grabber's tag files by the guide's template::

        %character:unsafe,separator=^,^ %, %general:unsafe,separator=^,^ %

    Characters and general tags are one list there; empty places and carets of a template that Grabber did not expand
    are left out.
    """
    pieces = text.replace("^,^", ",").replace("\n", ",").split(",")
    return Post({"general": [tag for tag in (piece.strip() for piece in pieces) if tag]})


def read_hydrus(text: str) -> Post:
    """Hydrus' sidecars: a tag in each line, ``namespace:tag`` where it has a namespace.

    ``series`` are copyrights, ``creator`` artists. Namespaces that say nothing of the picture's content, such as
    ``title`` or ``page``, are meta; a colon in a name (``re:zero``) is none. A single line with commas is a list:
    hydrus can be told to write that, and a caption that was made of a sidecar is one.
    """
    tags: dict[str, list[str]] = {}
    rating: str | None = None
    lines = text.strip().splitlines()
    for line in lines[0].split(",") if len(lines) == 1 else lines:
        space, colon, rest = line.strip().partition(":")
        if colon and space.lower() == "rating":
            rating = rating_word(rest)
            continue
        category = category_of(space) if colon and rest.strip() else None
        if category is None and colon and space.lower() in _ABOUT:
            category = "meta"
        name = rest.strip() if category else line.strip()
        if name:
            tags.setdefault(category or "general", []).append(name)
    return Post(tags, rating)


_ABOUT = frozenset(
    {"title", "page", "chapter", "volume", "source", "filename", "site", "url", "studio", "rating", "date"}
)


def read_spaced(text: str) -> Post:
    """Tags with spaces between them and underscores in them, as boorus show them. With commas they are the signs."""
    pieces = text.replace("\n", ",").split(",") if "," in text else text.split()
    return Post({"general": [tag for tag in (piece.strip() for piece in pieces) if tag]})
