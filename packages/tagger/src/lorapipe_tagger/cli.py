"""``lora-tag``: pictures in, captions and records out. Everything heavy is imported when there is work to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.records import stream_options
from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.errors import ConfigError

EXAMPLES = """
lora-tag imgs/
lora-tag imgs/ --recursive --model eva02-large --threshold auto
lora-tag imgs/ --trigger "shiina mayuri" --exclude "*hair*, brown_eyes" --existing merge
lora-tag imgs/ --model ./my-tagger --general 0.3 --character off --dry-run
lora-tag imgs/ --model swinv2 --model vit --combine mean
lora-tag imgs/ --no-txt --jsonl > tags.jsonl
lora-tag imgs/a.png --explain
lora-tag --verify --device cuda
find imgs -name '*.png' | lora-tag - --trigger-from-folder
lora-tag imgs/ | lora-clean --trigger "shiina mayuri" | lora-repeats -o dataset/ --kind character
"""
CATEGORIES = ("copyright", "artist", "meta", "quality")
Decorated = Callable[..., Any]


def _options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


MODEL_OPTIONS = _options(
    click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        metavar="MODEL",
        help="Short name (vit, swinv2, convnext, vit-large, eva02-large; moat, convnextv2, vit-v2, ...; pixai, cl, "
        "camie), hub id, or a folder with model.onnx and selected_tags.csv. Several are combined.  "
        "[default: swinv2]",
    ),
    click.option(
        "--combine",
        type=click.Choice(["mean", "max", "vote", "union", "intersection"]),
        default="mean",
        show_default=True,
        help="How several models decide.",
    ),
    click.option(
        "--revision", metavar="COMMIT", help="Another state of the hub's model than the pinned one."
    ),
    click.option(
        "--model-dir",
        type=click.Path(path_type=Path),
        help="Where models are kept, instead of the hub's cache.",
    ),
    click.option("--offline", is_flag=True, help="Never ask the hub (as HF_HUB_OFFLINE=1)."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cuda", "rocm", "dml", "openvino", "coreml", "cpu"]),
        default="auto",
        show_default=True,
        help="Where the network runs.",
    ),
    click.option(
        "--batch",
        "--batch-size",
        "batch",
        type=click.IntRange(1, 1024),
        help="Pictures at a time.  [default: 8, on a CPU 1]",
    ),
    click.option(
        "--workers", type=click.IntRange(1, 256), help="Decoding threads.  [default: the cores, up to 16]"
    ),
    click.option(
        "--int8",
        is_flag=True,
        help="Run int8 matrix products: faster on some CPUs (measure it), scores a little apart.",
    ),
    click.option(
        "--preprocess",
        type=click.Choice(["bicubic", "kohya"]),
        default="bicubic",
        show_default=True,
        help="Scale as the models' author does, or as sd-scripts does (needs OpenCV).",
    ),
    click.option(
        "--max-pixels",
        type=click.FloatRange(0, min_open=True),
        default=179,
        show_default=True,
        metavar="MILLIONS",
        help="Larger pictures are reported and passed by.",
    ),
    click.option("--no-cache", is_flag=True, help="Neither use nor keep scores of earlier runs."),
    click.option(
        "--verify",
        is_flag=True,
        help="Tag nothing; compare the model as it runs here with a plain run on the CPU, over PATH or made-up "
        "pictures.",
    ),
)
SELECT_OPTIONS = _options(
    click.option(
        "--threshold", "--thresh", metavar="P", help="Threshold of general and character tags alike."
    ),
    click.option(
        "--general",
        "--general-threshold",
        "general",
        metavar="P",
        help="Threshold of general tags: 0.01 to 1, auto (the model's balance of precision and recall) or off.  "
        "[default: 0.35]",
    ),
    click.option(
        "--character",
        "--character-threshold",
        "character",
        metavar="P",
        help="Threshold of character names.  [default: 0.85]",
    ),
    *(
        click.option(f"--{name}", metavar="P", help=f"Threshold of {name} tags, where a model has them.")
        for name in CATEGORIES
    ),
    click.option("--mcut", is_flag=True, help="Cut at each picture's largest gap between scores instead."),
    click.option("--max-tags", type=click.IntRange(1), metavar="N", help="Only the N most certain tags."),
    click.option(
        "--exclude",
        "--undesired-tags",
        "exclude",
        multiple=True,
        metavar="TAGS",
        help="Tags that are left out: names, patterns such as *hair*, or re:EXPRESSION.",
    ),
    click.option("--keep", multiple=True, metavar="TAGS", help="Tags that stay though --exclude matches."),
)
SHAPE_OPTIONS = _options(
    click.option("--trigger", default="", metavar="WORDS", help="Put this in front of every caption."),
    click.option(
        "--trigger-from-folder", is_flag=True, help="The folder's name as trigger: 12_name gives name."
    ),
    click.option("--add", multiple=True, metavar="TAGS", help="Tags for every caption, after the trigger."),
    click.option(
        "--first",
        "--always-first-tags",
        "first",
        multiple=True,
        metavar="TAGS",
        help="Tags that go to the front where they are found.",
    ),
    click.option("--last", multiple=True, metavar="TAGS", help="Tags that go to the end."),
    click.option(
        "--replace",
        "replacements",
        multiple=True,
        metavar="A=B",
        help="Write B (none, one, or several tags) for A. Or a file of such lines.",
    ),
    click.option("--aliases", type=click.Path(path_type=Path), help="File of old -> new names."),
    click.option(
        "--implications",
        type=click.Path(path_type=Path),
        help="File of tag -> implied tag; implied ones are left out.",
    ),
    click.option("--drop-overlap", is_flag=True, help="Leave out shirt where white shirt is."),
    click.option(
        "--expand-character",
        "--character-tag-expand",
        "expand_character",
        is_flag=True,
        help="Write name_(series) as name, series.",
    ),
    click.option(
        "--order",
        type=click.Choice(["score", "count", "model"]),
        default="score",
        show_default=True,
        help="By certainty, the same with 1girl and the like first, or as the model lists them.",
    ),
    click.option(
        "--characters",
        type=click.Choice(["first", "last", "mixed"]),
        default="last",
        show_default=True,
        help="Where character names stand.",
    ),
    click.option("--character-tags-first", is_flag=True, help="The same as --characters first."),
    click.option(
        "--rating",
        type=click.Choice(["off", "first", "last"]),
        default="off",
        show_default=True,
        help="Write the likeliest rating.",
    ),
    click.option(
        "--spaces/--underscores",
        "spaces",
        default=True,
        show_default=True,
        help="How names of several words are written; faces such as ^_^ keep their underscore.",
    ),
    click.option("--escape", is_flag=True, help="Write brackets as \\( and \\), as prompts want them."),
    click.option(
        "--separator", "--caption-separator", "separator", default=", ", show_default=True, metavar="TEXT"
    ),
    click.option(
        "--transparent-tag",
        is_flag=True,
        help="Tag real transparency as transparent background, not white background.",
    ),
)
WRITE_OPTIONS = _options(
    click.option("-r", "--recursive", is_flag=True, help="Look into folders' folders too."),
    click.option(
        "--existing",
        type=click.Choice(["skip", "append", "prepend", "replace", "merge"]),
        default="skip",
        show_default=True,
        help="Pictures that have a caption: pass them by, add what is new, or write it anew.",
    ),
    click.option(
        "--ext",
        "--caption-extension",
        "extension",
        default=".txt",
        show_default=True,
        help="Suffix of caption files.",
    ),
    click.option(
        "-o",
        "--output-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="Write captions there, in the same tree.",
    ),
    click.option(
        "--collision",
        type=click.Choice(["error", "first", "suffix"]),
        default="error",
        show_default=True,
        help="a.png and a.jpg would share a.txt: stop, caption the first only, or write a.jpg.txt.",
    ),
    click.option("--no-txt", is_flag=True, help="Write no caption files, records only."),
    click.option("-n", "--dry-run", is_flag=True, help="Show what would change in each caption."),
    stream_options,
    click.option(
        "--frequency", "--frequency-tags", "frequency", is_flag=True, help="List the tags' counts on stderr."
    ),
    click.option(
        "--report",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="HTML",
        help="Write a page of the pictures with their tags, unsure ones marked.",
    ),
    click.option(
        "--embeddings",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="NPZ",
        help="Write a vector for each picture, near-duplicates' alike.",
    ),
    click.option("--force", is_flag=True, help="Replace the report or embeddings if they exist."),
    click.option(
        "--explain",
        is_flag=True,
        help="Show every tag with its score and what kept it or took it out; write nothing.",
    ),
)


@tool_command("lora-tag", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[PATH]...")
@WRITE_OPTIONS
@MODEL_OPTIONS
@SELECT_OPTIONS
@SHAPE_OPTIONS
def lora_tag(inputs: tuple[str, ...], **flags: Any) -> int:
    """Tag pictures with a WD14 model and write captions beside them.

    PATH are pictures, folders, or - for paths and JSON records on standard input, which is also read without any. In
    a pipe, or with --jsonl, a record with scores goes to stdout for each picture.
    """
    check_texts(flags)
    # Nothing here multiplies matrices with numpy, and its threads would only wait.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lorapipe_tagger.flags import read_flags

    options = read_flags(inputs, flags)
    if flags["verify"]:
        from lorapipe_tagger.verify import verify

        return verify(options)
    from lorapipe_tagger.run import run

    return run(options)


def check_texts(flags: dict[str, Any]) -> None:
    """Raise ConfigError for a suffix or separator that would write nonsense."""
    extension = flags["extension"]
    if not extension.strip(".") or any(sign in extension for sign in "/\\\0\n"):
        raise ConfigError(f"--ext {extension!r}: a suffix such as .txt or .caption is needed")
    if not all(model.strip() for model in flags["models"]):
        raise ConfigError('--model "": a short name, a hub id or a folder is needed')
    if not flags["separator"]:
        raise ConfigError('--separator "": tags would run together; ", " is usual')


def main() -> None:
    """Entry point of ``lora-tag``."""
    lora_tag.main()
