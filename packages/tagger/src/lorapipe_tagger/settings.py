"""What each mode of ``lora-tag`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.foreign import ignored, refused
from lorapipe_engine.command.modes import Mode, flag

How = Literal["mean", "max", "vote", "union", "intersection"]
Device = Literal["auto", "cuda", "rocm", "dml", "openvino", "coreml", "cpu"]
Resampling = Literal["bicubic", "kohya"]
Geometry = Literal["pad", "squash", "crop"]
Order = Literal["score", "count", "model"]
Characters = Literal["first", "last", "mixed"]
Place = Literal["off", "first", "last"]
Existing = Literal["skip", "append", "prepend", "replace", "merge"]
Collision = Literal["error", "first", "suffix"]
CaptionStyle = Literal["both", "sentence", "two-lines"]


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Pictures and records"""

    recursive: bool = flag(False, "Look into folders' folders too.", "-r", "--recursive")
    jsonl: bool | None = flag(
        None,
        "Write JSON records or text.  [default: text on a terminal, records in a pipe]",
        opposite="text",
    )


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Caption files"""

    existing: Existing = flag(
        "skip",
        "Pictures that have a caption: pass them by, add what is new, or write it anew.",
        needs="no_txt=False",
    )
    append_tags: bool = flag(
        False, "Add new tags to captions that are there, as --existing append.", needs="no_txt=False"
    )
    extension: str = flag(
        ".txt",
        "Suffix of the caption files.",
        *("--ext", "--caption-extension", "--caption-extention"),
        metavar="SUFFIX",
        needs="no_txt=False",
    )
    output_dir: Path | None = flag(
        None,
        "Write captions there, in the same tree.",
        *("-o", "--output-dir"),
        metavar="DIR",
        needs="no_txt=False",
    )
    collision: Collision = flag(
        "error",
        "a.png and a.jpg would share a.txt: stop, caption the first only, or write a.jpg.txt.",
        needs="no_txt=False",
    )
    no_txt: bool = flag(False, "Write no caption files, records only.")


@dataclass(frozen=True, kw_only=True)
class DrySettings:
    """Caption files"""

    dry_run: bool = flag(False, "Show what would change in each caption.", "-n", "--dry-run")


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Instead of tagging"""

    undo: bool = flag(False, "Take your last run in these folders back; -n shows what goes.")
    run: str | None = flag(None, "With --undo: take this run back, whoever made it.", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """Other results"""

    frequency: bool = flag(
        False, "List how often each tag comes, on stderr.", "--frequency", "--frequency-tags"
    )
    report: Path | None = flag(
        None,
        "Write a page of the pictures with their tags, unsure ones marked.",
        *("--html", "--report"),
        metavar="FILE",
    )
    embeddings: Path | None = flag(
        None, "Write a vector for each picture, near-duplicates' alike.", metavar="NPZ"
    )
    force: bool = flag(False, "Replace the page or embeddings if they exist.", needs=("report", "embeddings"))


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Instead of tagging"""

    explain: bool = flag(
        False, "Show every tag with its score and what kept it or took it out; write no captions."
    )


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Instead of tagging"""

    verify: bool = flag(
        False,
        "Tag nothing; compare the model as it runs here with a plain run on the CPU, over PATH or made-up pictures.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model"""

    models: tuple[str, ...] = flag(
        (),
        "Short name (vit, swinv2, convnext, vit-large, eva02-large; moat, convnextv2, vit-v2, ...; pixai, cl, camie), "
        "hub id, or a folder with model.onnx and selected_tags.csv. Several are combined.  [default: swinv2]",
        *("-m", "--model", "--repo-id"),
        metavar="MODEL",
    )
    revision: str | None = flag(
        None, "Another state of the hub's model than the pinned one.", metavar="COMMIT"
    )
    model_dir: Path | None = flag(None, "Where models are kept, instead of the hub's cache.", metavar="DIR")
    offline: bool = flag(False, "Never ask the hub (as HF_HUB_OFFLINE=1).")
    device: Device = flag("auto", "What computes the model: a graphics card by its interface, or the CPU.")
    int8: bool = flag(
        False, "Run int8 matrix products: faster on some CPUs (measure it), scores a little apart."
    )
    preprocess: Resampling = flag(
        "bicubic", "Scale as the models' author does, or as sd-scripts does (needs OpenCV)."
    )


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """The work"""

    combine: How = flag("mean", "How several models decide.")
    batch: int | None = flag(
        None,
        "Pictures that the model looks at together.  [default: 8, on a CPU 1]",
        *("--batch", "--batch-size"),
        min=1,
        max=1024,
    )
    workers: int | None = flag(
        None,
        "Threads that decode pictures.  [default: the cores, up to 16]",
        *("--workers", "--max-data-loader-n-workers"),
        min=1,
        max=256,
    )
    max_pixels: float = flag(
        179.0, "Larger pictures are reported and passed by.", metavar="MILLIONS", above=0
    )
    no_cache: bool = flag(False, "Neither use nor keep scores of earlier runs.")


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """Which tags"""

    threshold: str | None = flag(
        None,
        "How sure the model must be of a general or character tag: both thresholds in one.",
        "--threshold",
        "--thresh",
        metavar="P",
    )
    general: str | None = flag(
        None,
        "How sure the model must be of a general tag: 0.01 to 1, auto (the model's balance of precision and "
        "recall) or off.  [default: 0.35]",
        *("--general", "--general-threshold"),
        metavar="P",
    )
    character: str | None = flag(
        None,
        "How sure the model must be of a character's name.  [default: 0.85]",
        *("--character", "--character-threshold"),
        metavar="P",
    )
    copyright: str | None = flag(
        None,
        "How sure the model must be of a copyright tag, where it has them.",
        *("--copyright", "--copyright-threshold"),
        metavar="P",
    )
    artist: str | None = flag(
        None,
        "How sure the model must be of an artist, where it has them.",
        *("--artist", "--artist-threshold"),
        metavar="P",
    )
    meta: str | None = flag(
        None,
        "How sure the model must be of a meta tag, where it has them.",
        *("--meta", "--meta-threshold"),
        metavar="P",
    )
    species: str | None = flag(
        None, "How sure the model must be of a species, where it has them.  [default: 0.35]", metavar="P"
    )
    lore: str | None = flag(None, "How sure the model must be of a lore tag, where it has them.", metavar="P")
    quality: str | None = flag(
        None,
        "How sure the model must be of a quality tag, where it has them.",
        *("--quality", "--quality-threshold"),
        metavar="P",
    )
    mcut: bool = flag(False, "Cut at each picture's largest gap between scores instead.")
    exclude: tuple[str, ...] = flag(
        (),
        "Tags that are left out: names, patterns such as *hair*, or re:EXPRESSION.",
        *("--exclude", "--undesired-tags"),
        metavar="TAGS",
    )
    exclude_file: tuple[Path, ...] = flag(
        (), "File of tags that are left out, a line each or with commas.", metavar="FILE"
    )
    keep: tuple[str, ...] = flag(
        (), "Tags that stay though --exclude matches.", metavar="TAGS", needs=("exclude", "exclude_file")
    )


@dataclass(frozen=True, kw_only=True)
class ShapeSettings:
    """What captions look like"""

    max_tags: int | None = flag(None, "Only the N most certain tags.", min=1, metavar="N")
    trigger: str = flag("", "Put this in front of every caption.", metavar="WORDS")
    trigger_from_folder: bool = flag(False, "The folder's name as trigger: 12_name gives name.")
    add: tuple[str, ...] = flag((), "Tags for every caption, after the trigger.", metavar="TAGS")
    first: tuple[str, ...] = flag(
        (),
        "Tags that go to the front where they are found.",
        "--first",
        "--always-first-tags",
        metavar="TAGS",
    )
    last: tuple[str, ...] = flag((), "Tags that go to the end.", metavar="TAGS")
    replacements: tuple[str, ...] = flag(
        (),
        "Write B (none, one, or several tags) for A. Or a file of such lines.",
        "--replace",
        metavar="A=B",
    )
    tag_replacement: str = flag(
        "", "Replacements as sd-scripts has them, the same as --replace.", metavar="A,B;C,D"
    )
    aliases: Path | None = flag(None, "File of old -> new names.", metavar="FILE")
    implications: Path | None = flag(
        None, "File of tag -> implied tag; implied ones are left out.", metavar="FILE"
    )
    drop_overlap: bool = flag(False, "Leave out shirt where white shirt is.")
    expand_character: bool = flag(
        False, "Write name_(series) as name, series.", "--expand-character", "--character-tag-expand"
    )
    order: Order = flag(
        "score", "By certainty, the same with 1girl and the like first, or as the model lists them."
    )
    characters: Characters = flag("last", "Where names of characters stand among the tags.")
    character_tags_first: bool = flag(False, "Write names of characters first, as --characters first.")
    rating: Place = flag("off", "Write the likeliest rating among the tags.")
    use_rating_tags: bool = flag(False, "Write the likeliest rating in front, as --rating first.")
    use_rating_tags_as_last_tag: bool = flag(
        False, "Write the likeliest rating at the end, as --rating last."
    )
    spaces: bool = flag(
        True,
        "How names of several words are written; faces such as ^_^ keep their underscore.",
        opposite="underscores",
    )
    escape: bool = flag(False, "Write brackets as \\( and \\), as prompts want them.")
    separator: str = flag(
        ", ",
        "What is written between two tags of a caption.  [default: ', ']",
        "--separator",
        "--caption-separator",
        metavar="TEXT",
    )
    transparent_tag: bool = flag(
        False, "Tag real transparency as transparent background, not white background."
    )


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """Sentences, by a model that you run"""

    caption_url: str | None = flag(
        None,
        "Ask an OpenAI-compatible server (llama.cpp, vLLM, LM Studio) for sentences: http://127.0.0.1:8080/v1.",
        metavar="URL",
    )
    caption_style: CaptionStyle = flag(
        "both",
        "What captions get: tags and the sentence behind them, the sentence alone, or a line for each.",
        needs="caption_url",
    )
    caption_prompt: str | None = flag(
        None,
        "What the server's model is asked, with {tags}, {trigger}, {name} for this picture's.",
        metavar="TEXT|@FILE",
        needs="caption_url",
    )
    no_hints: bool = flag(
        False,
        "Tell it no tags; with --caption-style sentence no tagger is loaded.",
        needs="caption_url",
    )
    caption_model: str | None = flag(
        None,
        "The name it goes by at the server.  [default: the first of GET /models]",
        metavar="NAME",
        needs="caption_url",
    )
    caption_tokens: int = flag(
        200,
        "The longest answer; one that is cut off there is refused.",
        min=1,
        metavar="N",
        needs="caption_url",
    )
    caption_jobs: int = flag(
        2, "Questions that are under way together.", min=1, max=64, metavar="N", needs="caption_url"
    )
    caption_timeout: float = flag(
        120.0, "How long to wait for an answer.", metavar="SECONDS", above=0, max=86400, needs="caption_url"
    )
    caption_retries: int = flag(
        4,
        "How often to ask again, after growing pauses, a server that is busy or away.",
        min=0,
        max=20,
        metavar="N",
        needs="caption_url",
    )
    caption_key: str | None = flag(
        None,
        "Your key at the server; better in the environment, as LORA_TAG_CAPTION_KEY.",
        metavar="KEY",
        needs="caption_url",
        secret=True,
    )


_TAGGING = (ResultSettings, WorkSettings, ShapeSettings, ModelSettings, SelectSettings, InputSettings)
MODES = (
    Mode("tagging", (CaptionSettings, DrySettings, SentenceSettings, *_TAGGING)),
    Mode("--explain", (ExplainSettings, *_TAGGING), by="explain"),
    Mode("--verify", (VerifySettings, ModelSettings, SelectSettings, InputSettings), by="verify"),
    Mode("--undo", (UndoSettings, DrySettings), by="undo"),
)
# As the help shows them.
ORDER = (
    ModelSettings,
    SelectSettings,
    ShapeSettings,
    CaptionSettings,
    DrySettings,
    SentenceSettings,
    ResultSettings,
    WorkSettings,
    InputSettings,
    ExplainSettings,
    VerifySettings,
    UndoSettings,
)
# Of sd-scripts' tag_images_by_wd14_tagger.py.
FOREIGN = {
    **ignored("models are ONNX networks anyway", "onnx", flag=True),
    **ignored(
        "names are written with spaces anyway; --underscores keeps underscores",
        "remove_underscore",
        flag=True,
    ),
    **refused(
        "remove the model's folder from the hub's cache, or use --revision", "force_download", flag=True
    ),
    **refused("use --explain, which shows every tag with its score", "debug", flag=True),
    **refused(
        "use --quality P, from which quality tags are written",
        "use_quality_tags",
        "use_quality_tags_as_last_tag",
        flag=True,
    ),
    **refused("the likeliest rating is taken, use --rating first or last", "rating_threshold"),
    **refused("tags of the drawing program are never written", "model_threshold"),
}
