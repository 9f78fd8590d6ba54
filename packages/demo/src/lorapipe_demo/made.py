"""The files that the tools made of the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Made:
    """A smaller network, the base with the network in it, and the network out of that again where it is drawn with."""

    small: Path
    merged: Path
    extracted: Path | None = None
