"""``--early_stop_by``: what tells which epoch is the best, the loss of validation or the figures of lora-grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError

LOSS, FIGURES = "loss", "figures"
# Options of lora-grid that say what figures there are, and by which networks are compared.
WORDS = ("by", "dino", "clip", "ccip", "encoder", "held_out", "tagger", "dataset")


@dataclass(frozen=True)
class ByFigures:
    """Figures of lora-grid, as ``given``: pairs of an option of its and the value."""

    given: tuple[tuple[str, str], ...] = ()

    @property
    def options(self) -> list[str]:
        """The same as words of its command line."""
        return [word for name, value in self.given for word in (f"--{name.replace('_', '-')}", value)]


def read_early_stop_by(words: Sequence[str]) -> ByFigures | None:
    """Parse the words of the option; None for the loss. Raises ConfigError for what means nothing."""
    kind, *more = words or (LOSS,)
    if kind not in (LOSS, FIGURES):
        raise ConfigError(
            f"early_stop_by: the first word is loss or figures, not {kind!a}{nearest(kind, (LOSS, FIGURES))}"
        )
    if kind == LOSS and more:
        raise ConfigError(f"early_stop_by: {more[0]!a} is for figures; loss takes no further words")
    if kind == LOSS:
        return None
    given: dict[str, str] = {}
    for word in more:
        name, sign, value = (part.strip() for part in word.partition("="))
        name = name.replace("-", "_")
        if not sign or not value:
            raise ConfigError(f"early_stop_by: {word!a} is not of the form name=value, as encoder=FILE")
        if name not in WORDS:
            raise ConfigError(
                f"early_stop_by: '{name}' is not known{nearest(name, WORDS) or '; known: ' + ', '.join(WORDS)}"
            )
        if name in given:
            raise ConfigError(f"early_stop_by: {name} is given twice")
        given[name] = value
    return ByFigures(tuple(given.items()))
