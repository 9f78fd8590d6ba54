"""Captions that lie in the pictures themselves: prompts of image generators, keywords in XMP.

A1111 and its kin write ``parameters`` into a PNG, or EXIF's UserComment into a JPEG or WebP; ComfyUI writes its graph
as ``prompt``; photo managers write XMP into the picture or beside it (``a.png.xmp``, ``a.xmp``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lorapipe_engine.errors import InputError

_NETWORK = re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>")
_END = re.compile(r"^(?:Negative prompt|Steps):", re.MULTILINE)
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_DEPTH = 50  # links of a graph that are followed
_MOST_XMP = 1 << 22  # bytes


def read_embedded(path: Path) -> str | None:
    """The caption in a picture, None where there is none: keywords first, then the prompt it was made with.

    Raises InputError for a file that is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.format == "PNG":
                picture.load()  # notes may stand behind the pixels
            info: dict[Any, Any] = dict(picture.info)
            comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a picture that can be read") from error
    texts = (
        *(read_xmp(data) for data in _xmp(path, info)),
        read_parameters(info.get("parameters") or _comment(comment)),
        read_graph(info.get("prompt")),
    )
    return next((text for text in texts if text), None)


def read_parameters(text: Any) -> str | None:
    """The prompt of A1111's parameters, without the negative one, the settings, and networks (``<lora:x:1>``)."""
    if not isinstance(text, str):
        return None
    end = _END.search(text)
    prompt = _NETWORK.sub("", text[: end.start()] if end else text)
    return " ".join(prompt.split()) or None


def read_graph(text: Any) -> str | None:
    """The positive prompt in a ComfyUI graph: what the first sampler's ``positive`` leads to."""
    try:
        graph = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(graph, dict):
        return None
    for node in graph.values():
        inputs = _inputs(node)
        if "positive" in inputs and (found := _follow(graph, inputs["positive"], 0)):
            return " ".join(found.split())
    return None


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _follow(graph: Mapping[str, Any], link: Any, depth: int) -> str | None:
    """The text at the end of a link ``[node, output]``."""
    if isinstance(link, str):
        return link
    if depth > _DEPTH or not isinstance(link, list) or not link:
        return None
    inputs = _inputs(graph.get(str(link[0])))
    names = ("text", "text_g", "prompt", "string", "positive", "conditioning", "conditioning_1")
    wanted = (inputs[name] for name in names if name in inputs)
    return next((found for one in wanted if (found := _follow(graph, one, depth + 1))), None)


def _comment(data: Any) -> str | None:
    """EXIF's UserComment: eight letters that name the encoding, then text."""
    if isinstance(data, str):
        return data
    if not isinstance(data, bytes) or len(data) <= 8:
        return None
    kind, rest = data[:8], data[8:]
    if not kind.startswith(b"UNICODE"):
        return rest.decode("utf-8", "replace").strip("\0")
    # A1111 writes big endian, others little; ASCII letters tell.
    order = "utf-16-be" if rest[:1] == b"\0" else "utf-16-le"
    return rest.decode(order, "replace").strip("\0")


def read_xmp(data: bytes | str) -> str | None:
    """The keywords (``dc:subject``) of XMP as tags, else its description."""
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > _MOST_XMP or b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        return None
    try:
        root = ElementTree.fromstring(raw.strip(b"\0 \r\n\t"))
    except ElementTree.ParseError:
        return None
    for name in ("subject", "description"):
        for element in root.iter(f"{_DC}{name}"):
            words = [(item.text or "").strip() for item in element.iter(f"{_RDF}li")]
            if found := [word.replace(",", "") if name == "subject" else word for word in words if word]:
                return ", ".join(found) if name == "subject" else found[0]
    return None


def _xmp(path: Path, info: Mapping[str, Any]) -> Iterator[bytes | str]:
    """XMP beside the picture, then the one in it."""
    for place in (path.with_name(f"{path.name}.xmp"), path.with_suffix(".xmp")):
        try:
            yield place.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror})") from error
    for name in ("xmp", "XML:com.adobe.xmp"):
        if isinstance(info.get(name), bytes | str):
            yield info[name]
