"""Wildcards in prompts, as in the dynamic-prompts extension: ``{a|b}``, ``{2$$, $$a|b|c}``, ``__background__``.

``{3::a|b}`` gives options relative weights, ``{n$$..}`` takes n different options in any order, ``{n-m$$..}`` n to m,
``{n$$SEPARATOR$$..}`` joins them by something else than a comma. ``__name__`` takes a line of ``name.txt`` in a folder
of wildcards, ``__folder/*__`` one of several files'; lines may hold options and wildcards themselves. ``#`` begins a
comment. Braces may be nested; there is no escape for them.

A template is drawn once for each seed: cells of one seed have the same words whatever else they compare.
Training's captions have a smaller syntax of their own, sd-scripts' (``{{`` is a brace there).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lorapipe_engine.command.documents import read_text
from lorapipe_engine.command.records import find_files
from lorapipe_engine.errors import ConfigError

MOST_FILE = 1 << 22  # bytes
MOST_DEPTH = 30  # of wildcards in wildcards
MOST_DRAWS = 10_000  # of one prompt
MOST_LETTERS = 100_000  # of a resolved prompt

_WILD = re.compile(r"__([^\s_{}|$#](?:[^{}|$#\n]*?[^\s{}|$#])?)__")
_COUNT = re.compile(r"\s*(?:(\d{1,6})?-(\d{1,6})?|(\d{1,6}))\s*\$\$")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_COMMENT = re.compile(r"#[^\n]*")
_JOINER = ","


@dataclass(frozen=True)
class Choice:
    """``{...}``: options with weights, how many are taken (``least`` to ``most``; None: all), what joins them."""

    options: tuple[tuple[float, Template], ...]
    least: int = 1
    most: int | None = 1
    joiner: str = _JOINER


@dataclass(frozen=True)
class Wild:
    """``__name__``."""

    name: str


Part = str | Choice | Wild
Template = tuple[Part, ...]
Lines = Callable[[str], Sequence[str]]


class Wildcards:
    """The files of wildcards in folders; a name is the path in its folder without ``.txt``, with forward slashes."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._files: dict[str, Path] = {}
        for folder in folders:
            for path in find_files(folder, {".txt"}, recursive=True):
                self._files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        self._read: dict[str, tuple[str, ...]] = {}

    def lines(self, name: str) -> tuple[str, ...]:
        """The values of a wildcard, which may be a pattern with ``*``.

        Raises ConfigError where no file of that name is there, or no value in it.
        """
        names = [known for known in sorted(self._files) if _fits(known, name)]
        if not names:
            from lorapipe_engine.command.configuration import nearest

            hint = nearest(name, self._files) or "; --wildcards names the folder that its .txt file is in"
            raise ConfigError(f"__{name}__: there is no such wildcard{hint}")
        values = tuple(value for known in names for value in self._values(known))
        if not values:
            raise ConfigError(f"__{name}__: {self._files[names[0]]} holds no value")
        return values

    def _values(self, name: str) -> tuple[str, ...]:
        if name not in self._read:
            text = read_text(self._files[name], MOST_FILE)
            self._read[name] = tuple(read_values(text))
        return self._read[name]


def read_values(text: str) -> Iterator[str]:
    """The values of a file of wildcards: its lines, without comments (a space before one stays) and empty lines."""
    for line in text.splitlines():
        value = _COMMENT.sub("", line.strip())
        if value.strip():
            yield value


def draw_prompt(template: str, seed: int, wildcards: Wildcards, where: str, stream: str | None = None) -> str:
    """The template's words for a seed: the same for the same template, seed and files, on every machine.

    ``stream``: the template whose random numbers are used, by default this one; templates of one structure, such as two
    that differ by a replaced word, make the same choices with one stream. ``where`` names the template in errors.

    Raises ConfigError for a brace that has no end, a wildcard that is missing or leads to itself, and for the
    extension's variables.
    """
    parts = parse_template(template, where)
    if not has_choices(parts):
        return str(parts[0]) if parts else ""
    # A text seeds the generator by its sha512, so that seeds 1 and -1 differ.
    draw = random.Random(f"{seed}\n{template if stream is None else stream}")
    drawn = _Drawing(draw, wildcards.lines, where).text(parts)
    if len(drawn) > MOST_LETTERS:
        raise ConfigError(f"{where}: more than {MOST_LETTERS:,} letters")
    return drawn


def has_choices(parts: Template) -> bool:
    """Whether anything is drawn."""
    return any(not isinstance(part, str) for part in parts)


def parse_template(template: str, where: str) -> Template:
    """The parts of a template; comments are a space. Raises ConfigError for a brace that has no end."""
    _refuse_variables(template, where)
    return _sequence(template, 0, where, 0)[0]


# -------------------------------------------------------------------------------- drawing


