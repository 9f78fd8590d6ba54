"""The command line of ``lora-tag``, checked: settings become what the work is done with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.caption_files import caption_suffix
from lorapipe_engine.pictures.tag_lists import split_list
from lorapipe_engine.pictures.triggers import check_no_mark
from lorapipe_tagger.captions.shape import Shape
from lorapipe_tagger.captions.texts import (
    AUTO,
    OFF,
    compared,
    parse_threshold,
    read_list_files,
    read_pair_file,
    read_pairs,
    sd_pairs,
)
from lorapipe_tagger.models.known import DEFAULT
from lorapipe_tagger.models.labels import Labels
from lorapipe_tagger.models.names import ModelFiles
from lorapipe_tagger.scoring.pipeline import Work, default_workers
from lorapipe_tagger.scoring.select import Rules
from lorapipe_tagger.settings import (
    CaptionSettings,
    Collision,
    DrySettings,
    Existing,
    ExplainSettings,
    How,
    InputSettings,
    ModelSettings,
    Place,
    ResultSettings,
    SelectSettings,
    SentenceSettings,
    ShapeSettings,
    UndoSettings,
    WorkSettings,
)

if TYPE_CHECKING:
    from lorapipe_tagger.sentences.asking import Asking

CATEGORIES = ("general", "character", "copyright", "artist", "species", "meta", "lore", "quality")
_MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. ``thresholds``: by category a number, OFF, or "auto"; those left out are the model's."""

    inputs: Sequence[str]
    recursive: bool
    models: Sequence[str]
    combine: How
    revision: str | None
    model_dir: Path | None
    offline: bool
    work: Work
    cache: bool
    thresholds: Mapping[str, float | str]
    mcut: bool
    exclude: Sequence[str]
    keep: Sequence[str]
    shape: Shape
    replacements: Sequence[str]
    aliases: Path | None
    implications: Path | None
    trigger_from_folder: bool
    transparent_tag: bool
    existing: Existing
    extension: str
    output_dir: Path | None
    collision: Collision
    write: bool
    dry_run: bool
    jsonl: bool | None
    frequency: bool
    explain: bool
    report: Path | None
    embeddings: Path | None
    force: bool
    undo: bool
    run: str | None
    asking: Asking | None

    @property
    def tagger(self) -> bool:
        """Whether tags are wanted at all, not only sentences."""
        return self.asking is None or self.asking.needs_tags

    @classmethod
    def of(cls, inputs: Sequence[str], chosen: Chosen) -> Options:
        """The options that the command line means. Raises ConfigError for what no option can be."""
        captions, results = chosen[CaptionSettings], chosen[ResultSettings]
        model, shape = chosen[ModelSettings], chosen[ShapeSettings]
        work, select, stream = chosen[WorkSettings], chosen[SelectSettings], chosen[InputSettings]
        explain = chosen[ExplainSettings].explain
        _check_texts(model, shape)
        if "trigger" in chosen.given and not shape.trigger.strip(" ,"):
            raise ConfigError("--trigger: an empty word, which does nothing")
        check_no_mark([shape.trigger], "--trigger")
        check_no_mark(shape.add, "--add")
        if chosen[DrySettings].dry_run and captions.no_txt:
            raise ConfigError("--dry-run has no use with --no-txt: no captions are written anyway")
        models = model.models or (DEFAULT,)
        if "combine" in chosen.given and len(models) < 2:
            raise ConfigError("--combine has a use only with several models: give --model once for each")
        existing, tagging = _existing_of(captions, chosen.given), _work_of(work, model)
        return cls(
            inputs=inputs,
            recursive=stream.recursive,
            models=models,
            combine=work.combine,
            revision=model.revision,
            model_dir=model.model_dir,
            offline=model.offline,
            work=tagging,
            cache=not work.no_cache,
            thresholds=thresholds_of(select),
            mcut=select.mcut,
            exclude=[*split_list(select.exclude), *read_list_files(select.exclude_file)],
            keep=split_list(select.keep),
            shape=_shape_of(shape, chosen.given),
            replacements=(*shape.replacements, *sd_pairs(shape.tag_replacement)),
            aliases=shape.aliases,
            implications=shape.implications,
            trigger_from_folder=shape.trigger_from_folder,
            transparent_tag=shape.transparent_tag,
            existing=existing,
            extension=caption_suffix(captions.extension, "--ext"),
            output_dir=captions.output_dir,
            collision=captions.collision,
            write=not (captions.no_txt or explain),
            dry_run=chosen[DrySettings].dry_run,
            jsonl=stream.jsonl,
            frequency=results.frequency,
            explain=explain,
            report=results.report,
            embeddings=results.embeddings,
            force=results.force,
            undo=chosen[UndoSettings].undo,
            run=chosen[UndoSettings].run,
            asking=_asking_of(chosen, existing, tagging),
        )


