"""Values of axes against A1111's own, and refusals with their column."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.values import read_decimals, read_texts, read_whole_numbers, value_label

DATA = Path(__file__).parents[2] / "data" / "see"
CASES: list[dict[str, Any]] = json.loads((DATA / "axis.json").read_text(encoding="utf-8"))["cases"]
NUMBERS = [case for case in CASES if case["type"] in ("int", "float")]
TEXTS = [case for case in CASES if case["axis"].startswith("Prompt S/R")]
# What A1111 answers with values that nobody asked for.
REFUSED = {"0-1 (+0.3)", "nan", "inf"}


def read_numbers(case: dict[str, Any]) -> tuple[float, ...]:
    read = read_whole_numbers if case["type"] == "int" else read_decimals
    return read(case["text"], "--x")


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: repr(case["text"]))
def test_numbers_are_a1111s(case: dict[str, Any]) -> None:
    is_empty = not any(item.strip() for item in case["text"].split(","))
    if case["text"] in REFUSED or "error" in case or (case["values"] == [] and not is_empty):
        with pytest.raises(ConfigError, match=r"^--x, column \d+: "):
            read_numbers(case)
        return
    values = read_numbers(case)
    assert values == pytest.approx(case["values"], abs=1e-8)
    labels = [label.rpartition(": ")[2] for label in case["labels"]]
    assert [value_label(value) for value in values] == labels


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: repr(case["text"]))
def test_texts_are_a1111s(case: dict[str, Any]) -> None:
    assert [item.text for item in read_texts(case["text"], "--x")] == case["values"]


@pytest.mark.parametrize(
    ("text", "column", "about"),
    [
        ("5-1", 1, "no value"),
        ("1, 5-1", 4, "no value"),
        ("1-10 [0]", 1, "no value"),
        ("1-5 (2)", 6, "sign"),
        ("1,2;3", 4, "not a whole number"),
        ("1-2-3", 4, "behind a range"),
        ("- 5 - - 3", 1, "whole number"),
        ("1.5", 2, "plain digits"),
        ("1-5 [x]", 6, "count"),
        ("1-5 (+2", 8, "expected ')'"),
        ("1-5 (+2) 7", 10, "behind a range"),
        ('7,"8', 3, "no end"),
        ("1-99999", 1, "10,000"),
        ("1-2 [99999]", 5, "10,000"),
        ("1-99999999999999999999999", 3, "digits"),
        ("١", 1, "whole number"),
        ("1_000", 2, "plain digits"),
        ("2-1 (-1)", 1, "no value"),
    ],
)
def test_refusals_name_the_column(text: str, column: int, about: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_whole_numbers(text, "--y")
    assert str(refusal.value).startswith(f"--y, column {column}: ")
    assert about in str(refusal.value)


def test_columns_count_from_where_the_values_begin() -> None:
    with pytest.raises(ConfigError, match="column 8"):
        read_decimals("1,x", "--y", first_column=6)


@pytest.mark.parametrize(
    ("text", "values"),
    [("0-1 (+0.1)", 11), ("0.5-2.5", 3), ("1-0 (-0.25)", 5), ("0.1-0.7 (+0.2)", 4)],
)
def test_steps_that_meet_the_end_have_it(text: str, values: int) -> None:
    found = read_decimals(text, "--x")
    assert len(found) == values
    assert found[-1] == float(text.split("-")[1].split(" ")[0])


@pytest.mark.parametrize("text", ["0.7-1.5", "0-1 (+0.7)"])
def test_a_step_past_the_end_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match="does not end at") as refusal:
        read_decimals(text, "--x")
    advised = str(refusal.value).partition("give ")[2].partition(" or ")[0]
    assert read_decimals(advised, "--x")


@settings(deadline=None)
@given(st.text(alphabet='ab ,"\n\té'))
def test_lists_are_split_as_csv(text: str) -> None:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    wanted = [item.strip() for row in rows for item in row]
    try:
        found = [item.text for item in read_texts(text, "--x")]
    except ConfigError:  # a quotation that has no end
        return
    # A line of spaces alone is one empty value to csv, and no value here; a quoted line end is kept by both.
    assert [item for item in found if item] == [item for item in wanted if item]


@settings(deadline=None)
@given(st.text(alphabet="0123456789-+.[]() ,e", max_size=12))
def test_any_text_gives_finite_numbers_or_a_refusal(text: str) -> None:
    for read in (read_whole_numbers, read_decimals):
        try:
            values = read(text, "--x")
        except ConfigError:
            continue
        assert all(abs(value) < float("inf") for value in values)
