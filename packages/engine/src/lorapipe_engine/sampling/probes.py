"""Ready plans for the questions that a finished training leaves, each a page of ``lora-grid``.

Prompts of a probe may be of a kind: "trigger" (with the network's trigger), "same" (the same without it) and "other"
(prompts that have nothing to do with it); records say which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.axes import KINDS, Axis, parse_axis
from lorapipe_engine.sampling.plan import file_axis
from lorapipe_engine.sampling.prompts.wildcards import has_choices, parse_template

BACKGROUNDS = (
    "{outdoors, forest|beach, ocean|city street, night|classroom|kitchen, indoors|snow, mountain|flower field|"
    "simple background}"
)
OTHERS = ("a landscape with mountains, no humans", "1boy, armor, standing")
ELSEWHERE = "outdoors, rain"
OUTSIDE = ("wearing a red hat", "holding an umbrella", "sitting on a chair", "in the rain")
PLACEHOLDER = "TRIGGER"


@dataclass(frozen=True)
class Probe:
    """A plan that is ready: its axes, the prompt where it is another, the kinds of its prompts."""

    axes: tuple[Axis, ...]
    prompt: str
    kinds: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """What a probe is about. ``networks``: paths as given; ``trigger``: the words that call the network."""

    networks: tuple[str, ...]
    prompt: str
    trigger: str | None = None


def read_probe(word: str, subject: Subject) -> Probe:
    """The plan of ``weight``, ``seeds``, ``trigger=a,b``, ...

    Raises ConfigError for an unknown probe, and where a probe lacks networks, a prompt or a trigger.
    """
    name, equals, words = word.partition("=")
    name = name.strip().lower().replace("_", "-")
    if name == "trigger":
        return _trigger(words, subject)
    if name not in _PROBES or equals:
        close = get_close_matches(name, [*_PROBES, "trigger"], 1)
        known = f"; there are {', '.join(_PROBES)} and trigger=WORD,WORD"
        hint = f", did you mean '{close[0]}'?" if close and close[0] != name else known
        raise ConfigError(f"--probe: '{word}' is no probe{hint}")
    if not subject.networks:
        raise ConfigError(f"--probe {name}: name the networks, as run/*.safetensors")
    if not subject.prompt:
        raise ConfigError(f"--probe {name}: give a --prompt that the network answers to")
    return _PROBES[name](subject)


def _files(subject: Subject) -> Axis:
    return file_axis(subject.networks, "NETWORK")


def _axis(word: str) -> Axis:
    return parse_axis(word, "--probe")


def _prompts(rows: Sequence[tuple[str, str]]) -> tuple[Axis, dict[str, str]]:
    """An axis of prompts, and the kind of each."""
    texts = tuple(dict.fromkeys(text for text, _ in rows))
    return Axis(KINDS["prompt"], texts, "--probe", "prompt"), dict(rows)


def _weight(subject: Subject) -> Probe:
    return Probe((_files(subject), _axis("weight:0.7-1.5 [5]")), subject.prompt)


def _seeds(subject: Subject) -> Probe:
    axes = (_files(subject), _axis("seed:-1--1 [8]"))
    if has_choices(parse_template(subject.prompt, "--prompt")):
        return Probe(axes, subject.prompt)
    note = "the prompt has no choice of its own, so backgrounds are drawn behind it"
    return Probe(axes, f"{subject.prompt}, {BACKGROUNDS}", notes=(note,))


def _leak(subject: Subject) -> Probe:
    if not subject.trigger:
        raise ConfigError("--probe leak: give the network's --trigger, to be left out of the prompt")
    if not whole_words(subject.trigger).search(subject.prompt):
        raise ConfigError(f"--probe leak: the --trigger '{subject.trigger}' is not in the prompt")
    asking = [subject.prompt, f"{subject.prompt}, {ELSEWHERE}"]
    silent = [without_words(prompt, subject.trigger) for prompt in asking]
    # Two prompts of each kind and four seeds: eight pictures of the concept, which lora-grid --best asks for.
    prompts, kinds = _prompts(kinds_of(asking, silent, OTHERS))
    return Probe((_files(subject), prompts, _axis("seed:-1--1 [4]")), subject.prompt, kinds)


def kinds_of(asking: Sequence[str], silent: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts, each with its kind."""
    kinds = (("trigger", asking), ("same", silent), ("other", others))
    return [(prompt, kind) for kind, prompts in kinds for prompt in prompts]


def _text_encoder(subject: Subject) -> Probe:
    rows = [(subject.prompt, "trigger"), *((f"{subject.prompt}, {words}", "trigger") for words in OUTSIDE)]
    prompts, kinds = _prompts(rows)
    return Probe((_files(subject), prompts, _axis("te:0-1 [3]")), subject.prompt, kinds)


def _headroom(subject: Subject) -> Probe:
    return Probe((_axis("weight:0-2 [9]"), _axis("seed:-1--1 [4]"), _files(subject)), subject.prompt)


def _resize(subject: Subject) -> Probe:
    if len(subject.networks) < 2:
        raise ConfigError("--probe resize: name the network and what lora-resize made of it")
    return Probe((_files(subject), _axis("seed:-1--1 [4]")), subject.prompt)


def _merge(subject: Subject) -> Probe:
    """Each part, all of them in one picture, and the merged file, which is named last."""
    if len(subject.networks) < 3:
        raise ConfigError("--probe merge: name the parts, and last the network that they were merged into")
    *parts, merged = subject.networks
    files = file_axis((*parts, " + ".join(parts), merged), "NETWORK")
    return Probe((files, _axis("seed:-1--1 [4]")), subject.prompt)


def _trigger(words: str, subject: Subject) -> Probe:
    """The base alone, asked for each word and for none: which of them does it know?"""
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not names:
        raise ConfigError("--probe trigger: give the words to try, as --probe trigger=mina,mayuri")
    if subject.networks:
        raise ConfigError("--probe trigger draws with the base alone; leave the networks out")
    prompt = subject.prompt or PLACEHOLDER
    if PLACEHOLDER not in prompt:
        raise ConfigError(f"--probe trigger: write {PLACEHOLDER} in the prompt where the words are to stand")
    axis = Axis(KINDS["sr"], ("", *names), "--probe", "trigger", search=PLACEHOLDER)
    return Probe((axis, _axis("seed:-1--1 [4]")), prompt)


def without_words(prompt: str, words: str) -> str:
    """A prompt from which words are taken: no empty places are left between commas."""
    return re.sub(r"(?:\s*,\s*){2,}", ", ", whole_words(words).sub("", prompt)).strip(" ,")


def whole_words(words: str) -> re.Pattern[str]:
    """What finds words in a prompt, and not as a part of longer ones."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


_PROBES: Mapping[str, Callable[[Subject], Probe]] = MappingProxyType(
    {
        "weight": _weight,
        "seeds": _seeds,
        "leak": _leak,
        "text-encoder": _text_encoder,
        "headroom": _headroom,
        "resize": _resize,
        "merge": _merge,
    }
)
PROBES = (*_PROBES, "trigger")
