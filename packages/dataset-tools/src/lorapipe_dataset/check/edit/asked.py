"""What the page asks for: the JSON of a request, looked at before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorapipe_dataset.clean.captions.steps.normalise import tidy
from lorapipe_dataset.clean.captions.tags import MARK, split_caption
from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import InputError

Action = Literal["add", "remove", "rename", "order", "move", "caption", "out"]
Where = Literal["front", "end"]
LONGEST = 1000  # letters of a tag
SHOWN = 40  # letters of a text in a label


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit of the pictures ``ids``. ``versions``: of each, the version of its caption that the page had.

    ``tags``: what is added or removed, or the whole new order. ``old`` and ``new``: of a tag that is renamed. ``tag``
    moves to ``where``. ``text`` is a whole caption, ``out`` whether pictures are left out.
    """

    action: Action
    ids: tuple[int, ...]
    versions: Mapping[int, str | None]
    tags: tuple[str, ...] = ()
    old: str = ""
    new: str = ""
    tag: str = ""
    where: Where = "end"
    text: str = ""
    out: bool = False

    def label(self, count: int) -> str:
        """What was done, in a line: ``rename solo to alone on 500 captions``."""
        captions = f"{count:,} caption{'s' * (count != 1)}"
        listed = _short(", ".join(self.tags))
        if self.action == "out":
            return f"{'leave out' if self.out else 'take in'} {count:,} picture{'s' * (count != 1)}"
        return {
            "add": f"add {listed} to {captions}",
            "remove": f"remove {listed} from {captions}",
            "rename": f"rename {_short(self.old)} to {_short(self.new)} on {captions}",
            "order": f"order the tags of {captions}",
            "move": f"move {_short(self.tag)} to the {self.where} of {captions}",
            "caption": f"write {captions} by hand",
        }[self.action]


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request. Raises InputError."""
    try:
        value = parse_json(body.decode())
    except (UnicodeDecodeError, NoJson) as error:
        raise InputError(f"the request is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError("the request is no JSON object")
    return value


def read_edit(data: Mapping[str, Any], count: int) -> Edit:
    """The edit that a request asks for, of one of ``count`` pictures or several. Raises InputError."""
    action = next((one for one in get_args(Action) if one == data.get("action")), None)
    if action is None:
        raise InputError(f"action: one of {', '.join(_PARTS)} is needed")
    ids = _ids(data.get("ids"), count)
    if action in ("order", "caption") and len(ids) != 1:
        raise InputError(f"{action}: one picture is needed, not {len(ids)}")
    versions = _versions(data, ids, needed=action != "out")
    return Edit(action=action, ids=ids, versions=versions, **_PARTS[action](data))


def _ids(value: Any, count: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("ids: a list of pictures is needed")
    for one in value:
        if type(one) is not int or not 0 <= one < count:
            raise InputError(f"ids: {str(one)[:SHOWN]!r} is no picture of this folder")
    return tuple(dict.fromkeys(value))


def _versions(data: Mapping[str, Any], ids: tuple[int, ...], *, needed: bool) -> dict[int, str | None]:
    """The versions of all pictures: what was not seen must not be overwritten."""
    if not needed:
        return {}
    value = data.get("versions")
    if not isinstance(value, dict):
        raise InputError("versions: an object with the version seen of each picture is needed")
    for one in ids:
        if str(one) not in value or not isinstance(value[str(one)], str | None):
            raise InputError(f"versions: picture {one} has none, so nothing was changed")
    return {one: value[str(one)] for one in ids}


def _of_tags(data: Mapping[str, Any]) -> dict[str, Any]:
    value = data.get("tags")
    if not isinstance(value, list):
        raise InputError("tags: a list is needed")
    tags = [piece for text in value for piece in split_caption(_line(text, "tags"), (",",))]
    if not tags:
        raise InputError("tags: there is none")
    if MARK in tags:
        raise InputError(f"tags: {MARK} is a mark between tags and none itself")
    return {"tags": tuple(dict.fromkeys(tags))}


def _of_added(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**_of_tags(data), "where": _where(data)}


def _of_names(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"old": _tag(data.get("from"), "from"), "new": _tag(data.get("to"), "to")}


def _of_order(data: Mapping[str, Any]) -> dict[str, Any]:
    value = data.get("tags")
    if not isinstance(value, list):
        raise InputError("tags: a list is needed")
    return {"tags": tuple(_line(text, "tags") for text in value)}


def _of_move(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"tag": _tag(data.get("tag"), "tag"), "where": _where(data)}


def _of_text(data: Mapping[str, Any]) -> dict[str, Any]:
    text = data.get("text")
    if not isinstance(text, str):
        raise InputError("text: a text is needed")
    return {"text": text.replace("\0", "")}


def _of_out(data: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(data.get("out"), bool):
        raise InputError("out: true or false is needed")
    return {"out": data["out"]}


_PARTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "add": _of_added,
    "remove": _of_tags,
    "rename": _of_names,
    "order": _of_order,
    "move": _of_move,
    "caption": _of_text,
    "out": _of_out,
}


def _where(data: Mapping[str, Any]) -> Where:
    value = data.get("where", "end")
    if value not in get_args(Where):
        raise InputError("where: front or end is needed")
    return "front" if value == "front" else "end"


def _tag(value: Any, name: str) -> str:
    """One tag. Raises InputError for several, and for none."""
    pieces = split_caption(_line(value, name), (",",))
    if len(pieces) != 1 or MARK in pieces:
        raise InputError(f"{name}: one tag is needed, without a comma or {MARK}")
    return pieces[0]


def _line(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST or len(value.splitlines()) > 1:
        raise InputError(f"{name}: texts of one line, of {LONGEST:,} letters at most, are needed")
    return tidy(value)
