"""What a person asks ``lora-check`` for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorapipe_dataset.bucketing import BucketSettings
from lorapipe_dataset.check.settings import (
    DrySettings,
    FixSettings,
    InputSettings,
    ReportSettings,
    RuleSettings,
    Severity,
    UndoSettings,
)
from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.caption_files import caption_suffix
from lorapipe_engine.settings import DataSettings

FORMS = (".html", ".json", ".txt")  # suffixes of --output


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of ``lora-check``."""

    inputs: Sequence[str] = ()
    data: DataSettings
    recursive: bool = False
    caption_extension: str = ".txt"
    kind: str | None = None
    trigger: str | None = None
    keep_tokens: int | None = None
    max_token_length: int = 225
    tokenizer_dir: Path | None = None
    tags_file: Path | None = None
    aliases: Path | None = None
    distance: int = 6
    crops: bool = False
    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    look: bool = True
    whole: bool = False
    output: Path | None = None
    html: Path | None = None
    as_json: bool = False
    fail_on: Severity = "error"
    fix: Sequence[str] = ()
    undo: bool = False
    run: str | None = None
    dry_run: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.trigger is not None and not self.trigger.strip():
            raise ConfigError("--trigger: an empty word")
        if self.output is not None and self.output.suffix.lower() not in FORMS:
            raise ConfigError(
                f"--output {self.output}: its suffix says the form of the report: {', '.join(FORMS)}"
            )
        if self.run is not None and not self.undo:
            raise ConfigError("--run names a run to take back: --undo is needed as well")

    @classmethod
    def of(cls, inputs: Sequence[str], chosen: Chosen) -> Options:
        """The options that the command line means. Raises ConfigError."""
        return cls(
            inputs=inputs,
            data=chosen[BucketSettings].data(),
            **{
                **asdict(chosen[RuleSettings]),
                "caption_extension": caption_suffix(
                    chosen[RuleSettings].caption_extension, "--caption-extension"
                ),
            },
            recursive=chosen[InputSettings].recursive,
            **asdict(chosen[ReportSettings]),
            fix=chosen[FixSettings].fix,
            undo=chosen[UndoSettings].undo,
            run=chosen[UndoSettings].run,
            dry_run=chosen[DrySettings].dry_run,
        )

    @property
    def pages(self) -> tuple[Path, ...]:
        """The pages to write."""
        output = self.output if self.output and self.output.suffix.lower() == ".html" else None
        return tuple(path for path in (output, self.html) if path is not None)

    @property
    def fixed_tokens(self) -> int:
        """Tags at the front that training keeps there: as asked, else 1 where there is a trigger."""
        return self.keep_tokens if self.keep_tokens is not None else int(self.trigger is not None)
