"""Each operation by itself, from the command line, on one caption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES: list[tuple[str, list[str], str]] = [
    # caption, options, expected
    ("  1girl ,solo,, long  hair,", [], "1girl, solo, long hair"),
    ("cafe\u0301, caf\u00e9, a\u200bb", [], "caf\u00e9, ab"),
    ("Blue Eyes, blue_eyes, (blue eyes:1.2)", [], "Blue Eyes"),
    ("a, a", ["--no-dedupe"], "a, a"),
    ("long_hair, ^_^, o_o, (o)_(o), ||_||, >_<", ["--spaces"], "long hair, ^_^, o_o, (o)_(o), ||_||, >_<"),
    ("long hair, ^ ^", ["--underscores"], "long_hair, ^ ^"),
    ("name (series), \\(x\\) aa", ["--escape"], "name \\(series\\), \\(x\\) aa"),
    ("name \\(series\\)", ["--unescape"], "name (series)"),
    ("Long Hair", ["--lower"], "long hair"),
    (
        "(blue eyes:1.2), ((red hair)), [smile], (a cat, a dog:0.8), name (series), :)",
        ["--strip-weights"],
        "blue eyes, red hair, smile, a cat, a dog, name (series), :)",
    ),
    ("a; b;c", ["--split", ";"], "a, b, c"),
    ("a, b", ["--join", ";"], "a;b"),
    ("a, b", ["--join", " / "], "a / b"),
    ("head, x ||| tail, tail2, TAIL", ["--order", "alphabet", "--descending"], "head, x ||| tail2, tail"),
    ("{red, blue|green} hat, x", [], "{red, blue|green} hat, x"),
    ("simple background, hat, red_hat", ["--drop", "*background, hat"], "red_hat"),
    ("rating:safe, 1girl, 12345", ["--drop", r"re:rating:.*", "--drop", r"re:\d+"], "1girl"),
    ("?, !, x", ["--drop", "?"], "!, x"),
    ("red hat, blue hat, hat", ["--drop", "*hat", "--keep", "blue hat"], "blue hat"),
    ("1girl, solo, hat", ["--only", "1girl, h*"], "1girl, hat"),
    ("grey_hair, x", ["--replace", "grey hair=silver hair"], "silver hair, x"),
    ("a, x", ["--replace", "a=b", "--replace", "b=c, d"], "c, d, x"),
    ("a, x", ["--replace", "a="], "x"),
    ("=_=, x", ["--replace", "=_= => closed eyes"], "closed eyes, x"),
    ("x hair, hairy", ["--regex", r"\bhair\b", "fur"], "x fur, hairy"),
    ("a cat in catastrophe", ["--phrase", r"\bcat\b", "dog"], "a dog in catastrophe"),
    ("white shirt, shirt, undershirt, catastrophe, cat", ["--overlap"], "white shirt, undershirt, catastrophe, cat"),
    (
        "2girls, blue hair, red hair, long hair, green eyes, smile",
        ["--several-people"],
        "2girls, long hair, green eyes, smile",
    ),
    ("1girl, blue hair, red hair", ["--several-people"], "1girl, blue hair, red hair"),
    ("explicit, 1girl, rating:q", ["--rating", "drop"], "1girl"),
    ("1girl, sensitive, x", ["--rating", "first"], "sensitive, 1girl, x"),
    ("1girl, sensitive, x", ["--rating", "last"], "1girl, x, sensitive"),
    ("1girl, Shiina_Mayuri, x", ["--trigger", "shiina mayuri"], "shiina mayuri, 1girl, x"),
    ("1girl, x", ["--trigger", "my_char", "--spaces"], "my_char, 1girl, x"),
    ("1girl, my char, x", ["--trigger", "my_char", "--trigger-place", "keep"], "1girl, my_char, x"),
    ("1girl, x", ["--trigger", "my_char", "--trigger-place", "last"], "1girl, x, my_char"),
    ("x, 1girl", ["--trigger", "t", "--drop", "t"], "t, x, 1girl"),
    ("x", ["--add", "masterpiece, x"], "x, masterpiece"),
    ("c, a, b", ["--first", "b, z", "--last", "c"], "b, a, c"),
    ("c, a, b", ["--order", "alphabet"], "a, b, c"),
    ("c, a, b", ["--order", "alphabet", "--keep-first", "1", "--descending"], "c, b, a"),
    ("ccc, a, bb", ["--order", "length"], "a, bb, ccc"),
    ("hat, solo, 2girls", ["--order", "people"], "solo, 2girls, hat"),
    ("a, b, c, d", ["--max-tags", "2"], "a, b"),
    ("a, b, c, d", ["--max-tags", "2", "--trigger", "d"], "d, a"),
    ("1girl, solo, long hair", ["--max-tokens", "4"], "1girl, solo"),
    ("|||", ["--trigger", "mirelune", "--max-tokens", "1"], "mirelune"),
    ("x, y", ["--prefix", "masterpiece, ", "--suffix", " end"], "masterpiece, x, y end"),
    ("{red|red} hat", ["--expand-wildcards"], "red hat"),
    ("", ["--if-empty", "photo"], "photo"),
    ("x, y", ["--only", "a", "--if-empty", "EMPTY"], "EMPTY"),
    ("x, y", ["--only", "a", "--if-empty", "EMPTY", "--trigger", "t"], "t, EMPTY"),
    ("photo", ["--drop", "photo", "--if-empty", "photo"], "photo"),
    ("photo, x", ["--drop", "photo", "--if-empty", "photo"], "x"),
    ("x", ["--drop", "x, a", "--if-empty", "a, b"], "b"),
    ("x", ["--replace", "x=", "--if-empty", "x, y", "--add", "end"], "y, end"),
    ("safe", ["--rating", "drop", "--if-empty", "safe"], "safe"),
    ("t", ["--trigger", "t", "--if-empty", "photo"], "t"),
    ("x.", ["--style", "text", "--drop", "*", "--if-empty", "A photo."], "A photo."),
    ("p ||| x |||", ["--drop", "*"], ""),
    ("p ||| x |||", ["--only", "x"], "||| x |||"),
    ("p ||| x |||", ["--drop", "*", "--if-empty", "EMPTY", "--trigger", "t"], "t, EMPTY"),
    ("x", ["--drop", "x", "--if-empty", "photo", "--prefix", "best, "], "best, photo"),
    ("a\n\nb, b", [], "a\nb"),
    ("a\nb, a", ["--lines", "join"], "a, b"),
    ("a\nb", ["--lines", "first"], "a"),
    ("A girl.  She smiles. She smiles. It has a watermark.", ["--style", "text", "--drop", "*watermark*"],
     "A girl. She smiles."),
    ("One. Two. Three.", ["--style", "text", "--sentences", "2"], "One. Two."),
    ("A photo of Andrew.", ["--style", "text", "--trigger", "andrew"], "A photo of Andrew."),
    ("A photo.", ["--style", "text", "--trigger", "AndrewFriend"], "AndrewFriend, A photo."),
    ("One two. Three four five.", ["--style", "text", "--max-tokens", "4"], "One two."),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "options", "expected"), CASES)
def test_operation(
    clean: Callable[..., Any], tmp_path: Path, caption: str, options: list[str], expected: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(caption, encoding="utf-8")
    assert clean(file, *options).code == 0
    assert file.read_text(encoding="utf-8") == expected
    clean(file, *options)
    assert file.read_text(encoding="utf-8") == expected


def record(clean: Callable[..., Any], caption: str, *options: object, **facts: Any) -> str:
    line = json.dumps({"path": "a.png", "caption": caption, **facts})
    found = clean("-", "--no-txt", *options, stdin=line).records[0]["caption"]
    assert isinstance(found, str)
    return found


def test_order_by_confidence_leaves_given_tags_in_front(clean: Callable[..., Any]) -> None:
    scores = {"general": {"hat": 0.5, "long_hair": 0.9}}
    assert record(clean, "mine, hat, long hair", "--order", "confidence", **scores) == "mine, long hair, hat"


def test_categories_of_records(clean: Callable[..., Any]) -> None:
    facts = {"general": {"hat": 0.5}, "character": {"rem_(re:zero)": 0.9}}
    caption = "hat, rem (re:zero)"
    assert record(clean, caption, "--split-characters", **facts) == "hat, rem, re:zero"
    assert record(clean, caption, "--drop-category", "character", **facts) == "hat"
    assert record(clean, caption, "--only-category", "character", **facts) == "rem (re:zero)"
    assert record(clean, caption, "--order", "category", **facts) == "rem (re:zero), hat"


def test_categories_of_a_tag_list(clean: Callable[..., Any], tmp_path: Path) -> None:
    tagger = tmp_path / "selected_tags.csv"
    tagger.write_text('tag_id,name,category,count\n1,highres,5,9\n2,"say_""hi""",0,1\n')
    assert record(clean, "highres, x", "--tags", tagger, "--drop-category", "meta") == "x"
    completion = tmp_path / "danbooru.csv"
    completion.write_text('highres,5,100,"high_res,hires"\n1girl,0,5,"1girls,sole_female"\n')
    options = ("--tags", completion, "--drop-category", "meta", "--aliases", completion)
    assert record(clean, "hires, sole female", *options) == "1girl"


