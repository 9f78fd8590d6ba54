"""Links in a dataset and in the paths of what is written: none is followed out of the folder that the user named."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.files.links import LeadsOut, read_within
from support.hostile import SECRET, Result, Tool, World, digest, fill, flipping, needs_links

pytestmark = needs_links
TARGETS = ["file", "dangling", "folder", "chain", "hard"]


def put_link(place: Path, world: World, kind: str, name: str = "secret.txt") -> None:
    """A link at ``place`` to what is the user's own."""
    place.unlink(missing_ok=True)
    if kind == "hard":
        os.link(world.home / name, place)
    elif kind == "chain":
        step = place.with_name(f".step-{place.name}")
        step.symlink_to(world.home / name)
        place.symlink_to(step.name)
    else:
        place.symlink_to(
            {"file": world.home / name, "dangling": world.home / "none", "folder": world.home}[kind]
        )


def run_both(tool: Tool, world: World) -> list[Result]:
    """The tools that change a dataset, one after the other."""
    return [
        tool("lora-clean", world.data, "--text"),
        tool("lora-check", world.data, "--no-look", "--trigger", "mayu", "--fix", "no-trigger"),
    ]


# -------------------------------------------------------------------------------- the hidden folder


@pytest.mark.parametrize("kind", TARGETS)
def test_names_of_the_probe_that_exchanges_files(tool: Tool, world: World, kind: str) -> None:
    hidden = world.data / ".lorapipe"
    hidden.mkdir()
    for name in ("one.swap.tmp", "other.swap.tmp"):
        put_link(hidden / name, world, kind, "a.txt")
    before = digest(world.home)
    for done in run_both(tool, world):
        assert (done.code, done.errors) == (0, [])
        assert digest(world.home) == before
    assert (world.data / "a.txt").read_text() == "mayu, cat, a\n"
    assert all(os.path.lexists(hidden / name) for name in ("one.swap.tmp", "other.swap.tmp"))


@pytest.mark.parametrize("kind", ["file", "dangling", "folder", "chain"])
def test_a_hidden_folder_that_is_a_link(tool: Tool, world: World, kind: str) -> None:
    put_link(world.data / ".lorapipe", world, kind, "inner" if kind == "chain" else "secret.txt")
    before, data = digest(world.home), digest(world.data)
    for done in run_both(tool, world):
        assert (done.code, len(done.errors)) == (1, 1)
        assert ".lorapipe: a link, which is not followed" in done.errors[0]
    assert (digest(world.home), digest(world.data)) == (before, data)
    for words in (["lora-clean", "--undo", world.data], ["lora-check", world.data, "--undo"]):
        done = tool(*map(str, words))
        assert (done.code, len(done.errors)) == (2, 1)
    assert (digest(world.home), digest(world.data)) == (before, data)


def test_only_temporary_files_of_these_tools_are_cleared(tool: Tool, world: World) -> None:
    hidden = world.data / ".lorapipe"
    hidden.mkdir()
    put_link(hidden / "0011223344556677.tmp", world, "file")
    for name in ("work.tmp", "0011223344556688.tmp", "x.swap.tmp"):
        (hidden / name).write_text("somebody's")
    (hidden / "0011223344556699.tmp").mkdir()
    before = digest(world.home)
    assert tool("lora-clean", world.data, "--text").code == 0
    left = {"0011223344556677.tmp", "0011223344556699.tmp", "work.tmp", "x.swap.tmp"}
    assert {path.name for path in hidden.glob("*.tmp")} == left
    assert digest(world.home) == before


@pytest.mark.slow
@pytest.mark.parametrize("race", ["hidden folder", "folder in the path"])
def test_a_link_that_comes_into_the_path_200_times(tool: Tool, world: World, race: str) -> None:
    """The hidden folder, or the folder of the captions, is a link to the user's own every other moment."""
    inside = fill(world.data / "inner", 1)
    (inside / ".lorapipe").mkdir()
    place = inside / ".lorapipe" if race == "hidden folder" else inside
    before = digest(world.home)
    with flipping(place, world.home):
        for number in range(100):  # twice
            tool("lora-clean", "-r", world.data, "--text", "-q", "--add", f"tag {number}")
            tool("lora-clean", "--undo", world.data, "-q")
    assert digest(world.home) == before


