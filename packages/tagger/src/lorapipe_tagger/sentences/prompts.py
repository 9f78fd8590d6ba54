"""What the model is asked in words."""

from __future__ import annotations

import re
from pathlib import Path

from lorapipe_engine.errors import ConfigError

_TASK = (
    "Describe this picture in one or two plain sentences, as a caption for training an image model: who or what is "
    "seen, what they do, clothes, place and light."
)
_END = "Answer with the sentences alone."
PLAIN = f"{_TASK} {_END}"
HINTED = f"{_TASK} Tags of the picture, which may help: {{tags}}. {_END}"
_NAMES = ("tags", "trigger", "name")
_PLACE = re.compile(r"\{(\w+)\}")
_OPTION = "--caption-prompt"


def read_prompt(text: str | None, *, hints: bool, trigger: bool) -> str:
    """The template that the options mean: a text, ``@FILE``, or the usual one. ``hints`` and ``trigger``: whether there
    is something for ``{tags}`` and ``{trigger}``. Raises ConfigError.
    """
    if text is None:
        return HINTED if hints else PLAIN
    prompt = _read(Path(text[1:]).expanduser()) if text.startswith("@") else text
    if not prompt.strip():
        raise ConfigError(f"{_OPTION}: an empty text; the model needs to be told what to write")
    names = places_in(prompt)
    for name in sorted(names - set(_NAMES)):
        raise ConfigError(
            f"{_OPTION}: {{{name}}} stands for nothing; there are {{tags}}, {{trigger}} and {{name}}"
        )
    if "trigger" in names and not trigger:
        raise ConfigError(f"{_OPTION}: {{trigger}} needs --trigger or --trigger-from-folder")
    if "tags" in names and not hints:
        raise ConfigError(f"{_OPTION}: {{tags}} and --no-hints exclude each other; leave one of them out")
    return prompt.strip()


def places_in(prompt: str) -> set[str]:
    """The names that stand in braces in a template."""
    return set(_PLACE.findall(prompt))


def fill_prompt(prompt: str, *, tags: str, trigger: str, name: str) -> str:
    """The template with words for its names. ``name``: the picture's file without its suffix."""
    words = {"tags": tags or "none", "trigger": trigger, "name": name}
    return _PLACE.sub(lambda place: words.get(place[1], place[0]), prompt)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{_OPTION} @{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_OPTION} @{path}: not UTF-8 (byte {error.start})") from error
