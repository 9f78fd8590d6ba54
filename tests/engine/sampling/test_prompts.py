"""Syntax of prompts against A1111's and the dynamic-prompts extension's own results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.prompts.attention import BREAK, parse_prompt, parse_weights, split_chunks
from lorapipe_engine.sampling.prompts.editing import refuse_editing
from lorapipe_engine.sampling.prompts.tags import Tag, refuse_tags, split_tags, tag_notes
from lorapipe_engine.sampling.prompts.wildcards import (
    Part,
    Template,
    Wild,
    Wildcards,
    counts_of,
    draw_prompt,
    parse_template,
    weighted_options,
)

DATA = Path(__file__).parents[2] / "data" / "see"
PROMPTS: dict[str, Any] = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
GOLDEN: dict[str, Any] = json.loads((DATA / "wildcards.json").read_text(encoding="utf-8"))

KNOWN = ["a red cat in forest", "a green cat in forest", "a red cat in beach"]

# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("case", PROMPTS["attention"], ids=lambda case: repr(case["prompt"]))
def test_weights_are_a1111s(case: dict[str, Any]) -> None:
    pieces = parse_prompt(case["prompt"])
    assert [text for text, _ in pieces] == [text for text, _ in case["parts"]]
    assert [weight for _, weight in pieces] == pytest.approx([weight for _, weight in case["parts"]])


def test_break_begins_a_chunk_and_captions_have_none() -> None:
    assert split_chunks(parse_prompt("a (b:1.2) BREAK c")) == [[("a ", 1), ("b", 1.2), ("", 1)], [("c", 1)]]
    assert len(split_chunks(parse_prompt("(a BREAK b:1.2)"))) == 1
    assert split_chunks([]) == [[]]
    assert BREAK not in parse_weights("a BREAK b")


# ---------------------------------------------------------------------------------------------- networks

REFUSED_TAGS = {
    "<lora:a:0.8:0.5:4>": "dyn= is not supported",
    "<lora:a:1:dyn=8>": "dyn= is not supported",
    "<lora:a:x>": "'x' is no number",
    "<lora:a:>": "'' is no number",
    "<LORA:a:1>": "write <lora:a:1>",
    "<lora:a:1:lbw=ALL>": "lbw= is not supported",
    "<lora:a=b:1>": "name comes first",
    "<hypernet:h:0.5>": "not supported",
}


@pytest.mark.parametrize("case", PROMPTS["lora_tags"], ids=lambda case: repr(case["prompt"]))
def test_tags_are_a1111s(case: dict[str, Any]) -> None:
    prompt = case["prompt"]
    if prompt in REFUSED_TAGS:
        with pytest.raises(ConfigError, match="prompt: ") as refusal:
            split_tags(prompt, "prompt")
        assert REFUSED_TAGS[prompt] in str(refusal.value)
        return
    text, tags = split_tags(prompt, "prompt")
    # A1111's test has no extension under the other name of the tag.
    networks = case.get("networks") or [{"name": "a", "te": 1.0, "unet": 1.0}] * ("lyco" in prompt)
    assert text == case["text_left"]
    assert tags == tuple(Tag(row["name"], row["te"], row["unet"]) for row in networks)


def test_a_tag_that_is_written_is_read_as_it_was() -> None:
    for tag in (Tag("a b", 0.8, 0.8), Tag("a", -0.5, 1e-5), Tag("a", 1, 0), Tag("x.v2", 0.9, 0.30000001)):
        assert split_tags(tag.text(), "prompt") == ("", (tag,))
    assert Tag("a", 0.8, 0.8).text() == "<lora:a:0.8>"
    assert Tag("a", 1.0, 1.0).text() == "<lora:a:1>"


def test_tags_without_an_effect_are_told() -> None:
    assert list(tag_notes("x <lora:a:0.7")) == ["'<lora:a:0.7' has no '>', so it is text"]
    assert list(tag_notes("x <lora:a:0.7> y")) == []
    with pytest.raises(ConfigError, match="no effect in a negative prompt"):
        refuse_tags("bad <lora:a:1>", "negative")
    refuse_tags("bad <x>", "negative")


# ---------------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize("case", PROMPTS["editing"], ids=lambda case: repr(case["prompt"]))
def test_editing_is_refused_where_a1111_edits(case: dict[str, Any]) -> None:
    changes = len(case["schedule"]) > 1 or case["schedule"][0][1] != case["prompt"]
    if changes:
        with pytest.raises(ConfigError, match=r"column \d+: \[.* not supported"):
            refuse_editing(case["prompt"], "prompt")
    else:
        refuse_editing(case["prompt"], "prompt")


@pytest.mark.parametrize("case", PROMPTS["and"], ids=lambda case: repr(case["prompt"]))
def test_and_is_refused_where_a1111_adds(case: dict[str, Any]) -> None:
    if len(case["parts"]) > 1:
        with pytest.raises(ConfigError, match="AND"):
            refuse_editing(case["prompt"], "prompt")
        refuse_editing(case["prompt"], "negative", is_negative=True)
    else:
        refuse_editing(case["prompt"], "prompt")


@pytest.mark.parametrize(
    "prompt", ["[a (b:1.2)]", "(a:1.2) [b]", r"\[a:0.5\]", "[a:b:c:0.5]", "a:0.5]", "[a:0.5"]
)
def test_weights_are_no_editing(prompt: str) -> None:
    refuse_editing(prompt, "prompt")


@settings(deadline=None)
@given(st.text(alphabet="ab:|[]()\\ .5"))
def test_any_prompt_is_read_or_refused(prompt: str) -> None:
    try:
        refuse_editing(prompt, "prompt")
    except ConfigError:
        return
    assert parse_prompt(prompt)


# ---------------------------------------------------------------------------------------------- wildcards

REFUSED_TEMPLATES = {
    "__missing__": "no such wildcard",
    "a {unclosed": "column 3",
    "{1$$$$a|b}": "separator",
    "${v={a|b}} ${v} ${v}": "a variable",
    "${v=!{a|b}} ${v}-${v}": "a variable",
    "{@a|b}": "cyclical",
    "{~a|b}": "sampler",
}


@pytest.fixture(scope="module")
def wildcards(tmp_path_factory: pytest.TempPathFactory) -> Wildcards:
    folder = tmp_path_factory.mktemp("wildcards")
    for name, text in GOLDEN["files"].items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Wildcards([folder])


def all_prompts(template: str, wildcards: Wildcards) -> set[str]:
    """Every text that a template can become."""

    def texts(parts: Template) -> Iterator[str]:
        yield from ("".join(row) for row in product(*(list(of(part)) for part in parts)))

    def of(part: Part) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Wild):
            for line in wildcards.lines(part.name):
                yield from texts(parse_template(line, "p"))
        else:
            options = [option for _, option in weighted_options(part, wildcards.lines, "p")]
            least, most = counts_of(part, len(options))
            for count in range(least, most + 1):
                for taken in permutations(options, count):
                    for row in product(*(list(texts(option)) for option in taken)):
                        yield part.joiner.join(row)

    return set(texts(parse_template(template, "p")))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: repr(case["template"]))
def test_templates_become_what_the_extension_makes_of_them(
    case: dict[str, Any], wildcards: Wildcards
) -> None:
    template = case["template"]
    if template in REFUSED_TEMPLATES:
        with pytest.raises(ConfigError) as refusal:
            draw_prompt(template, 1, wildcards, "prompt")
        assert REFUSED_TEMPLATES[template] in str(refusal.value)
        return
    assert sorted(all_prompts(template, wildcards)) == case["all"]
    drawn = {draw_prompt(template, seed, wildcards, "prompt") for seed in range(300)}
    assert drawn <= set(case["all"])
    if len(case["all"]) <= 12:
        # All can come but the option of weight 0.
        assert drawn == set(case["all"]) - ({"a"} if "{0::a" in template else set())


def test_a_seed_draws_the_same_words_wherever_it_is_compared(wildcards: Wildcards) -> None:
    template = "a {red|green|blue} cat in __background__"
    first = [draw_prompt(template, seed, wildcards, "p") for seed in range(20)]
    assert first == [draw_prompt(template, seed, wildcards, "p") for seed in range(20)]
    assert len(set(first)) > 3
    # Known words: they must not change with Python's version or the machine.
    assert first[:3] == KNOWN
    replaced = [
        draw_prompt(template.replace("cat", "dog"), seed, wildcards, "p", stream=template)
        for seed in range(20)
    ]
    assert replaced == [text.replace("cat", "dog") for text in first]


def test_weights_are_shares(wildcards: Wildcards) -> None:
    drawn = [draw_prompt("{3::a|b}", seed, wildcards, "p") for seed in range(2000)]
    assert 0.70 < drawn.count("a") / len(drawn) < 0.80


def test_wildcards_that_lead_to_themselves_end(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").write_text("__loop__ __loop__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    loop = Wildcards([tmp_path])
    with pytest.raises(ConfigError, match="leads to itself"):
        draw_prompt("__loop__", 1, loop, "prompt")
    with pytest.raises(ConfigError, match="holds no value"):
        draw_prompt("__empty__", 1, loop, "prompt")
    with pytest.raises(ConfigError, match="did you mean 'empty'"):
        draw_prompt("__emty__", 1, loop, "prompt")
    with pytest.raises(ConfigError, match="deep"):
        draw_prompt("{" * 100 + "}" * 100, 1, loop, "prompt")


@settings(deadline=None)
@given(st.text(alphabet="ab{}|$:_-1#\n "))
def test_any_template_is_drawn_or_refused(template: str) -> None:
    try:
        text = draw_prompt(template, 1, Wildcards(), "prompt")
    except ConfigError:
        return
    if not set(template) & set("{}|$#_"):
        assert text == template
