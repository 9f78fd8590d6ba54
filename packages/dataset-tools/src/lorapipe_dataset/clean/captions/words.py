"""What options and their files say: lists of tags, pairs, implications, categories."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lorapipe_dataset.texts.vocabulary import canonical
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.tag_lists import COMMA, split_list

_ARROWS = ("=>", "->", "\t")
# Numbers of Danbooru's categories, as taggers and completion lists have them.
CATEGORY_NAMES = {
    "0": "general",
    "1": "artist",
    "3": "copyright",
    "4": "character",
    "5": "meta",
    "9": "rating",
}
CATEGORIES = ("general", "character", "copyright", "artist", "meta", "species", "lore", "rating")


def read_list(paths: Iterable[Path]) -> list[str]:
    """Tags in files, a line or a comma between them; a line that begins with ``# `` is a remark. Raises InputError."""
    return [tag for path in paths for _, line in _lines(path) for tag in split_list([line])]


def read_pairs(texts: Sequence[str], option: str) -> dict[str, list[str]]:
    """``old=new`` pairs (``old=new, newer`` for several, ``old=`` for none) or files of lines, by compared form.

    Raises ConfigError for a text that is neither, or for pairs that go round in a circle, InputError for a file.
    """
    pairs: dict[str, list[str]] = {}
    for text in texts:
        pair = _split(text, (*_ARROWS, "="))
        if pair is not None:
            pairs[canonical(pair[0]) or pair[0]] = split_list([pair[1]])
        elif Path(text).is_file():
            pairs |= read_pair_file(Path(text))
        else:
            raise ConfigError(f"{option} {text}: neither 'old=new' nor a file of such lines")
    return resolve(pairs, option)


def read_pair_file(path: Path) -> dict[str, list[str]]:
    """Pairs from lines ``old,new``, ``old=new``, ``old -> new`` or with a tab; several lines of one tag add up.

    A completion list (``name,category,count,"alias,alias"``, as web UIs have) gives its aliases. Raises InputError
    naming the line that is none of them.
    """
    pairs: dict[str, list[str]] = {}
    for number, line in _lines(path):
        if (row := _completion(line)) is not None:
            pairs |= {canonical(old) or old: [row[0]] for old in split_list([row[3]]) if old != row[0]}
            continue
        pair = _split(line, _ARROWS) or _split_comma(line) or _split(line, ("=",))
        if pair is None:
            raise InputError(f"{path}, line {number}: not 'old,new' or 'old=new'")
        if number == 1 and canonical(pair[0]) in ("old", "antecedent name", "alias", "from", "name"):
            continue
        pairs.setdefault(canonical(pair[0]) or pair[0], []).extend(split_list([pair[1]]))
    return pairs


def read_implications(path: Path) -> dict[str, list[str]]:
    """Compared form of a tag -> those of the tags that follow from it, from lines ``white shirt,shirt``.

    Raises InputError.
    """
    return {
        old: [canonical(one) or one for one in new if canonical(one) != old]
        for old, new in read_pair_file(path).items()
    }


def resolve(pairs: Mapping[str, Sequence[str]], option: str) -> dict[str, list[str]]:
    """Pairs followed to their ends: a -> b and b -> c make a -> c. Raises ConfigError for a circle."""
    done: dict[str, list[str]] = {}

    def follow(old: str, behind: tuple[str, ...]) -> list[str]:
        if old not in done:
            ends: list[str] = []
            for new in pairs[old]:
                key = canonical(new) or new
                if key in behind:
                    circle = " -> ".join((*behind[behind.index(key) :], key))
                    raise ConfigError(f"{option}: goes round in a circle: {circle}")
                # A tag that stands in its own place, perhaps with others, is an end.
                ends += follow(key, (*behind, key)) if key in pairs and key != old else [new]
            done[old] = ends
        return done[old]

    for old in pairs:
        follow(old, (old,))
    return done


def read_categories(path: Path) -> dict[str, str]:
    """Compared form -> category, from a tagger's ``selected_tags.csv`` or a completion list without a header.

    Raises InputError for a file that is neither.
    """
    rows = list(_csv(path))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = "name" in header and "category" in header
    name, category = (header.index("name"), header.index("category")) if named else (0, 1)
    categories: dict[str, str] = {}
    for row in rows[1 if named else 0 :]:
        if len(row) > max(name, category):
            word = row[category].strip().lower()
            if word in CATEGORY_NAMES or word in CATEGORIES:
                categories[canonical(row[name])] = CATEGORY_NAMES.get(word, word)
    if not categories:
        raise InputError(
            f"{path}: not a tag list: the columns tag_id,name,category,count, or name,category,count,aliases"
        )
    return categories


def check_categories(names: Iterable[str], option: str) -> list[str]:
    """The categories of a list. Raises ConfigError for a word that is none."""
    categories = [name.lower() for name in split_list(names)]
    for name in categories:
        if name not in CATEGORIES:
            raise ConfigError(f"{option} {name}: no category; there are {', '.join(CATEGORIES)}")
    return categories


# -------------------------------------------------------------------------------- lines


def read_text(path: Path) -> str:
    """A small file's text. Raises InputError if it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        # Some tags begin with #, so a space has to follow.
        if line.strip() and not line.startswith("# ") and line.strip() != "#":
            yield number, line.strip()


def _csv(path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(read_text(path).splitlines())
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error


def _split(text: str, signs: Sequence[str]) -> tuple[str, str] | None:
    """A text in two at the first of ``signs`` that is in it with something before it."""
    for sign in signs:
        at = text.find(sign, 1)
        while at > 0 and not text[:at].strip():
            at = text.find(sign, at + 1)
        if at > 0:
            return text[:at].strip(), text[at + len(sign) :].strip()
    return None


def _split_comma(line: str) -> tuple[str, str] | None:
    parts = COMMA.split(line, maxsplit=1)
    if len(parts) != 2 or not parts[0].strip():
        return None
    return parts[0].replace("\\,", ",").strip().strip('"'), parts[1].strip().strip('"')


def _completion(line: str) -> list[str] | None:
    """The four cells of a completion list's line; None if it is not one."""
    if line.count(",") < 3:
        return None
    try:
        row = next(csv.reader([line]))
    except csv.Error:
        return None
    return row if len(row) == 4 and row[1].isdigit() and row[2].isdigit() else None
