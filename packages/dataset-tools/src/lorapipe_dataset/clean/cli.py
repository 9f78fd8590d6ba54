"""``lora-clean``: captions in, cleaner captions out. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.records import stream_options
from lorapipe_engine.command.tool import tool_command

EXAMPLES = """
lora-clean imgs/ --trigger "shiina mayuri" --drop-file drop.txt --dry-run
lora-clean imgs/ --trigger "shiina mayuri" --drop-file drop.txt
lora-clean --undo imgs/
lora-tag imgs/ | lora-clean --trigger "shiina mayuri" --several-people | lora-repeats -o dataset/ --kind character
lora-clean imgs/ --spaces --drop "*background, re:rating:.*" --replace "grey hair=silver hair" --overlap
lora-clean imgs/ --aliases aliases.csv --implications implications.csv --max-tokens 225
lora-clean tagger-a/ --union tagger-b/
lora-clean imgs/ --from gallery-dl --categories character,general
lora-clean imgs/ --to metadata -o imgs/metadata.jsonl
"""
FILE = click.Path(path_type=Path)
Decorated = Callable[..., Any]


def _options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _tags(name: str, text: str, **extra: Any) -> Callable[[Decorated], Decorated]:
    return click.option(name, *extra.pop("names", ()), multiple=True, metavar="TAGS", help=text, **extra)


def _file(name: str, text: str) -> Callable[[Decorated], Decorated]:
    return click.option(name, multiple=True, type=FILE, metavar="FILE", help=text)


FORM_OPTIONS = _options(
    click.option(
        "--style",
        type=click.Choice(["tags", "text"]),
        default="tags",
        show_default=True,
        help="Captions are tags, or sentences.",
    ),
    click.option(
        "--spaces", "spelling", flag_value="spaces", help="Spaces for underscores; faces (^_^) stay."
    ),
    click.option("--underscores", "spelling", flag_value="underscores", help="Underscores for spaces."),
    click.option("--escape/--unescape", "escape", default=None, help=r"Brackets as \( \), or bare."),
    click.option("--lower", is_flag=True, help="Small letters."),
    click.option("--strip-weights", is_flag=True, help="(tag:1.2) and ((tag)) become tag."),
    click.option("--expand-wildcards", is_flag=True, help="One of each {a|b}, chosen by --seed."),
    click.option(
        "--split",
        default=",",
        metavar="SIGN",
        help="Sign between tags that are read, besides --join.  [default: ,]",
    ),
    click.option(
        "--join", default=", ", metavar="TEXT", help="Sign between tags that are written.  [default: ', ']"
    ),
    click.option(
        "--lines",
        type=click.Choice(["each", "join", "first"]),
        default="each",
        show_default=True,
        help="Captions of several lines: clean each, join them, keep the first.",
    ),
    click.option("--dedupe/--no-dedupe", default=True, help="Each tag once.  [default: dedupe]"),
)
TAG_OPTIONS = _options(
    _tags(
        "--drop", "Tags to take out: names, patterns such as *hair*, or re:EXPRESSION.", names=("--remove",)
    ),
    _file("--drop-file", "File of tags to take out."),
    _tags("--keep", "Tags that no step takes out."),
    _tags("--only", "Take out all other tags."),
    _file("--only-file", "File of the only tags to keep."),
    click.option(
        "--replace",
        multiple=True,
        metavar="OLD=NEW|FILE",
        help="Put other tags in a tag's place (a=b, a=b,c).",
    ),
    click.option(
        "--regex",
        nargs=2,
        multiple=True,
        metavar="EXPR NEW",
        help="Replace by regular expression in each tag.",
    ),
    click.option(
        "--phrase",
        nargs=2,
        multiple=True,
        metavar="EXPR NEW",
        help="Replace by regular expression in the whole caption.",
    ),
    _file("--aliases", "Lines 'old,new', or a completion list with aliases."),
    _file("--implications", "Lines 'white shirt,shirt': the first implies the second."),
    click.option("--add-implied", is_flag=True, help="Add what is implied; otherwise it is taken out."),
    click.option("--overlap", is_flag=True, help="Take out 'shirt' where 'white shirt' is."),
    click.option(
        "--several-people",
        is_flag=True,
        help="With 2girls and the like: take out hair, eyes, sleeves of two kinds.",
    ),
    click.option(
        "--strip-invariant",
        type=float,
        metavar="SHARE",
        help="Take out tags that so many captions have, as 0.8.",
    ),
    click.option(
        "--tags",
        "tags_file",
        type=FILE,
        metavar="CSV",
        help="Tags' categories: selected_tags.csv, or a completion list.",
    ),
    click.option(
        "--drop-category",
        multiple=True,
        metavar="NAMES",
        help="Take out meta, artist, copyright, character, ...",
    ),
    click.option(
        "--only-category", multiple=True, metavar="NAMES", help="Take out tags of all other categories."
    ),
    click.option("--split-characters", is_flag=True, help="'name (series)' of a character as two tags."),
    click.option(
        "--rating",
        type=click.Choice(["keep", "drop", "first", "last"]),
        default="keep",
        show_default=True,
        help="Ratings among the tags.",
    ),
)
ORDER_OPTIONS = _options(
    click.option("--trigger", default="", metavar="WORDS", help="Every caption gets this, spelt so."),
    click.option(
        "--trigger-place",
        type=click.Choice(["first", "last", "keep"]),
        default="first",
        show_default=True,
        help="Where the trigger goes; keep: in front only where it was missing.",
    ),
    click.option(
        "--check-trigger", metavar="WORDS", help="Change nothing; list captions without this, exit 1 if any."
    ),
    _tags("--add", "Tags that every caption gets at the end.", names=("--append",)),
    _tags("--first", "Tags that go to the front where they are."),
    _tags("--last", "Tags that go to the end where they are."),
    click.option(
        "--order",
        type=click.Choice(
            [
                "keep",
                "alphabet",
                "length",
                "tokens",
                "frequency",
                "confidence",
                "category",
                "people",
                "shuffle",
            ]
        ),
        default="keep",
        show_default=True,
        help="Sort the tags.",
    ),
    click.option("--descending", is_flag=True, help="Sort the other way round."),
    click.option(
        "--keep-first",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Tags in front that sorting leaves.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="For shuffle and wildcards."),
    click.option("--max-tags", type=click.IntRange(1), metavar="N", help="So many tags at most."),
    click.option(
        "--max-tokens", type=click.IntRange(1), metavar="N", help="So many tokens at most: 75, 150, 225."
    ),
    click.option(
        "--tokenizer",
        "tokenizer",
        type=FILE,
        metavar="DIR",
        help="vocab.json and merges.txt.  [default: the hub's cache, else estimated]",
    ),
    click.option(
        "--sentences", type=click.IntRange(1), metavar="N", help="So many sentences at most (--style text)."
    ),
    click.option("--prefix", default="", metavar="TEXT", help="Text in front of every caption."),
    click.option("--suffix", default="", metavar="TEXT", help="Text behind every caption."),
    click.option("--if-empty", metavar="TEXT", help="Caption of those that are empty or missing."),
)
FILE_OPTIONS = _options(
    click.option("-r", "--recursive", is_flag=True, help="Look into folders' folders too."),
    click.option(
        "--ext",
        "extensions",
        multiple=True,
        metavar="SUFFIX",
        help="Suffix of captions.  [default: .txt and .caption]",
    ),
    click.option(
        "--from",
        "source",
        type=click.Choice(
            [
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
        ),
        help="Format of what is read.  [default: by the file's content]",
    ),
    click.option(
        "--categories",
        default="character,general",
        show_default=True,
        metavar="NAMES",
        help="Categories taken from a post, in this order; --order category sorts by it.",
    ),
    click.option(
        "--to",
        "target",
        type=click.Choice(["txt", "caption", "kohya", "metadata", "csv"]),
        help="Write another format instead of in place.",
    ),
    click.option(
        "-o", "--output", type=FILE, metavar="OUT", help="Folder for txt and caption, file for the others."
    ),
    click.option("--force", is_flag=True, help="Replace OUT if it exists."),
    click.option("--union", type=FILE, metavar="DIR", help="Add the tags of the captions there."),
    click.option(
        "--intersect", type=FILE, metavar="DIR", help="Keep the tags that the captions there have too."
    ),
    click.option("--subtract", type=FILE, metavar="DIR", help="Take out the tags of the captions there."),
    click.option(
        "--existing",
        type=click.Choice(["skip", "append", "prepend", "merge", "replace"]),
        default="skip",
        show_default=True,
        help="A caption file that says something else than its record: leave it, add what is new, replace it.",
    ),
    click.option("--no-txt", is_flag=True, help="Change no caption files, only records."),
    click.option("-n", "--dry-run", is_flag=True, help="Show what would change."),
    click.option(
        "--undo", is_flag=True, help="Take your last run in these folders back; -n shows what goes."
    ),
    click.option("--run", metavar="RUN", help="With --undo: take this run back, whoever made it."),
    click.option("--frequency", is_flag=True, help="List the tags' counts on stderr."),
    stream_options,
)


@tool_command("lora-clean", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[PATH]...")
@FILE_OPTIONS
@FORM_OPTIONS
@TAG_OPTIONS
@ORDER_OPTIONS
def lora_clean(inputs: tuple[str, ...], **flags: Any) -> int:
    """Clean captions: every operation as an option, done in one order, the same again when done twice.

    PATH are folders, caption files, pictures, or - for paths and records on standard input, which is also read without
    any. Files are changed in place with a journal; in a pipe the records go on with the new captions.
    """
    from lorapipe_dataset.clean.flags import read_flags
    from lorapipe_dataset.clean.run import run

    return run(read_flags(inputs, flags))


def main() -> None:
    """Entry point of ``lora-clean``."""
    lora_clean.main()