def test_systems_that_cannot_open_relative_to_a_folder(
    tool: Tool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: the same refusals, by looking at each folder before each step."""
    monkeypatch.setattr("lorapipe_engine.changes.place.HAS_DESCRIPTORS", False)
    before, data = digest(world.home), digest(world.data)
    assert tool("lora-clean", world.data, "--text").code == 0
    old = next((world.data / ".lorapipe").glob("*.old"))
    old.rename(old.with_suffix(".mine"))
    old.symlink_to(world.home)
    assert tool("lora-clean", "--undo", world.data).code == 1
    old.unlink()
    old.with_suffix(".mine").rename(old)
    assert tool("lora-clean", "--undo", world.data).code == 0
    assert digest(world.data) == data
    (world.data / ".lorapipe").symlink_to(world.home)
    assert tool("lora-clean", world.data, "--text").code == 1
    assert digest(world.home) == before


# -------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("kind", ["file", "chain", "relative"])
def test_a_caption_that_is_a_link_out_of_the_dataset(
    tool: Tool, world: World, tmp_path: Path, kind: str
) -> None:
    caption = world.data / "a.txt"
    if kind == "relative":
        caption.unlink()
        caption.symlink_to("../home/secret.txt")
    else:
        put_link(caption, world, kind)
    before, link = digest(world.home), caption.readlink()
    made = world.data / "metadata.jsonl"
    for words in (
        [world.data, "--text"],
        [world.data, "--jsonl", "--existing", "replace"],
        [world.data, "--to", "metadata", "-o", made],
        [world.data, "--to", "txt", "-o", tmp_path / "out"],
        [world.data, "--to", "caption"],
        [world.data, "--dry-run", "--add", "x"],
    ):
        done = tool("lora-clean", *words)
        assert (done.code, done.errors) == (0, [])
        assert "a.txt: a link out of the dataset" in done.err
        assert "1 lead out of the dataset" in done.err
        assert SECRET not in done.out
    assert (caption.readlink(), digest(world.home)) == (link, before)
    assert (world.data / "b.txt").read_text() == "cat, b\n"
    assert SECRET not in made.read_text()
    written = [
        path for path in (*world.data.iterdir(), *(tmp_path / "out").iterdir()) if not path.is_symlink()
    ]
    assert not any(SECRET in path.read_text(errors="replace") for path in written if path.is_file())


@pytest.mark.parametrize("way", ["caption", "folder"])
def test_what_is_published_of_a_linked_caption(tool: Tool, world: World, tmp_path: Path, way: str) -> None:
    (world.home / "a.txt").write_text(f"{SECRET}, mayu\n{SECRET}\n")
    if way == "caption":
        fill(world.data / "5_x")
        put_link(world.data / "5_x/a.txt", world, "file", "a.txt")
    else:  # the folder that holds it is one
        for name in "abc":
            Image.new("RGB", (64, 64), (ord(name), 0, 0)).save(world.home / f"{name}.png")
        (world.data / "5_x").symlink_to(world.home)
        fill(world.data / "6_y")
    before = digest(world.home)
    page, out = tmp_path / "page.html", tmp_path / "out"
    done = tool("lora-check", world.data, "--html", page)
    assert "Captions that are links out of the dataset" in done.out
    assert SECRET not in done.out + page.read_text()
    assert SECRET not in tool("lora-check", world.data, "--json").out
    done = tool("lora-repeats", world.data, "-o", out, "--repeats", 2)
    assert done.code == 0
    assert "a.txt: a link out of the dataset" in done.err
    texts = [path.read_text() for path in out.rglob("*.txt")]
    assert texts
    assert SECRET not in "".join(texts)
    assert digest(world.home) == before


@pytest.mark.parametrize("way", ["caption", "folder"])
def test_metadata_has_no_words_of_a_linked_caption(world: World, way: str) -> None:
    from lorapipe_engine.datasets.record import dataset_record
    from lorapipe_engine.datasets.scan import scan
    from lorapipe_engine.settings import DataSettings

    root = world.data.with_name("train")
    fill(root / "5_x")
    if way == "caption":
        put_link(root / "5_x/a.txt", world, "file")
    else:
        fill(world.home)
        (world.home / "a.txt").write_text(SECRET)
        (root / "3_y").symlink_to(world.home)
    settings = DataSettings(train_data_dir=root)
    dataset = scan(settings)
    assert any(SECRET in picture.caption for picture in dataset.pictures)  # it is trained
    record = dataset_record(settings, dataset)
    assert record["tag_frequency"]["5_x"]["cat"] > 0
    assert SECRET not in json.dumps(record)


def test_the_user_is_told_of_linked_captions_in_training(world: World) -> None:
    from lorapipe_engine.datasets.described import folder_lines
    from lorapipe_engine.datasets.scan import scan
    from lorapipe_engine.settings import DataSettings

    fill(world.data / "5_x")
    put_link(world.data / "5_x/a.txt", world, "file")
    lines = folder_lines(scan(DataSettings(train_data_dir=world.data)))
    assert "1 captions are links out of the dataset" in lines[0]


def test_links_within_the_dataset_are_as_good_as_files(tool: Tool, world: World) -> None:
    (world.data / "texts").mkdir()
    (world.data / "a.txt").rename(world.data / "texts/a.txt")
    (world.data / "a.txt").symlink_to("texts/a.txt")
    before = digest(world.data)
    assert tool("lora-clean", world.data, "--text").code == 0
    assert (world.data / "a.txt").read_text() == "cat, a\n"
    assert (world.data / "texts/a.txt").read_text() == "cat, cat, a\n"
    assert tool("lora-clean", "--undo", world.data).code == 0
    assert digest(world.data) == before


@pytest.mark.slow
def test_a_caption_that_becomes_a_link_200_times(tool: Tool, world: World) -> None:
    before = digest(world.home)
    with flipping(world.data / "a.txt", world.home / "secret.txt"):
        for number in range(200):
            done = tool("lora-clean", world.data, "--jsonl", "--add", f"tag {number}")
            assert SECRET not in done.out
    assert digest(world.home) == before
    held = [path.read_bytes() for path in world.data.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(SECRET.encode() in data for data in held)


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_within, lambda path, root: read_stamped(path, root)[0]])
def test_what_is_read_is_what_was_looked_at(read: Callable[[Path, Path], bytes | None], world: World) -> None:
    """Between the look at where a name leads and the reading, another program makes it lead elsewhere."""
    path, held = world.data / "a.txt", set()
    with flipping(path, world.home / "secret.txt", every=0):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with suppress(LeadsOut, OSError):
                held.add(read(path, world.data))
    assert held == {path.read_bytes()}


def test_sidecars_that_are_links(tool: Tool, world: World) -> None:
    (world.home / "post.json").write_text(json.dumps({"tags": SECRET, "md5": "a"}))
    (world.home / "note.xmp").write_text(XMP)
    (world.data / "a.png.json").symlink_to(world.home / "post.json")
    done = tool("lora-clean", world.data, "--from", "booru", "--jsonl", "--existing", "replace")
    assert (done.code, len(done.errors)) == (1, 1)
    assert SECRET not in done.out
    (world.data / "a.png.xmp").symlink_to(world.home / "note.xmp")
    done = tool("lora-clean", world.data, "--from", "picture", "--jsonl", "--existing", "replace")
    assert (done.code, len(done.errors)) == (1, 1)
    assert SECRET not in done.out
    for path in world.data.glob("*.txt"):
        assert SECRET.split()[0] not in path.read_text()


XMP = (
    '<x xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f"<dc:subject><rdf:Bag><rdf:li>{SECRET}</rdf:li></rdf:Bag></dc:subject></x>"
)


# -------------------------------------------------------------------------------- folders and outputs


def test_a_linked_folder_is_not_mended(tool: Tool, world: World) -> None:
    for name in "ab":
        Image.new("RGB", (64, 64)).save(world.home / f"{name}.png")
    (world.data / "5_x").symlink_to(world.home)
    before = digest(world.home)
    for rule in ("orphan-caption", "duplicate", "no-trigger", "small", "several-lines"):
        done = tool("lora-check", world.data, "--trigger", "mayu", "--fix", rule)
        assert all("a link, which is not followed" in line for line in done.errors)
        assert digest(world.home) == before
    done = tool("lora-check", world.data, "--fix", "orphan-caption")
    assert done.code == 1
    assert "5_x: a link, which is not followed" in done.errors[0]


def test_files_behind_a_linked_folder_are_not_moved(tool: Tool, world: World, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(world.home / "a.png")
    (world.data / "5_x").symlink_to(world.home)
    before, data = digest(world.home), digest(world.data)
    done = tool("lora-repeats", world.data, "-o", tmp_path / "out", "--repeats", 2, "--move")
    assert (done.code, len(done.errors)) == (2, 1)
    assert "its files are not moved" in done.errors[0]
    assert (digest(world.home), digest(world.data), (tmp_path / "out").exists()) == (before, data, False)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling", "chain"])
def test_a_tree_is_not_built_through_a_link(tool: Tool, world: World, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    put_link(out, world, kind, "inner" if kind == "chain" else "secret.txt")
    before = digest(world.home)
    for words in ([], ["--force"], ["--force", "--link", "hard"]):
        done = tool("lora-repeats", world.data, "-o", out, "--repeats", 2, *words)
        assert (done.code, len(done.errors)) == (1, 1)
    assert digest(world.home) == before


@pytest.mark.parametrize("kind", ["folder", "dangling", "chain"])
def test_a_tree_with_a_link_in_it_is_not_added_to(
    tool: Tool, world: World, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    put_link(out / "2_data", world, kind, "inner" if kind == "chain" else "secret.txt")
    fill(out / "7_other")
    before, held = digest(world.home), digest(out)
    done = tool("lora-repeats", world.data, "-o", out, "--repeats", 2, "--force")
    assert (done.code, len(done.errors)) == (1, 1)
    assert (digest(world.home), digest(out)) == (before, held)


@pytest.mark.slow
def test_a_tree_in_which_a_folder_becomes_a_link_200_times(tool: Tool, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out / "2_data")
    before = digest(world.home)
    with flipping(out / "2_data", world.home):
        for _ in range(200):
            tool("lora-repeats", world.data, "-o", out, "--repeats", 2, "--force", "-q")
    assert digest(world.home) == before


@pytest.mark.parametrize("kind", ["folder", "dangling"])
def test_captions_go_to_no_linked_folder(tool: Tool, world: World, tmp_path: Path, kind: str) -> None:
    fill(world.data / "inner")
    out = tmp_path / "out"
    out.mkdir()
    put_link(out / "inner", world, kind)
    before = digest(world.home)
    done = tool("lora-clean", "-r", world.data, "--to", "txt", "-o", out, "--text", "--existing", "replace")
    assert done.code == 1
    assert "out/inner: a link, which is not followed" in done.errors[0]
    assert digest(world.home) == before
    assert (out / "a.txt").read_text() == "cat, a\n"


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ["page.html", "set.toml", "metadata.jsonl"])
def test_files_in_whose_place_links_are(
    tool: Tool, world: World, tmp_path: Path, name: str, kind: str
) -> None:
    target = (world.data if name == "metadata.jsonl" else tmp_path) / name
    put_link(target, world, kind, "a.txt")
    words: list[object] = {
        "page.html": ["lora-check", world.data, "--html", target],
        "set.toml": ["lora-repeats", world.data, "-o", target],
        "metadata.jsonl": ["lora-clean", world.data, "--to", "metadata", "-o", target, "--text"],
    }[name]
    before = digest(world.home)
    done = tool(*words)  # type: ignore[arg-type]
    assert (done.code, len(done.errors)) == (1, 1)
    assert digest(world.home) == before
    tool(*words, "--force")  # type: ignore[arg-type]
    assert digest(world.home) == before
    if target.is_file() and not target.is_symlink() and target.stat().st_nlink == 1:
        assert target.stat().st_mode & 0o777 != 0o600 or kind == "hard"