def test_aliases_and_implications(clean: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "alias.csv").write_text("old,new\n# a remark\nthick_thighs,thighs\n#unicus,unicus\n")
    (tmp_path / "imply.csv").write_text("white shirt,shirt\nshirt,clothes\n")
    alias, imply = tmp_path / "alias.csv", tmp_path / "imply.csv"
    assert record(clean, "thick thighs, #unicus", "--aliases", alias) == "thighs, unicus"
    assert record(clean, "clothes, white_shirt, shirt", "--implications", imply) == "white_shirt"
    assert (
        record(clean, "white shirt", "--implications", imply, "--add-implied")
        == "white shirt, shirt, clothes"
    )


def test_shuffle_depends_on_seed_and_tags_only(clean: Callable[..., Any]) -> None:
    tags = ", ".join(f"t{n}" for n in range(20))
    one = record(clean, tags, "--order", "shuffle", "--seed", "1")
    assert one != tags
    assert record(clean, one, "--order", "shuffle", "--seed", "1") == one
    assert record(clean, tags, "--order", "shuffle", "--seed", "2") != one
    assert sorted(one.split(", ")) == sorted(tags.split(", "))


def test_frequency_and_invariant_tags_are_counted_over_all(clean: Callable[..., Any], tmp_path: Path) -> None:
    for name, text in {"a": "x, rare, eyes", "b": "eyes, x", "c": "x, eyes", "d": "other, x"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    clean(tmp_path, "--order", "frequency")
    assert (tmp_path / "a.txt").read_text() == "x, eyes, rare"
    clean(tmp_path, "--strip-invariant", "0.7", "--keep", "x")
    assert [(tmp_path / f"{n}.txt").read_text() for n in "abcd"] == ["x, rare", "x", "x", "x, other"]


def test_tokens_are_counted_with_a_tokenizer(clean: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "merges.txt").write_text("#version: 0.2\no l\ns ol\nsol o</w>\n")
    (folder / "vocab.json").write_text(json.dumps({str(n): n for n in range(600)}))
    options = ("--max-tokens", "5", "--tokenizer", folder)
    # one token for solo, one for a comma, three for xyz
    assert record(clean, "solo, xyz, b", *options) == "solo, xyz"
    result = clean("-", "--no-txt", "--max-tokens", "2", stdin='{"path": "a.png", "caption": "a, b"}')
    assert "estimated" in result.err
    assert "1 tag cut by the limits (most often: b)" in result.err
