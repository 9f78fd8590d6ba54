"""Folders that people hold and with which something went wrong: each in a copy, with the result that is right."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.errors import InputError
from lorapipe_engine.settings import DataSettings
from support.commands import run

DATA = Path(__file__).parents[1] / "data"
TAGGER = ("--model", DATA / "tagger" / "model", "--device", "cpu")


@pytest.fixture
def held(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the folder that the test's parameter names."""
    return Path(shutil.copytree(DATA / "datasets" / request.param, tmp_path / request.param))


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("held", [name], indirect=True)


def files(folder: Path) -> list[str]:
    """The files there, journals left out."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if ".lorapipe" not in path.parts)


@pytest.mark.slow
@of("larger-originals")
def test_a_fix_never_takes_what_is_trained_for_a_copy_outside(held: Path) -> None:
    before = files(held)
    done = run("lora-check", held, "--fix", "near-duplicate")
    assert done.returncode == 0, done.stderr
    assert files(held) == before
    assert run("lora-check", held).stdout.startswith("3 pictures, 30 an epoch")
    shutil.rmtree(held / "10_mayu")
    done = run("lora-check", held, "--json")
    assert json.loads(done.stdout)["trained"] == 3  # pictures that are to become a dataset
    (held / "10_mayu").mkdir()
    done = run("lora-check", held)
    assert done.returncode == 1
    assert "nothing-trained" in done.stdout


@of("document")
@pytest.mark.parametrize("kind", ["kohya", "csv", "metadata"])
def test_a_document_becomes_texts(held: Path, kind: str) -> None:
    source = held / "meta.json"
    if kind == "csv":
        source = held / "meta.csv"
        source.write_text('file_name,text\nx.png,"1girl, long_hair"\ny.png,solo\n')
    if kind == "metadata":
        source = held / "metadata.jsonl"
        rows = [{"file_name": "x.png", "text": "1girl, long_hair"}, {"file_name": "y.png", "text": "solo"}]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (source, "--to", "txt", "-o", held / "t", "--trigger", "mayu", "--text")
    seen = run("lora-clean", *words, "--dry-run")
    assert "+ mayu, 1girl, long_hair" in seen.stdout
    assert not (held / "t").exists()
    done = run("lora-clean", *words)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 captions changed" in done.stderr
    texts = {name: (held / "t" / name).read_text() for name in files(held / "t") if name.endswith(".txt")}
    assert texts == {"x.txt": "mayu, 1girl, long_hair\n", "y.txt": "mayu, solo\n"}
    assert "0 of 2 captions changed" in run("lora-clean", *words).stderr


@of("document")
def test_a_document_writes_no_text_outside_the_output(held: Path) -> None:
    (held / "in").mkdir()
    (held / "in" / "meta.json").write_text('{"../../x.png": {"tags": "solo"}}')
    done = run("lora-clean", held / "in" / "meta.json", "--to", "txt", "-o", held / "t" / "deep")
    assert done.returncode == 0, done.stderr
    assert [name for name in files(held) if name.endswith(".txt")] == ["t/deep/x.txt"]


@of("other-suffix")
def test_the_caption_that_is_there_counts(held: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = (held / "a.caption").read_text()
    done = run("lora-tag", held, *TAGGER)
    assert "1 had captions already" in done.stderr
    assert files(held) == ["a.caption", "a.png"]
    assert (held / "a.caption").read_text() == text
    assert run("lora-repeats", held, "-o", tmp_path / "out").returncode == 0
    assert next((tmp_path / "out").glob("*/a.caption")).read_text() == text
    (held / "a.txt").write_text("another")
    report = json.loads(run("lora-check", held, "--json").stdout)
    assert [row["text"] for row in report["findings"] if row["rule"] == "two-captions"] == [
        "a.txt is read, a.caption not"
    ]


@of("loose-cover")
def test_loose_pictures_beside_concepts_are_left_out(held: Path, tmp_path: Path) -> None:
    done = run("lora-repeats", held, "-o", tmp_path / "out", "--json")
    assert [row["concept"] for row in json.loads(done.stdout)["concepts"]] == ["mayu"]
    assert "warning: " in done.stderr
    assert "1 picture loose beside the concepts' folders" in done.stderr


@of("hydrus")
def test_sidecars_are_written_elsewhere_and_shown(held: Path, tmp_path: Path) -> None:
    words = ("lora-clean", held, "--from", "hydrus", "--to", "txt", "-o", tmp_path / "t", "--text")
    assert "+ rem (re:zero), 1girl, long hair" in run(*words, "--dry-run").stdout
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 captions changed" in done.stderr
    assert (tmp_path / "t" / "a.txt").read_text() == "rem (re:zero), 1girl, long hair\n"


@of("one-sentence")
@pytest.mark.parametrize("style", ["tags", "text"])
def test_a_token_limit_leaves_something(held: Path, style: str) -> None:
    before = (held / "a.txt").read_text().split()
    done = run("lora-clean", held, "--max-tokens", "75", "--style", style)
    assert done.returncode == 0, done.stderr
    after = (held / "a.txt").read_text().split()
    assert 40 < len(after) < len(before)
    assert after == before[: len(after)]
    assert "0 of 1 captions changed" in run("lora-clean", held, "--max-tokens", "75", "--style", style).stderr
    done = run("lora-clean", held, "--max-tokens", "75", "--trigger", "mayu")
    assert (held / "a.txt").read_text().startswith("mayu, ")
    assert len((held / "a.txt").read_text().split()) > 40


@of("linked-concept")
@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_linked_concept_is_one_for_all(held: Path) -> None:
    (held / "ds" / "5_link").symlink_to("../real")
    assert run("lora-check", held / "ds").stdout.startswith("1 picture, 5 an epoch")
    assert sum(scan(DataSettings(train_data_dir=held / "ds")).repeats) == 5
    assert json.loads(run("lora-repeats", held / "ds", "--json").stdout)["images"] == 1


@of("shared-stem")
def test_what_one_tool_writes_the_others_read(held: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("lora-tag", held, "--collision", "suffix", *TAGGER)
    assert done.returncode == 0, done.stderr
    assert files(held) == ["a.jpg", "a.png", "a.png.txt", "a.txt"]
    (held / "a.png.txt").write_text("of the png")
    assert run("lora-tag", held, "--collision", "suffix", *TAGGER).returncode == 0
    assert (held / "a.png.txt").read_text() == "of the png"
    assert run("lora-repeats", held, "-o", tmp_path / "out").returncode == 0
    built = {path.suffix: path for path in (tmp_path / "out").glob("*/*") if path.suffix != ".txt"}
    assert built[".png"].with_suffix(".txt").read_text().strip() == "of the png"
    assert built[".jpg"].with_suffix(".txt").read_text() == (held / "a.txt").read_text()
    report = json.loads(run("lora-check", held, "--json").stdout)
    rules = {row["rule"] for row in report["findings"]}
    assert not rules & {"orphan-caption", "stem-clash", "missing-caption"}


@of("comma-at-the-end")
def test_a_comma_at_the_end_is_one(held: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert run("lora-tag", held, "--existing", "append", *TAGGER).returncode == 0
    text = (held / "a.txt").read_text()
    assert text.startswith("solo, 1girl, ")
    assert ", ," not in text


@of("kept-in-front")
def test_what_is_kept_in_front_stays_there(held: Path) -> None:
    pytest.importorskip("onnxruntime")
    caption = held / "10_x" / "a.txt"
    before = caption.read_text()
    assert run("lora-check", held, "--trigger", "mayu", "--fix", "no-trigger").returncode == 0
    assert caption.read_text() == before
    words = ("lora-tag", held / "10_x", "--max-tags", "1", "--character", "off", *TAGGER)
    new = json.loads(run(*words, "--no-txt", "--jsonl").stdout)["caption"]
    for mode, wanted in {
        "prepend": f"mayu ||| {new}, 1girl, smile, city\n",
        "append": f"mayu ||| 1girl, smile, city, {new}\n",
        "merge": f"mayu ||| 1girl, smile, city, {new}\n",
    }.items():
        caption.write_text(before)
        trigger = ("--trigger", "mayu") if mode == "merge" else ()
        for _ in range(2):
            assert run(*words, "--existing", mode, *trigger).returncode == 0
            assert caption.read_text() == wanted
    caption.write_text("1girl ||| smile")
    assert run("lora-check", held, "--trigger", "mayu", "--fix", "no-trigger").returncode == 0
    assert caption.read_text() == "mayu, 1girl ||| smile\n"


@of("network-drive")
def test_thumbnails_of_a_network_drive_are_left_out(held: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("lora-repeats", "-r", held, "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["images"] == 1
    assert "1 picture in folders that are no part of a dataset (@eaDir)" in done.stderr
    done = run("lora-tag", "-r", held, *TAGGER)
    assert "(@eaDir)" in done.stderr
    assert not list(held.rglob("@eaDir/**/*.txt"))


@of("capitals")
def test_capitals_in_suffixes_make_no_difference(held: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = (held / "5_x" / "A.TXT").read_text()
    assert run("lora-check", held).stdout.startswith("1 picture, 5 an epoch, 1 caption\n")
    assert "1 had captions already" in run("lora-tag", held / "5_x", *TAGGER).stderr
    assert run("lora-repeats", held, "-o", tmp_path / "out").returncode == 0
    assert [path.read_text() for path in (tmp_path / "out").glob("*_x/A.txt")] == [text]
    assert [row.caption for row in scan(DataSettings(train_data_dir=held)).pictures] == [text.strip()]


@of("faces")
def test_faces_keep_their_underscores(held: Path) -> None:
    page = held / "page.html"
    assert run("lora-check", held, "--html", page).returncode == 0
    report = json.loads(run("lora-check", held, "--json").stdout)
    assert {row["tag"] for row in report["tags"]} == {"1girl", "^_^", ">_<", "o_o"}
    assert '"o_o"' in page.read_text()
    assert '"o o"' not in page.read_text()


@of("inner-folder")
def test_an_inner_folder_is_told(held: Path, tmp_path: Path) -> None:
    done = run("lora-repeats", held, "-o", tmp_path / "out")
    assert "1 picture in folders inside a concept's folder (--recursive takes them in)" in done.stderr
    done = run("lora-repeats", held, "-r", "--json")
    assert [(row["concept"], row["images"]) for row in json.loads(done.stdout)["concepts"]] == [("mayu", 2)]
    assert "folders inside" not in done.stderr


@of("inner-folder")
def test_an_inner_folder_is_checked_if_asked(held: Path) -> None:
    done = run("lora-check", held)
    assert "1 picture in folders inside a concept's folder (--recursive checks them)" in done.stdout
    report = json.loads(run("lora-check", held, "--json").stdout)
    deep = json.loads(run("lora-check", held, "--recursive", "--json").stdout)
    assert [row["images"] for row in report["concepts"]] == [1]
    assert [(row["concept"], row["images"]) for row in deep["concepts"]] == [("mayu", 2)]
    assert "checked, as lora-repeats --recursive takes them in" in deep["left_out"][0]
    rows = run("lora-check", "buckets", held, "-r", "--json").stdout.splitlines()
    assert len(rows) == 2


@of("inner-folder")
def test_no_epoch_is_counted_where_no_folder_has_a_number(held: Path) -> None:
    """lora-train refuses such a folder, and says what to rename."""
    with pytest.raises(InputError, match="no folder named N_concept in it; rename 'mayu' to '10_mayu'"):
        scan(DataSettings(train_data_dir=held))
    lines = run("lora-check", held, "--resolution", 64).stdout.splitlines()
    assert lines[0] == "1 picture, 1 caption"
    assert lines[1].startswith(
        "  not trained as they lie: 1 picture in folders without a number of repeats in front;"
    )
    assert "  mayu: 1 (100%)" in lines
    assert any(line.endswith("1 batches with each picture once") for line in lines)
    assert not any("an epoch" in line for line in lines)
    (row,) = json.loads(run("lora-check", held, "--json").stdout)["concepts"]
    assert (row["images"], row["repeats"], row["shown"], row["share"]) == (1, [], 0, 1.0)
    (held / "mayu").rename(held / "3_mayu")
    lines = run("lora-check", held, "--resolution", 64).stdout.splitlines()
    assert lines[0] == "1 picture, 3 an epoch, 1 caption"
    assert not any("as they lie" in line for line in lines)


@of("inner-folder")
def test_what_lies_in_a_folder_that_is_switched_off_stays_out(held: Path) -> None:
    top = held / "mayu"
    shutil.copytree(top, held / "0_off")
    deep = json.loads(run("lora-check", held, "--recursive", "--json").stdout)
    assert [row["images"] for row in deep["concepts"]] == [2]
    assert any("2 pictures in '0_off', whose name asks for 0 repeats" in line for line in deep["left_out"])
    done = run("lora-repeats", held, "-r", "--json")
    assert [row["images"] for row in json.loads(done.stdout)["concepts"]] == [2]


@of("utf16")
def test_other_encodings(held: Path) -> None:
    done = run("lora-clean", held, "--spaces")
    assert done.returncode == 0, done.stderr
    assert (held / "a.txt").read_bytes().decode("utf-8").startswith("1girl, long hair")
    (held / "a.txt").write_bytes("1girl, 猫耳".encode("cp932"))
    done = run("lora-clean", held)
    assert done.returncode == 1
    assert "--encoding NAME" in done.stderr
    assert "iconv" not in done.stderr
    assert run("lora-clean", held, "--encoding", "cp932").returncode == 0
    assert (held / "a.txt").read_text(encoding="utf-8") == "1girl, 猫耳"
    assert run("lora-clean", "--undo", held).returncode == 0
    assert (held / "a.txt").read_bytes() == "1girl, 猫耳".encode("cp932")
    done = run("lora-clean", held, "--encoding", "klingon")
    assert done.returncode == 2
    assert "--encoding klingon: no encoding" in done.stderr


@of("document")
def test_options_of_sd_scripts_cleaning(held: Path, tmp_path: Path) -> None:
    words = ("lora-clean", held / "meta.json", "--to", "kohya", "-o", tmp_path / "new.json")
    done = run(*words, "--full_path", "--text")
    assert done.returncode == 0, done.stderr
    assert "full_path is not needed" in done.stderr
    done = run(*words, "--in_json", "other.json", "--force")
    assert done.returncode == 2
    assert "name the file itself" in done.stderr


@of("kept-in-front")
def test_signs_of_prompts_are_found(held: Path) -> None:
    caption = held / "10_x" / "a.txt"
    signs = {"(smile:1.2)": 1, "<lora:mayu:0.8>": 1, "BREAK": 1, "rem \\(re:zero\\)": 0, "1:1": 0, ":3": 0}
    for text, count in signs.items():
        caption.write_text(f"mayu, {text}, city")
        report = json.loads(run("lora-check", held, "--json", "--no-look", "--only", "prompt-syntax").stdout)
        assert len(report["findings"]) == count, text
    caption.write_text("mayu, (smile:1.2), <lora:mayu:0.8>, BREAK")
    mend = ("lora-clean", held / "10_x", "--strip-weights", "--drop", "re:<.*>", "--drop", "BREAK")
    assert run(*mend).returncode == 0
    assert caption.read_text() == "mayu, smile"
