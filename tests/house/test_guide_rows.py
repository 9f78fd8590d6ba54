"""Every row of the guide names the tests that hold it, and these are there; or it says why it is not ours."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/guide-rows.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def rows() -> list[list[str]]:
    """The cells of each row: its number, the guide, what is here, tests."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("| G")
    ]


@cache
def functions_of(file: Path) -> frozenset[str]:
    """The test functions of a file, read and not imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_all_rows_are_there() -> None:
    assert [row[0] for row in rows()] == [f"G{number}" for number in range(1, 127)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_tests_of_a_row_are_there_or_it_says_why_it_is_not_ours(row: list[str]) -> None:
    _, guide, here, tests = row
    assert guide
    if tests == "-":
        assert re.match(r"not ours: \w", here), here
        return
    named = tests.split("<br>")
    for one in named:
        found = NAMED.fullmatch(one)
        assert found, f"{one}: a file under tests and its function, as `tests/a/test_b.py::test_c`"
        file = ROOT / found[1]
        assert file.is_file(), one
        assert functions_of(file), one
        assert found[2] is None or found[2] in functions_of(file), one
    assert len(set(named)) == len(named)


def test_what_is_done_in_part_is_left_to_a_card() -> None:
    """And nothing is left as a wish."""
    for number, _, here, _ in rows():
        assert "wish" not in here, number
        if "artly" in here:
            assert re.search(r"Partly: .*\bcard\b", here), number
