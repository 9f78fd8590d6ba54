"""Notes in pictures, posts and documents that are made to take all time and memory, or that no file can hold."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.hostile import Tool, World, run_apart

DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
LINKS = ("text", "text_g", "prompt", "string", "positive", "conditioning", "conditioning_1")
DIGITS = "9" * 5000


def save(path: Path, **notes: str) -> None:
    info = PngInfo()
    for key, text in notes.items():
        info.add_text(key, text)
    Image.new("L", (1, 1)).save(path, pnginfo=info)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 40])
def test_a_graph_that_links_to_itself(world: World, nodes: int) -> None:
    graph = {
        str(number): {"inputs": {name: [str((number + step) % nodes), 0] for step, name in enumerate(LINKS)}}
        for number in range(nodes)
    }
    save(world.data / "a.png", prompt=json.dumps(graph))
    start = time.monotonic()
    done = run_apart("lora-clean", world.data / "a.png", "--from", "picture", "--text", timeout=20)
    assert time.monotonic() - start < 10
    assert done.errors == []
    assert len(done.err.splitlines()) <= 2


@pytest.mark.slow
def test_a_long_graph_leads_to_its_prompt(tool: Tool, world: World) -> None:
    graph = {str(n): {"inputs": {"positive": [n + 1, 0]}} for n in range(5000)}
    graph["5000"] = {"inputs": {"text": "a dog"}}  # type: ignore[dict-item]
    save(world.data / "a.png", prompt=json.dumps(graph))
    tool("lora-clean", world.data, "--from", "picture", "--text", "--existing", "replace")
    assert (world.data / "a.txt").read_text() == "a dog\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("xmp", "said"),
    [
        (f"<x {DC}>" + "<dc:subject>" * 60_000 + "</dc:subject>" * 60_000 + "</x>", "elements in each other"),
        (f"<x {DC}>" + "<a>" * 500_000 + "</a>" * 500_000 + "</x>", "elements in each other"),
        (f"<x {DC}>" + "<dc:subject>" * 50 + "<b/>" * 900_000 + "</dc:subject>" * 50 + "</x>", "no caption"),
        (f"<x {DC}>" + " " * (1 << 23) + "</x>", "more than 4 MiB"),
    ],
    ids=["subjects in subjects", "deep", "many in each", "large"],
)
def test_xmp_that_takes_long(world: World, xmp: str, said: str) -> None:
    folder = world.data / "one"
    folder.mkdir()
    save(folder / "a.png")
    (folder / "a.png.xmp").write_text(xmp)
    start = time.monotonic()
    done = run_apart("lora-clean", folder, "--from", "picture", "--text", timeout=30)
    assert time.monotonic() - start < 10
    assert len(done.errors) <= 1
    assert said in done.err


@pytest.mark.parametrize(
    ("name", "text", "words", "said"),
    [
        ("a.png.json", f'{{"tags": "cat", "id": {DIGITS}}}', ["--from", "booru"], "too many digits"),
        ("meta.json", f'{{"a": {{"tags": "cat", "n": {DIGITS}}}}}', ["--from", "kohya"], "too many digits"),
        (
            "metadata.jsonl",
            f'{{"file_name": "a.png", "text": "cat", "n": {DIGITS}}}',
            ["--from", "metadata"],
            "too many digits",
        ),
        ("a.png.json", "[" * 100_000, ["--from", "booru"], "nested too deeply"),
    ],
)
def test_json_that_cannot_be_read(
    tool: Tool, world: World, name: str, text: str, words: list[str], said: str
) -> None:
    (world.data / name).write_text(text)
    done = tool("lora-clean", world.data, *words, "--text")
    assert (done.code, len(done.errors)) == (1, 1)
    assert said in done.errors[0]


def test_a_graph_with_a_number_of_5000_digits(tool: Tool, world: World) -> None:
    save(world.data / "a.png", prompt=f'{{"1": {DIGITS}}}')
    done = tool("lora-clean", world.data / "a.png", "--from", "picture", "--text")
    assert (done.code, len(done.errors)) == (1, 1)
    assert "a number of too many digits" in done.errors[0]


def test_a_record_with_a_number_of_5000_digits(tool: Tool, world: World) -> None:
    line = f'{{"path": "{(world.data / "a.png").as_posix()}", "n": {DIGITS}}}'
    for name in ("lora-clean", "lora-check", "lora-repeats"):
        done = tool(name, stdin=line)
        assert (done.code, len(done.errors)) == (2, 1)
        assert "a number of too many digits" in done.errors[0]


def test_half_letters_in_captions(tool: Tool, world: World) -> None:
    (world.data / "a.png.json").write_text('{"tags": "cat \\ud800"}')
    words = [world.data, "--from", "booru", "--existing", "replace"]
    done = tool("lora-clean", *words, "--text")
    assert (done.code, len(done.errors)) == (1, 1)
    assert "half a letter" in done.errors[0]
    assert (world.data / "a.txt").read_text() == "cat, cat, a\n"
    made = world.data / "metadata.jsonl"
    done = tool("lora-clean", *words, "--to", "metadata", "-o", made)
    assert (done.code, len(done.errors)) == (1, 1)
    assert made.read_text() == ""