def _asking_of(chosen: Chosen, existing: Existing, work: Work) -> Asking | None:
    if chosen[SentenceSettings].caption_url is None:
        return None
    from lorapipe_tagger.sentences.chosen import asking_of

    return asking_of(chosen, existing, max_pixels=work.max_pixels)


def _check_texts(model: ModelSettings, shape: ShapeSettings) -> None:
    """Raise ConfigError for a model or separator that would write nonsense."""
    if not all(word.strip() for word in model.models):
        raise ConfigError('--model "": a short name, a hub id or a folder is needed')
    if not shape.separator:
        raise ConfigError('--separator "": tags would run together; ", " is usual')


def _work_of(work: WorkSettings, model: ModelSettings) -> Work:
    return Work(
        batch=work.batch,
        workers=work.workers or default_workers(),
        max_pixels=round(work.max_pixels * _MILLION),
        resampling=model.preprocess,
        device=model.device,
        int8=model.int8,
    )


def thresholds_of(select: SelectSettings) -> dict[str, float | str]:
    """Thresholds by category, as far as they were given; ``threshold`` holds for general and character tags."""
    parse_threshold(select.threshold, "--threshold")
    given: dict[str, float | str] = {}
    above: dict[str, list[str]] = {}
    for category in CATEGORIES:
        option, text = f"--{category}", getattr(select, category)
        if text is None and category in ("general", "character"):
            option, text = "--threshold", select.threshold
        value = parse_threshold(text, option)
        if value is not None:
            given[category] = value
        if value == OFF and text is not None and text.lower() != "off":
            above.setdefault(f"{option} {text}", []).append(category)
    for asked, categories in above.items():
        none = " and no ".join(categories)
        say(f"lora-tag: note: {asked} is above 1, so there will be no {none} tags")
    return given


def _existing_of(captions: CaptionSettings, given: Collection[str]) -> Existing:
    if captions.append_tags and "existing" in given and captions.existing != "append":
        raise ConfigError(
            f"--existing {captions.existing} and --append_tags exclude each other; give one of them"
        )
    return "append" if captions.append_tags else captions.existing


def _rating_of(settings: ShapeSettings, given: Collection[str]) -> Place:
    asked: set[Place] = set()
    asked |= {"last"} if settings.use_rating_tags_as_last_tag else set()
    # sd-scripts takes the other one for a detail of this one.
    asked |= {"first"} if settings.use_rating_tags and not asked else set()
    asked |= {settings.rating} if "rating" in given else set()
    if len(asked) > 1:
        raise ConfigError(
            f"--rating {settings.rating} and --use_rating_tags say different things; give one of them"
        )
    return asked.pop() if asked else "off"


def _shape_of(settings: ShapeSettings, given: Collection[str]) -> Shape:
    if settings.trigger_from_folder and settings.trigger:
        raise ConfigError("--trigger and --trigger-from-folder exclude each other; give one of them")
    if settings.character_tags_first and "characters" in given and settings.characters != "first":
        raise ConfigError(
            f"--characters {settings.characters} and --character-tags-first exclude each other; give one of them"
        )
    return Shape(
        trigger=settings.trigger.strip(),
        characters="first" if settings.character_tags_first else settings.characters,
        add=split_list(settings.add),
        first=split_list(settings.first),
        last=split_list(settings.last),
        drop_overlap=settings.drop_overlap,
        expand_character=settings.expand_character,
        max_tags=settings.max_tags,
        order=settings.order,
        rating=_rating_of(settings, given),
        spaces=settings.spaces,
        escape=settings.escape,
        separator=settings.separator,
    )


def rules_for(model: ModelFiles, options: Options) -> Rules:
    """A model's thresholds, its own where none were asked for.

    Raises ConfigError for "auto" where the balanced threshold is not known.
    """
    thresholds: dict[str, float] = dict(model.adapter.thresholds)
    for category, value in options.thresholds.items():
        if isinstance(value, float):
            thresholds[category] = value
        elif model.balanced is None:
            raise ConfigError(
                f"threshold {AUTO}: where precision and recall are equal is not known of {model.name}; "
                f"give a number such as 0.35"
            )
        else:
            thresholds[category] = model.balanced
    own = [category for category in CATEGORIES if category not in options.thresholds]
    return Rules(
        thresholds=thresholds, own=own, mcut=options.mcut, exclude=options.exclude, keep=options.keep
    )


def shape_for(labels: Labels, options: Options) -> Shape:
    """The shape of captions with what files say and what the model knows of series.

    Raises ConfigError or InputError for files and pairs that cannot be read.
    """
    return replace(
        options.shape,
        replacements=read_pairs(options.replacements, labels.names),
        aliases=read_pair_file(options.aliases) if options.aliases else {},
        implications=compared(read_pair_file(options.implications)) if options.implications else {},
        series=labels.series,
    )
