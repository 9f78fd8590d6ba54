"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "stop"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``stop``: a run will end there; ``note``: it will not, but the user should know.
    ``mend``: what to do about it, empty where all is well."""

    name: str
    state: State
    text: str
    mend: str = ""

    def line(self) -> str:
        """The line for people."""
        return f"{self.state:<5} {self.name}: {self.text}{f'; {self.mend}' if self.mend else ''}"

    def record(self) -> dict[str, str]:
        """The object for programs."""
        return {"name": self.name, "state": self.state, "text": self.text, "mend": self.mend}
