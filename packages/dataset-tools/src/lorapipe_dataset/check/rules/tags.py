"""Tags: unknown, misspelt, double, contradictory, in nearly all captions, about artefacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lorapipe_dataset.check.findings import Check, Finding, Rule, Skipped
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset, Picture
from lorapipe_dataset.check.rules.captions import guess_trigger
from lorapipe_dataset.check.settings import Severity
from lorapipe_dataset.texts.vocabulary import (
    ARTEFACTS,
    PANELS,
    SEVERAL,
    canonical,
    contradictions,
    rating_of,
    read_aliases,
    read_vocabulary,
    shown,
)
from lorapipe_engine.datasets.signs import COMMAND, LIKELY, WEIGHT, WILDCARD

INVARIANT_SHARE = 0.8
ENOUGH = 5  # captions of a concept from which shares say something

UNKNOWN = Rule(
    "unknown-tag",
    "warning",
    "Tags that the list does not have",
    "use the tag that the base model knows, or leave it if it is a name of yours",
)
MISSPELT = Rule(
    "misspelt-tag",
    "warning",
    "Tags that are nearly one of the list",
    "write the known tag (--fix does; look at them with --dry-run first)",
    fixable=True,
)
ALIAS = Rule("alias", "warning", "Old names of tags", "write the new name (--fix does)", fixable=True)
DOUBLE = Rule(
    "duplicate-tag", "warning", "Tags that stand twice in a caption", "remove one (--fix does)", fixable=True
)
CONTRADICTION = Rule(
    "contradiction", "warning", "Tags that exclude each other", "look at the picture and remove the wrong one"
)
INVARIANT = Rule(
    "invariant-tag",
    "warning",
    "Tags in 80 % of a concept's captions or more",
    "what always belongs to the character is learned by the trigger when the tag goes (--fix removes it); "
    "keep what should stay changeable",
    fixable=True,
)
ARTEFACT = Rule(
    "artefact",
    "warning",
    "Tags of signatures, watermarks, text and faults",
    "crop or paint them out; the tag alone does not keep them out of the result",
)
PANEL = Rule(
    "panels", "warning", "Several views or panels in one picture", "cut them apart, or take them out"
)
PEOPLE = Rule(
    "several-people",
    "warning",
    "Other people than the character, or none",
    "crop the others away, or take it out",
)
RATING = Rule(
    "rating-mix",
    "info",
    "Ratings in some captions only, or of several kinds",
    "remove them (--fix does)",
    fixable=True,
)


PROMPT = Rule(
    "prompt-syntax",
    "warning",
    "Signs of prompts in captions: they are trained as words",
    "lora-clean --strip-weights, and --drop 're:<.*>' --drop BREAK for the others",
)
COMMA = Rule(
    "other-comma",
    "warning",
    "Commas of other scripts between tags: what they part is trained as one tag",
    "lora-clean --split ， (or the sign that is named) writes plain ones",
)
_COMMAS = "，、،"
WILDCARDS = Rule(
    "wildcards",
    "info",
    "Choices in braces in captions: they are trained as they stand without enable_wildcard",
    "lora-train --enable_wildcard, or lora-clean --expand-wildcards",
)


def find_prompts(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Captions that were copied from prompts with the signs that only prompts have."""
    for picture in dataset.captioned:
        text = picture.caption or ""
        if not LIKELY.search(text):
            continue
        signs = list(dict.fromkeys([*WEIGHT.findall(text), *COMMAND.findall(text)]))
        if signs:
            yield Finding(PROMPT, _quoted(signs), (picture.path,), {"signs": signs})
        choices = list(dict.fromkeys(WILDCARD.findall(text)))
        if choices:
            yield Finding(WILDCARDS, _quoted(choices), (picture.path,), {"signs": choices})