class _Drawing:
    """One template's draws. Wildcards that lead to each other twice over would double with each level: both the depth
    and the number of draws are bounded.
    """

    def __init__(self, draw: random.Random, lines: Lines, where: str) -> None:
        self.draw, self.lines, self.where = draw, lines, where
        self.drawn = 0

    def text(self, parts: Template, depth: int = 0) -> str:
        self.drawn += 1
        if depth > MOST_DEPTH or self.drawn > MOST_DRAWS:
            raise ConfigError(f"{self.where}: a wildcard leads to itself, or more than {MOST_DEPTH} deep")
        return "".join(self._part(part, depth) for part in parts)

    def _part(self, part: Part, depth: int) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Wild):
            return self.text(parse_template(self.draw.choice(self.lines(part.name)), self.where), depth + 1)
        options = list(weighted_options(part, self.lines, self.where))
        count = self.draw.randint(*counts_of(part, len(options)))
        taken: list[Template] = []
        while len(taken) < count:
            weights = [weight for weight, _ in options]
            if not any(weights):
                weights = [1.0] * len(options)
            place = self.draw.choices(range(len(options)), weights)[0]
            taken.append(options.pop(place)[1])
        return part.joiner.join(self.text(option, depth + 1) for option in taken)


def counts_of(part: Choice, options: int) -> tuple[int, int]:
    """The least and the most of ``options`` that are taken; more than there are is all."""
    most = options if part.most is None else min(part.most, options)
    return min(part.least, most), most


def weighted_options(part: Choice, lines: Lines, where: str) -> Iterator[tuple[float, Template]]:
    """The options; where several of one wildcard's are asked for, its lines are the options."""
    if len(part.options) == 1 and part.most != 1:
        (only,) = part.options
        if len(only[1]) == 1 and isinstance(only[1][0], Wild):
            yield from ((1.0, parse_template(line, where)) for line in lines(only[1][0].name))
            return
    yield from part.options


# -------------------------------------------------------------------------------- parsing


def _sequence(text: str, place: int, where: str, depth: int) -> tuple[Template, int]:
    """Parts up to the end, or ``depth`` braces deep to the next bar or closing brace, and the place of that mark."""
    parts: list[Part] = []
    plain = ""
    while place < len(text):
        letter = text[place]
        if depth and letter in "|}":
            break
        wild = _WILD.match(text, place) if letter == "_" else None
        if letter == "{" or wild:
            parts += [plain] if plain else []
            plain = ""
            part, place = (Wild(wild[1]), wild.end()) if wild else _choice(text, place, where, depth + 1)
            parts.append(part)
        elif letter == "#":
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
            plain += " " if plain else ""
        else:
            plain += letter
            place += 1
    parts += [plain] if plain else []
    return tuple(parts), place


def _choice(text: str, start: int, where: str, depth: int) -> tuple[Choice, int]:
    if depth > MOST_DEPTH:
        raise ConfigError(f"{where}, column {start + 1}: braces more than {MOST_DEPTH} deep")
    place = start + 1
    least, joiner = 1, _JOINER
    most: int | None = 1
    count = _COUNT.match(text, place)
    if count:
        place = count.end()
        least, most = _counts(count)
        separator = re.compile(r"([^{}|$]*)\$\$").match(text, place)
        if separator:
            if not separator[1]:
                raise ConfigError(f"{where}, column {place + 1}: the separator between $$ and $$ is empty")
            joiner, place = separator[1], separator.end()
        if most is not None and most < least:
            raise ConfigError(f"{where}, column {start + 1}: {count[0]} counts from more to fewer")
    options = []
    while True:
        weight = _WEIGHT.match(text, place)
        place = weight.end() if weight else place
        place += len(text[place:]) - len(text[place:].lstrip())
        option, place = _sequence(text, place, where, depth)
        options.append((float(weight[1]) if weight else 1.0, option))
        if place >= len(text):
            raise ConfigError(f"{where}, column {start + 1}: this {{ has no }}")
        place += 1
        if text[place - 1] == "}":
            return Choice(tuple(options), least, most, joiner), place


def _counts(match: re.Match[str]) -> tuple[int, int | None]:
    """The least and the most that ``n$$``, ``n-m$$``, ``-m$$`` or ``n-$$`` ask for; None: all."""
    first, last, exact = match.groups()
    if exact:
        return int(exact), int(exact)
    return int(first or 1), int(last) if last else None


def _refuse_variables(template: str, where: str) -> None:
    for mark, what in (("${", "a variable"), ("{@", "a cyclical choice"), ("{~", "a choice's own sampler")):
        place = template.find(mark)
        if place >= 0:
            raise ConfigError(f"{where}, column {place + 1}: {mark}, {what}, is not supported")


def _fits(known: str, pattern: str) -> bool:
    """Whether a file's name fits; ``*`` stands for any letters, slashes too."""
    return fnmatchcase(known, pattern) if "*" in pattern else known == pattern
