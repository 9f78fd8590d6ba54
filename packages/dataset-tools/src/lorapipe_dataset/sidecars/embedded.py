"""Captions that lie in the pictures themselves: prompts of image generators, keywords in XMP.

A1111 and its kin write ``parameters`` into a PNG, or EXIF's UserComment into a JPEG or WebP; ComfyUI writes its graph
as ``prompt``; photo managers write XMP into the picture or beside it (``a.png.xmp``, ``a.xmp``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lorapipe_engine.command.json_text import BeyondJson, NoJson, parse_json
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import read_within
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.images import has_late_notes
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture
from lorapipe_engine.pictures.parameters import EXIF, USER_COMMENT, read_comment

_NETWORK = re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>")
_END = re.compile(r"^(?:Negative prompt|Steps):", re.MULTILINE)
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_MOST_XMP = 1 << 22  # bytes
_DEEPEST_XMP = 64  # elements in each other


def read_embedded(path: Path, root: Path | None = None) -> str | None:
    """The caption in a picture, None where there is none: keywords first, then the prompt it was made with.

    Raises InputError for a file that is no picture, for XMP and graphs that are larger or deeper than any program
    writes, and for XMP beside it that is a link out of ``root`` (by default its folder).
    """
    try:
        with open_picture(path) as picture:
            late = picture.format == "PNG" and has_late_notes(path)
            with GATE.room(picture.width * picture.height if late else 0):
                exif = exif_of(picture, late=late)
                if late:
                    picture.load()
            info: dict[Any, Any] = dict(picture.info)
            comment = exif.get_ifd(EXIF).get(USER_COMMENT)
    except PictureBound as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path}: not a picture that can be read") from error
    try:
        texts = (
            *(read_xmp(data) for data in _xmp(path, info, root)),
            read_parameters(info.get("parameters") or read_comment(comment)),
            read_graph(info.get("prompt")),
        )
    except TooMuch as error:
        raise InputError(f"{path}: {error}; no caption is read from it") from None
    return next((text for text in texts if text), None)


def read_parameters(text: Any) -> str | None:
    """The prompt of A1111's parameters, without the negative one, the settings, and networks (``<lora:x:1>``)."""
    if not isinstance(text, str):
        return None
    end = _END.search(text)
    prompt = _NETWORK.sub("", text[: end.start()] if end else text)
    return " ".join(prompt.split()) or None


def read_graph(text: Any) -> str | None:
    """The positive prompt in a ComfyUI graph: what the first sampler's ``positive`` leads to.

    Each node is looked at once, so a graph that leads in circles has no prompt. Raises TooMuch for a graph that cannot
    be read for its size.
    """
    try:
        graph = parse_json(text) if isinstance(text, str) else None
    except BeyondJson as error:
        raise TooMuch(f"its ComfyUI graph cannot be read ({error})") from None
    except NoJson:
        return None  # a prompt of another program
    if not isinstance(graph, dict):
        return None
    seen: set[str] = set()
    for node in graph.values():
        inputs = _inputs(node)
        if "positive" in inputs:
            prompt = _follow(graph, inputs["positive"], seen)
            if prompt:
                return " ".join(prompt.split())
    return None


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


_LINKS = ("text", "text_g", "prompt", "string", "positive", "conditioning", "conditioning_1")


def _follow(graph: Mapping[str, Any], link: Any, seen: set[str]) -> str | None:
    """The text at the end of a link ``[node, output]``: the first by the order of the inputs, depth first. Nodes that
    were ``seen`` led to none, and are not tried again.
    """
    waiting = [link]
    while waiting:
        link = waiting.pop()
        if isinstance(link, str):
            if link:
                return link
            continue
        if not isinstance(link, list) or not link or not isinstance(link[0], str | int):
            continue
        name = str(link[0])
        if name in seen:
            continue
        seen.add(name)
        inputs = _inputs(graph.get(name))
        waiting += [inputs[key] for key in reversed(_LINKS) if key in inputs]
    return None


class TooMuch(InputError):
    """Notes in a picture are larger or deeper than any program writes them."""


def read_xmp(data: bytes | str) -> str | None:
    """The keywords (``dc:subject``) of XMP as tags, else its description; None for what is no XMP,
    and for XMP with a document type, which may define entities.

    Raises TooMuch for XMP of more than 4 MiB, and for elements too deep in each other.
    """
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if len(raw) > _MOST_XMP:
        raise TooMuch(f"its XMP has more than {_MOST_XMP >> 20} MiB")
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        return None
    words = _Words()
    parser = ElementTree.XMLParser(target=words)
    try:
        parser.feed(raw.strip(b"\0 \r\n\t"))
        parser.close()
    except ElementTree.ParseError:
        return None
    tags = [word.replace(",", "") for word in words.of["subject"]]
    return ", ".join(tags) or next(iter(words.of["description"]), None)


class _Words:
    """Gathers the items of the first ``dc:subject`` and ``dc:description`` that have any, while XMP is parsed: no tree
    is made, and each letter is looked at once.
    """

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {"subject": [], "description": []}
        self._names = {f"{_DC}{name}": name for name in self.of}
        self._field: str | None = None
        self._depth = 0
        self._started = 0  # depth at which the field began
        self._text: list[str] | None = None

    def start(self, tag: str, _attributes: Mapping[str, str]) -> None:
        """An element begins."""
        self._depth += 1
        if self._depth > _DEEPEST_XMP:
            raise TooMuch(f"its XMP has more than {_DEEPEST_XMP} elements in each other")
        if self._field is None and not self.of.get(self._names.get(tag, ""), [""]):
            self._field, self._started = self._names[tag], self._depth
        elif self._field is not None and tag == f"{_RDF}li":
            self._text = []

    def data(self, text: str) -> None:
        """A piece of text."""
        if self._text is not None:
            self._text.append(text)

    def end(self, tag: str) -> None:
        """An element ends."""
        if self._text is not None and self._field is not None and tag == f"{_RDF}li":
            if word := "".join(self._text).strip():
                self.of[self._field].append(word)
            self._text = None
        if self._field is not None and self._depth == self._started:
            self._field = None
        self._depth -= 1

    def close(self) -> None:
        """The end of all."""


def _xmp(path: Path, info: Mapping[str, Any], root: Path | None) -> Iterator[bytes | str]:
    """XMP beside the picture, then the one in it."""
    for place in (path.with_name(f"{path.name}.xmp"), path.with_suffix(".xmp")):
        try:
            if place.stat().st_size > _MOST_XMP:
                raise TooMuch(f"{place.name} has more than {_MOST_XMP >> 20} MiB")
            yield read_within(place, root)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror})") from error
    for name in ("xmp", "XML:com.adobe.xmp"):
        if isinstance(info.get(name), bytes | str):
            yield info[name]
