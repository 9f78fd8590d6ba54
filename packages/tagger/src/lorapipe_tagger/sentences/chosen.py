"""The options of sentences, checked."""

from __future__ import annotations

import os
from collections.abc import Collection

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.options import fields_of
from lorapipe_engine.errors import ConfigError
from lorapipe_tagger.sentences.address import OPTION, parse_address
from lorapipe_tagger.sentences.asking import Asking
from lorapipe_tagger.sentences.prompts import read_prompt
from lorapipe_tagger.settings import (
    Existing,
    ModelSettings,
    ResultSettings,
    SelectSettings,
    SentenceSettings,
    ShapeSettings,
    WorkSettings,
)

KEY_VARIABLE = "LORA_TAG_CAPTION_KEY"
# What has a use though no tag is looked for.
_WITHOUT_TAGS = {
    "trigger",
    "trigger_from_folder",
    "add",
    "separator",
    "escape",
    "max_pixels",
    "no_cache",
    "force",
}


def asking_of(chosen: Chosen, existing: Existing, *, max_pixels: int) -> Asking:
    """How sentences are to be asked for, of a command line with an address. Raises ConfigError."""
    settings, shape = chosen[SentenceSettings], chosen[ShapeSettings]
    address = parse_address(settings.caption_url or "")
    key = settings.caption_key if "caption_key" in chosen.given else os.environ.get(KEY_VARIABLE)
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise ConfigError(f"--caption-key or {KEY_VARIABLE}: empty, or with letters that no key has")
    if key and address.login:
        raise ConfigError(f"{OPTION} with a user and --caption-key exclude each other; give one of them")
    if settings.caption_model is not None and not settings.caption_model.strip():
        raise ConfigError('--caption-model "": a name is needed, or leave it out')
    if settings.caption_style == "two-lines" and existing not in ("skip", "replace"):
        raise ConfigError(
            f"--caption-style two-lines with --existing {existing}: tags would go into each line of a caption; give "
            "--existing skip or replace, or --caption-style both"
        )
    if settings.caption_style == "sentence" and chosen[ResultSettings].frequency:
        raise ConfigError("--frequency has no use with --caption-style sentence: captions get no tags")
    prompt = read_prompt(
        settings.caption_prompt,
        hints=not settings.no_hints,
        trigger=bool(shape.trigger.strip() or shape.trigger_from_folder),
    )
    asking = Asking(
        address=address,
        prompt=prompt,
        style=settings.caption_style,
        model=settings.caption_model,
        tokens=settings.caption_tokens,
        jobs=settings.caption_jobs,
        seconds=settings.caption_timeout,
        retries=settings.caption_retries,
        key=key,
        max_pixels=max_pixels,
    )
    if not asking.needs_tags:
        _refuse_tagging(chosen.given)
    return asking


def _refuse_tagging(given: Collection[str]) -> None:
    """Raise ConfigError for an option that only a tagger has a use for."""
    for part in (ModelSettings, SelectSettings, ShapeSettings, ResultSettings, WorkSettings):
        for field in fields_of(part):
            if field.name in given and field.name not in _WITHOUT_TAGS:
                raise ConfigError(
                    f"{field.label} has no use here, for no tagger is loaded: --caption-style sentence without "
                    "{tags} in the question needs none"
                )
