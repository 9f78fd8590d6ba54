"""How ``network_args`` that an algorithm alone has are read. Each reader raises ValueError with what it takes."""

from __future__ import annotations

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def flag(text: str) -> bool:
    """True or False, as LyCORIS' users write it."""
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("True or False")
    return text.lower() in _TRUE


def factor(text: str) -> int:
    """A whole number of 1 or more, or -1."""
    value = _whole(text)
    if value < 1 and value != -1:
        raise ValueError("a whole number of 1 or more, or -1 for the most even split")
    return value


def whole(text: str) -> int:
    """A whole number of 1 or more."""
    value = _whole(text)
    if value < 1:
        raise ValueError("a whole number of 1 or more")
    return value


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError("a number of 0 or more")
    return value


def _whole(text: str) -> int:
    """The whole number that a text is; 0, which no reader takes, for any other."""
    try:
        return int(text)
    except ValueError:
        return 0
