"""What a person asks ``lora-clean`` for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_dataset.clean.rules import Rules
from lorapipe_engine.errors import ConfigError

Existing = Literal["skip", "append", "prepend", "merge", "replace"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of ``lora-clean``.

    ``source``: format of what is read, None to see by the file; ``target``: format of what is written, None for where
    it was read from. ``other``: folder of the second captions of a union and the like. ``categories``: of a sidecar's
    tags, in order. ``check_trigger``: only look whether captions have this. ``run``: the run that ``undo`` takes back,
    by default the user's newest.
    """

    rules: Rules
    inputs: Sequence[str] = ()
    recursive: bool = False
    extensions: Sequence[str] = (".txt", ".caption")
    source: str | None = None
    target: str | None = None
    output: Path | None = None
    other: Path | None = None
    categories: Sequence[str] = ("character", "general")
    existing: Existing = "skip"
    create: bool = False
    no_txt: bool = False
    check_trigger: str | None = None
    frequency: bool = False
    dry_run: bool = False
    undo: bool = False
    run: str | None = None
    jsonl: bool | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.target in ("kohya", "metadata", "csv") and self.output is None:
            raise ConfigError(f"--to {self.target}: -o FILE is needed as well")
        if self.target is None and self.output is not None:
            raise ConfigError("-o needs --to: txt, caption, kohya, metadata or csv")
        if self.other is not None and not self.other.is_dir():
            raise ConfigError(f"{self.other}: no such folder of captions")
        if self.run is not None and not self.undo:
            raise ConfigError("--run names a run to take back: --undo is needed as well")

    @property
    def writes_texts(self) -> bool:
        """Whether captions go to text files, in place or elsewhere."""
        return self.target in (None, "txt", "caption")

    @property
    def in_place(self) -> bool:
        """Whether captions go back to where they were read."""
        return self.target is None

    def home_of(self, root: Path | None) -> Path | None:
        """The folder that the user named for caption files of ``root``: links below it are not followed."""
        return self.output if self.output is not None and self.writes_texts else root

    def inputs_for_undo(self, folders: Iterable[Path]) -> list[Path]:
        """What to name to take a run back: the folders of the command line, else those of the files."""
        named = [Path(word) for word in self.inputs if Path(word).is_dir()]
        found = list(folders)
        if named and all(any(one == root or root in one.parents for root in named) for one in found):
            return named
        return found
