"""What each mode of ``lora-clean`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.foreign import ignored, refused
from lorapipe_engine.command.modes import Mode, flag
from lorapipe_engine.pictures.captions import KEEP_MARK

Style = Literal["tags", "text"]
Lines = Literal["each", "join", "first"]
Order = Literal[
    "keep", "alphabet", "length", "tokens", "frequency", "confidence", "category", "people", "shuffle"
]
TriggerPlace = Literal["first", "last", "keep"]
RatingPlace = Literal["keep", "drop", "first", "last"]
Existing = Literal["skip", "append", "prepend", "merge", "replace"]
SourceFormat = Literal[
    "txt",
    "grabber",
    "hydrus",
    "spaced",
    "booru",
    "danbooru",
    "gelbooru",
    "moebooru",
    "e621",
    "gallery-dl",
    "kohya",
    "metadata",
    "csv",
    "picture",
]
TargetFormat = Literal["txt", "caption", "kohya", "metadata", "csv"]
_OF_TAGS = "style=tags"  # sentences have none


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What is read"""

    recursive: bool = flag(False, "Look into folders' folders too.", "-r", "--recursive")
    extensions: tuple[str, ...] = flag(
        (),
        "Suffix of the caption files.  [default: .txt and .caption]",
        *("--ext", "--caption-extension", "--caption-extention"),
        metavar="SUFFIX",
    )
    source: SourceFormat | None = flag(
        None, "What the captions are read from.  [default: by the file's content]", "--from"
    )
    encoding: str | None = flag(
        None,
        "Encoding of captions, as cp1251, cp1252, cp932 or gb18030; they are written as UTF-8.  [default: UTF-8, or "
        "UTF-16 with a byte order mark]",
        metavar="NAME",
    )
    categories: str = flag(
        "character,general",
        "Categories taken from a post, in this order; --order category sorts by it.",
        metavar="NAMES",
    )
    style: Style = flag("tags", "Captions are tags, or sentences.")
    split: str = flag(",", "Sign between tags that are read, besides --join.  [default: ,]", metavar="SIGN")
    join: str = flag(
        ", ", "Sign between tags that are written.  [default: ', ']", "--join", "--separator", metavar="TEXT"
    )
    keep_tokens_separator: str = flag(
        KEEP_MARK,
        "The trainer's keep_tokens_separator: what stands before it stays in front.  [default: |||]",
        metavar="MARK",
        needs=_OF_TAGS,
    )
    prefix: str = flag("", "Text in front of every caption.", metavar="TEXT")
    suffix: str = flag("", "Text behind every caption.", metavar="TEXT")
    if_empty: str | None = flag(None, "Caption of those that are empty or missing.", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """What is written"""

    target: TargetFormat | None = flag(None, "Write another format instead of in place.", "--to")
    output: Path | None = flag(
        None, "Folder for txt and caption, file for the others.", "-o", "--output", metavar="OUT"
    )
    force: bool = flag(False, "Replace OUT if it is a file that exists.", needs="output")
    union: Path | None = flag(None, "Add the tags of the captions there.", metavar="DIR", needs=_OF_TAGS)
    intersect: Path | None = flag(
        None, "Keep the tags that the captions there have too.", metavar="DIR", needs=_OF_TAGS
    )
    subtract: Path | None = flag(
        None, "Take out the tags of the captions there.", metavar="DIR", needs=_OF_TAGS
    )
    existing: Existing = flag(
        "skip",
        "A caption file that says something else than its record: leave it, add what is new, replace it.",
        needs="no_txt=False",
    )
    no_txt: bool = flag(False, "Change no caption files, only records.")
    frequency: bool = flag(False, "List how often each tag comes, on stderr.")
    jsonl: bool | None = flag(
        None,
        "Write JSON records or text.  [default: text on a terminal, records in a pipe]",
        opposite="text",
    )


@dataclass(frozen=True, kw_only=True)
class FormSettings:
    """Spelling and form"""

    spaces: bool | None = flag(
        None, "Spaces for underscores (faces such as ^_^ stay), or the other way round.", opposite="underscores",
        needs=_OF_TAGS,
    )  # fmt: skip
    escape: bool | None = flag(
        None, r"Write brackets as \( \), as prompts want them, or bare.", opposite="unescape", needs=_OF_TAGS
    )
    lower: bool = flag(False, "Write capital letters small.")
    strip_weights: bool = flag(False, "(tag:1.2) and ((tag)) become tag.")
    expand_wildcards: bool = flag(False, "One of each {a|b}, chosen by --seed.")
    lines: Lines = flag("each", "Captions of several lines: clean each, join them, keep the first.")
    dedupe: bool = flag(True, "Keep each tag once, where a caption has it twice.", opposite="no-dedupe")


@dataclass(frozen=True, kw_only=True)
class TagSettings:
    """Tags out and in the place of others"""

    drop: tuple[str, ...] = flag(
        (),
        "Tags to take out: names, patterns such as *hair*, or re:EXPRESSION.",
        *("--drop", "--remove"),
        metavar="TAGS",
    )
    drop_file: tuple[Path, ...] = flag((), "File of tags to take out.", metavar="FILE")
    keep: tuple[str, ...] = flag((), "Tags that no step takes out.", metavar="TAGS", needs=_OF_TAGS)
    only: tuple[str, ...] = flag((), "Take out all other tags.", metavar="TAGS", needs=_OF_TAGS)
    only_file: tuple[Path, ...] = flag(
        (), "File of tags; all others are taken out.", metavar="FILE", needs=_OF_TAGS
    )
    replace: tuple[str, ...] = flag(
        (), "Put other tags in a tag's place (a=b, a=b,c).", metavar="OLD=NEW|FILE", needs=_OF_TAGS
    )
    regex: tuple[tuple[str, str], ...] = flag(
        (), "Replace by regular expression in each tag.", metavar="EXPR NEW", needs=_OF_TAGS
    )
    phrase: tuple[tuple[str, str], ...] = flag(
        (), "Replace by regular expression in the whole caption.", metavar="EXPR NEW"
    )
    aliases: tuple[Path, ...] = flag(
        (), "Lines 'old,new', or a completion list with aliases.", metavar="FILE", needs=_OF_TAGS
    )
    implications: tuple[Path, ...] = flag(
        (), "Lines 'white shirt,shirt': the first implies the second.", metavar="FILE", needs=_OF_TAGS
    )
    add_implied: bool = flag(False, "Add what is implied; otherwise it is taken out.", needs="implications")
    overlap: bool = flag(False, "Take out 'shirt' where 'white shirt' is.", needs=_OF_TAGS)
    several_people: bool = flag(
        False, "With 2girls and the like: take out hair, eyes, sleeves of two kinds.", needs=_OF_TAGS
    )
    strip_invariant: float | None = flag(
        None, "Take out tags that so many captions have, as 0.8.", metavar="SHARE", needs=_OF_TAGS
    )
    tags_file: Path | None = flag(
        None,
        "Tags' categories: selected_tags.csv, or a completion list.",
        "--tags",
        metavar="CSV",
        needs=_OF_TAGS,
    )
    drop_category: tuple[str, ...] = flag(
        (), "Take out meta, artist, copyright, character, ...", metavar="NAMES", needs=_OF_TAGS
    )
    only_category: tuple[str, ...] = flag(
        (), "Take out tags of all other categories.", metavar="NAMES", needs=_OF_TAGS
    )
    split_characters: bool = flag(False, "'name (series)' of a character as two tags.", needs=_OF_TAGS)
    rating: RatingPlace = flag("keep", "Ratings among the tags.", needs=_OF_TAGS)


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """Trigger, order and length"""

    trigger: str = flag("", "Every caption gets this, spelt so.", metavar="WORDS")
    trigger_place: TriggerPlace = flag(
        "first",
        "Where the trigger goes; keep: in front only where it was missing.",
        needs=_OF_TAGS,
    )
    add: tuple[str, ...] = flag(
        (),
        "Tags that every caption gets at the end.",
        *("--add", "--append"),
        metavar="TAGS",
        needs=_OF_TAGS,
    )
    first: tuple[str, ...] = flag(
        (), "Tags that go to the front where they are.", metavar="TAGS", needs=_OF_TAGS
    )
    last: tuple[str, ...] = flag(
        (), "Tags that go to the end where they are.", metavar="TAGS", needs=_OF_TAGS
    )
    order: Order = flag("keep", "Bring the tags into another order.", needs=_OF_TAGS)
    descending: bool = flag(False, "Sort from the last to the first.", needs="order!=keep")
    keep_first: int = flag(0, "Tags in front that sorting leaves.", min=0, metavar="N", needs="order!=keep")
    seed: int = flag(
        0,
        "Seed by which --order shuffle and --expand-wildcards draw.",
        needs=("order=shuffle", "expand_wildcards"),
    )
    max_tags: int | None = flag(None, "Leave out tags behind so many.", min=1, metavar="N", needs=_OF_TAGS)
    max_tokens: int | None = flag(
        None, "Leave out tags behind so many tokens: 75, 150, 225.", min=1, metavar="N"
    )
    tokenizer: Path | None = flag(
        None,
        "Folder with CLIP's vocab.json and merges.txt, to count tokens.  [default: the hub's cache, else estimated]",
        metavar="DIR",
        needs=("max_tokens", "order=tokens"),
    )
    sentences: int | None = flag(
        None, "Leave out sentences behind so many (--style text).", min=1, metavar="N", needs="style=text"
    )


@dataclass(frozen=True, kw_only=True)
class DrySettings:
    """What is written"""

    dry_run: bool = flag(False, "Show what would change.", "-n", "--dry-run")


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Instead of cleaning"""

    undo: bool = flag(False, "Take your last run in these folders back; -n shows what goes.")
    run: str | None = flag(None, "With --undo: take this run back, whoever made it.", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class TriggerCheckSettings:
    """Instead of cleaning"""

    check_trigger: str | None = flag(
        None, "Change nothing; list captions without this, exit 1 if any.", metavar="WORDS"
    )


MODES = (
    Mode(
        "cleaning",
        (WriteSettings, FormSettings, TagSettings, OrderSettings, InputSettings, DrySettings),
    ),
    Mode("--check-trigger", (TriggerCheckSettings, InputSettings), by="check_trigger"),
    Mode("--undo", (UndoSettings, DrySettings), by="undo"),
)
# Of sd-scripts' scripts that clean captions and merge them into a metadata file.
FOREIGN = {
    **ignored("paths are whole in a kohya file anyway", "full_path", flag=True),
    **refused("use --dry-run, which shows what would change", "debug", flag=True),
    **refused("name the file itself: lora-clean FILE.json", "in_json"),
}
# As the help shows them.
ORDER = (
    InputSettings,
    WriteSettings,
    DrySettings,
    FormSettings,
    TagSettings,
    OrderSettings,
    TriggerCheckSettings,
    UndoSettings,
)
