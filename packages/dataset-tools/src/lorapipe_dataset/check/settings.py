"""What each mode of ``lora-check`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_dataset.bucketing import BucketSettings
from lorapipe_engine.command.foreign import refused
from lorapipe_engine.command.modes import Mode, flag

Severity = Literal["error", "warning", "info"]
Kind = Literal["character", "style", "concept"]


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What is read"""

    recursive: bool = flag(
        False, "Check pictures in folders inside a concept's folder too.", "-r", "--recursive"
    )


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """What is checked"""

    kind: Kind | None = flag(
        None, "What is trained; amounts are judged by it, and other people are told for a character."
    )
    trigger: str | None = flag(
        None, "Word that every caption should have.  [default: guessed]", metavar="WORD"
    )
    keep_tokens: int | None = flag(
        None, "Tags that stay at the front.  [default: 1 with --trigger]", min=0, metavar="N"
    )
    tags_file: Path | None = flag(None, "Known tags: a tagger's selected_tags.csv.", "--tags", metavar="CSV")
    aliases: Path | None = flag(None, "Old and new names of tags, a line 'old,new' each.", metavar="FILE")
    tokenizer_dir: Path | None = flag(
        None, "CLIP's vocab.json and merges.txt, to count tokens.", metavar="DIR"
    )
    max_token_length: int = flag(225, "Tokens of a caption that training reads; longer ones are told.", min=1)
    caption_extension: str = flag(".txt", "Suffix of the caption files.", metavar="SUFFIX")
    look: bool = flag(True, "Decode the pictures, or read headers only.", opposite="no-look")
    distance: int = flag(
        6, "How much near-duplicates may differ: bits of 64 of a picture's hash.", min=0, max=16, needs="look"
    )
    crops: bool = flag(False, "Look for pictures cut out of others too: 10 s for 200 pictures.", needs="look")
    ignore: tuple[str, ...] = flag((), "Leave this rule out (may be repeated).", metavar="RULE")
    as_json: bool = flag(False, "Print the report as one JSON object.", "--json")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The report"""

    only: tuple[str, ...] = flag((), "Try this rule only (may be repeated).", metavar="RULE")
    whole: bool = flag(False, "Show every case, not the first few; --json has all.", "--all")
    output: Path | None = flag(
        None,
        "Write the report there and not on the screen: a page (.html), JSON (.json) or text (.txt).",
        *("-o", "--output"),
        metavar="FILE",
    )
    html: Path | None = flag(
        None, "Write a page to browse the pictures by tag and finding, besides the report.", metavar="FILE"
    )
    force: bool = flag(False, "Replace the files if they exist.", needs=("output", "html"))
    fail_on: Severity = flag("error", "Exit with 1 for findings of this severity or a graver one.")


@dataclass(frozen=True, kw_only=True)
class FixSettings:
    """Instead of a report"""

    fix: tuple[str, ...] = flag((), "Mend what this rule finds (may be repeated).", metavar="RULE")


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Editing in the browser"""

    edit: bool = flag(False, "Serve a page to this machine alone, in which the captions of DIR are edited.")
    port: int = flag(
        0,
        "With --edit: serve the page at this port of your machine.  [default: a free one]",
        min=0,
        max=65535,
        metavar="N",
    )
    browser: bool = flag(
        True,
        "With --edit: open the page in a browser, or print its address only.",
        "--browser",
        opposite="no-browser",
    )
    hints: Path | None = flag(
        None, "With --edit: tags to offer, records of lora-tag --no-txt --jsonl.", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Instead of a report"""

    undo: bool = flag(False, "Take your last --fix back; -n shows what goes.")
    run: str | None = flag(None, "With --undo: take this run back, whoever made it.", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class DrySettings:
    """Instead of a report"""

    dry_run: bool = flag(False, "With --fix or --undo: say what would be done.", "-n", "--dry-run")


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """Instead of a report"""

    rules: bool = flag(False, "List what can be checked, with the mend, and stop.")


MODES = (
    Mode("the report", (ReportSettings, InputSettings, RuleSettings, BucketSettings)),
    Mode("--fix", (FixSettings, DrySettings, InputSettings, RuleSettings, BucketSettings), by="fix"),
    Mode("--edit", (EditSettings, InputSettings, RuleSettings, BucketSettings), by="edit"),
    Mode("--undo", (UndoSettings, DrySettings), by="undo"),
    Mode("--rules", (ListSettings,), by="rules"),
)
# Of sd-scripts, whose options people have at hand.
FOREIGN = {
    **refused("name the folder itself: lora-check DIR", "train_data_dir", "image_dir"),
    **refused("name the folders that the file names", "dataset_config"),
    **refused(
        "name the folder of the pictures; lora-clean FILE --to txt puts the file's captions beside them",
        "in_json",
    ),
}
# As the help shows them.
ORDER = (
    InputSettings,
    RuleSettings,
    BucketSettings,
    ReportSettings,
    ListSettings,
    FixSettings,
    UndoSettings,
    DrySettings,
    EditSettings,
)