def find_commas(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Captions of tags that are parted by signs that no trainer parts them at."""
    for picture in dataset.captioned if dataset.style == "tags" else ():
        signs = [sign for sign in _COMMAS if sign in (picture.caption or "")]
        if signs:
            yield Finding(COMMA, _quoted(signs), (picture.path,), {"signs": signs})


def _quoted(texts: list[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


def find_known(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Tags that the list does not have, the nearest known one beside them."""
    if options.tags_file is None:
        raise Skipped("needs a list of known tags; give --tags selected_tags.csv of a tagger")
    if dataset.style == "text":
        raise Skipped("captions are sentences")
    vocabulary = read_vocabulary(options.tags_file)
    own = {canonical(concept) for concept in dataset.concepts}
    own |= {canonical(word) for word in (options.trigger, guess_trigger(dataset)) if word}
    aliases = read_aliases(options.aliases) if options.aliases else {}
    for tag, pictures in _by_tag(dataset).items():
        if tag in vocabulary.counts or tag in own or tag in aliases or rating_of(tag):
            continue
        near = vocabulary.nearest(tag)
        paths = tuple(picture.path for picture in pictures)
        if near:
            yield Finding(
                MISSPELT,
                f"'{shown(tag)}': did you mean '{shown(near)}'?",
                paths,
                {"tag": tag, "nearest": near},
            )
        else:
            yield Finding(UNKNOWN, f"'{shown(tag)}'", paths, {"tag": tag})


def find_aliases(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Old names of tags."""
    if options.aliases is None:
        raise Skipped("needs a list of old and new names; give --aliases FILE")
    aliases = read_aliases(options.aliases)
    for tag, pictures in _by_tag(dataset).items():
        if tag in aliases:
            paths = tuple(picture.path for picture in pictures)
            yield Finding(
                ALIAS, f"'{shown(tag)}' is now '{aliases[tag]}'", paths, {"tag": tag, "new": aliases[tag]}
            )


def _by_tag(dataset: Dataset) -> dict[str, list[Picture]]:
    """Canonical tags, the commonest first, with their pictures."""
    by_tag: dict[str, list[Picture]] = {}
    for picture in dataset.captioned:
        for tag in dict.fromkeys(picture.keys):
            by_tag.setdefault(tag, []).append(picture)
    by_tag.pop("", None)
    return dict(sorted(by_tag.items(), key=lambda row: (-len(row[1]), row[0])))


def find_in_captions(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """What single captions have wrong."""
    for picture in dataset.captioned:
        tags = picture.keys
        double = [tag for tag, count in Counter(tags).items() if count > 1]
        if double:
            yield Finding(DOUBLE, _listed(double), (picture.path,), {"tags": double})
        for clash in contradictions(tags):
            yield Finding(CONTRADICTION, " + ".join(clash), (picture.path,), {"tags": list(clash)})
        if options.kind == "character" and (
            others := sorted(SEVERAL.intersection(tags) | {"no humans"} & set(tags))
        ):
            yield Finding(PEOPLE, _listed(others), (picture.path,), {"tags": others})


def find_artefacts(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Tags of what nobody wants to learn."""
    for tag, pictures in _by_tag(dataset).items():
        rule = PANEL if tag in PANELS else ARTEFACT if tag in ARTEFACTS else None
        if rule:
            paths = tuple(picture.path for picture in pictures)
            yield Finding(
                rule, f"'{tag}' on {len(paths)} picture{'s' * (len(paths) != 1)}", paths, {"tag": tag}
            )


def find_invariant(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Tags that nearly all captions of a concept have."""
    guessed = canonical(guess_trigger(dataset) or "") if options.trigger is None else ""
    milder: Severity | None = None if options.kind == "character" else "info"
    for concept, pictures in dataset.concepts.items():
        captioned = [picture for picture in pictures if picture.caption]
        if len(captioned) < ENOUGH:
            continue
        own = {canonical(concept), canonical(options.trigger or concept)}
        counts: Counter[str] = Counter()
        for picture in captioned:
            counts.update(set(picture.keys))
        for tag, count in sorted(counts.items(), key=lambda row: (-row[1], row[0])):
            if count >= INVARIANT_SHARE * len(captioned) and tag not in own:
                text = f"'{shown(tag)}' in {count / len(captioned):.0%} of {concept}"
                text += " (the trigger? then name it with --trigger)" if tag == guessed else ""
                paths = tuple(p.path for p in captioned if tag in p.keys)
                yield Finding(
                    INVARIANT, text, paths, {"tag": tag, "share": round(count / len(captioned), 4)}, milder
                )


def find_ratings(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Ratings that only some captions name, or that differ."""
    rated: dict[str, list[Picture]] = {}
    for picture in dataset.captioned:
        for rating in set(map(rating_of, picture.keys)) - {None}:
            rated.setdefault(str(rating), []).append(picture)
    total = len({picture.path for group in rated.values() for picture in group})
    if rated and (len(rated) > 1 or total < len(dataset.captioned)):
        counts = ", ".join(f"{rating} {len(group)}" for rating, group in sorted(rated.items()))
        paths = tuple(sorted({picture.path for group in rated.values() for picture in group}))
        yield Finding(RATING, f"{counts}, none {len(dataset.captioned) - total}", paths)


def _listed(tags: list[str]) -> str:
    return ", ".join(f"'{shown(tag)}'" for tag in tags)


CHECKS = (
    Check((UNKNOWN, MISSPELT), find_known),
    Check((PROMPT, WILDCARDS), find_prompts),
    Check((COMMA,), find_commas),
    Check((ALIAS,), find_aliases),
    Check((DOUBLE, CONTRADICTION, PEOPLE), find_in_captions),
    Check((ARTEFACT, PANEL), find_artefacts),
    Check((INVARIANT,), find_invariant),
    Check((RATING,), find_ratings),
)
