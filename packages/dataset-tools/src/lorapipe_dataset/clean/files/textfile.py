"""Caption files' bytes: plain UTF-8 out, whatever came in."""

from __future__ import annotations

from pathlib import Path

from lorapipe_engine.errors import InputError


def encode(text: str, before: bytes | None, path: Path | str) -> bytes:
    """A caption as a file's bytes; the last line ends as it did ``before``, in a new file with a line end.

    Raises InputError for a text that no file can hold.
    """
    ended = before is None or before.endswith((b"\n", b"\r"))
    return encode_text(f"{text}\n" if ended else text, path)


def encode_text(text: str, path: Path | str) -> bytes:
    """A text in UTF-8. Raises InputError for halves of letters (lone surrogates), which JSON can bring."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{path}: its new text has half a letter in it ({half}), which no file can hold"
        ) from error


def says_the_same(one: str, other: str) -> bool:
    """Whether two texts are one caption: white space at the ends and kinds of line ends make no difference."""
    return one == other or one.strip().splitlines() == other.strip().splitlines()
