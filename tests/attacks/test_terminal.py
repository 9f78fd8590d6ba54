"""Names that a terminal would obey, in files, folders, captions, tags, modules and metadata, through every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorapipe_engine.command.text import one_line, printable
from lorapipe_engine.files.tensorfile import write_tensors
from support.commands import run
from support.limited import Ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names of files")

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"
# The terminal's title, directional marks of all kinds, a control sequence of one byte, a line of its own, a byte alone.
MARKS = "\x1b]0;owned\x07\u202e\u2066\u200e\u200f\u061c\x9b31m\nINJECTED"
NAME = f"cat{MARKS}\udcff"
TEXT = f"cat{MARKS}"


def check_lines(data: bytes) -> None:
    """Every line is one that a terminal shows and does not obey, and none is of a name's making."""
    for line in data.decode("utf-8", "strict").split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("INJECTED"), ascii(line)


def run_here(command: str, words: Sequence[object]) -> Ended:
    """Run a command in this process; what it printed, as bytes."""
    done = run(command, *words)
    return Ended(done.returncode, done.stdout.encode(), done.stderr.encode())


def check(ended: Ended, *codes: int) -> Ended:
    assert ended.lines is not None  # no traceback, nothing unexpected
    assert ended.code in codes, ended.err
    check_lines(ended.err)
    check_lines(ended.out)
    return ended


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain text, 初音ミク ñ 🐈 שלום", "plain text, 初音ミク ñ 🐈 שלום"),
        ("\x1b[31m\x9b", "\\x1b[31m\\x9b"),
        ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("\u202a\u202e\u2066\u2069\u200e\u200f\u061c", "\\u202a\\u202e\\u2066\\u2069\\u200e\\u200f\\u061c"),
        ("\u2028\u2029\x85\u3000\xa0", "\\u2028\\u2029\\x85\\u3000\\xa0"),
        ("\udcff\ud800\U000e0001\ufeff", "\\udcff\\ud800\\U000e0001\\ufeff"),
        (Path("a\nb"), "a\\nb"),
    ],
)
def test_what_is_printable(text: object, wanted: str) -> None:
    assert printable(text) == wanted
    assert printable(wanted) == wanted


def test_one_line_of_several() -> None:
    assert one_line("  first\n  second\x1b ") == "first second\\x1b"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one folder and two pictures with captions."""
    root = tmp_path_factory.mktemp("set")
    folder = root / f"2_{NAME}"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}{NAME}.png")
        (folder / f"{number}{NAME}.txt").write_text(
            f"{TEXT.replace(chr(10), ' ')}, red\u202ehair, b\x1b[2J\n", encoding="utf-8"
        )
    (folder / f"broken{NAME}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    (folder / f"alone{NAME}.txt").write_text("x")
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["--text"],
        ["--text", "--existing", "append", "--dry-run", "--frequency"],
        ["--explain"],
        ["--text", "--existing", "replace", "--dry-run", "--trigger-from-folder"],
    ],
)
def test_tag(words: Sequence[str], root: Path) -> None:
    given = [root, "-r", "--model", MODEL, "--device", "cpu", "--no-cache", *words]
    check(run_here("lora-tag", given), 1)


@pytest.mark.parametrize(
    ("command", "words", "codes"),
    [
        ("lora-check", [], (1,)),
        ("lora-check", ["--all"], (1,)),
        ("lora-check", ["--json"], (1,)),
        ("lora-check", ["--fix", "broken-picture", "--dry-run"], (0, 1, 2)),
        ("lora-repeats", [], (0, 1)),
        ("lora-clean", ["-r", "--dry-run", "--text", "--spaces", "--frequency"], (0,)),
        ("lora-clean", ["-r", "--no-txt", "--text", "--trigger", TEXT.replace("\n", " ")], (0,)),
    ],
)
def test_dataset(command: str, words: Sequence[str], codes: Sequence[int], root: Path) -> None:
    ended = run_here(command, [root, *words])
    if "--json" in words:
        json.loads(ended.out)
        ended = Ended(ended.code, b"", ended.err)
    check(ended, *codes)


def test_dataset_subcommands_and_results(root: Path, tmp_path: Path) -> None:
    check(run_here("lora-check", ["buckets", root]), 0, 1)
    check(run_here("lora-repeats", [root, "-o", tmp_path / NAME]), 0, 1)
    assert (tmp_path / NAME).is_dir()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a good module, one of a bad name, metadata of bad names and values, and a dead one."""
    rng = np.random.default_rng(0)
    tensors = {}
    good = "lora_unet_down_blocks_1_attentions_0_proj_in"
    for name in (good, f"lora_unet_{TEXT}", f"lora_te_{TEXT}"):
        tensors[f"{name}.lora_up.weight"] = rng.standard_normal((320, 4)).astype(np.float32)
        tensors[f"{name}.lora_down.weight"] = rng.standard_normal((4, 320)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.asarray(2, dtype=np.float32)
    tensors[f"lora_te_{TEXT}.lora_up.weight"][:] = np.nan
    tensors[f"odd{TEXT}"] = np.zeros((3,), dtype=np.float32)
    metadata = {
        TEXT: TEXT,
        "ss_network_dim": TEXT,
        "ss_network_alpha": TEXT,
        "ss_output_name": TEXT,
        "ss_tag_frequency": json.dumps({TEXT: {TEXT: 3}}),
    }
    path = tmp_path_factory.mktemp("nets") / f"net{NAME}.safetensors"
    write_tensors(path, tensors, metadata)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["zeros"],
        ["keys"],
        ["keys", "--modules"],
        ["meta"],
        ["meta", "--tags"],
        ["norms"],
        ["ranks"],
        ["hash"],
        ["compat"],
        ["check"],
    ],
)
def test_inspect(words: Sequence[str], network: Path) -> None:
    check(run_here("lora-inspect", [*words, network]), 0, 1, 2)


def test_inspect_two(network: Path, tmp_path: Path) -> None:
    other = tmp_path / f"other{NAME}.safetensors"
    write_tensors(other, {f"lora_unet_{TEXT}2.alpha": np.asarray(1, dtype=np.float32)}, {TEXT: "x"})
    check(run_here("lora-inspect", ["diff", network, other]), 0, 1, 2)
    check(run_here("lora-inspect", ["meta", network, "--set", f"{TEXT}=1", "-o", tmp_path]), 0, 2)


def test_merge_and_resize(network: Path, tmp_path: Path) -> None:
    words = [network, "-o", tmp_path / f"out{NAME}.safetensors"]
    check(run_here("lora-merge", words), 0, 1, 2)
    words = [
        network,
        "--new-rank",
        2,
        "--report",
        "--allow-nonfinite",
        "-o",
        tmp_path / f"o{NAME}.safetensors",
    ]
    check(run_here("lora-resize", words), 0, 1, 2)
    words = [network, "--new-rank", 2, "--allow-nonfinite", "-o", tmp_path / f"p{NAME}.safetensors"]
    check(run_here("lora-resize", words), 0, 1, 2)


def test_extract(network: Path, tmp_path: Path) -> None:
    words = [network, "-o", tmp_path / f"out{NAME}.safetensors"]
    check(run_here("lora-extract", words), 0, 1, 2)


def test_convert(network: Path, tmp_path: Path) -> None:
    words = [network, "--to", "diffusers", "-o", tmp_path / f"out{NAME}.safetensors"]
    check(run_here("lora-convert", words), 0, 1, 2)


@pytest.mark.parametrize("command", ["lora-tag", "lora-check", "lora-repeats", "lora-clean", "lora-inspect"])
def test_words_of_the_command_line(command: str) -> None:
    check(run_here(command, [f"--{NAME}"]), 2)


@pytest.mark.parametrize("command", ["lora-check", "lora-inspect"])
def test_where_an_error_came_from(command: str, tmp_path: Path) -> None:
    words = ["zeros"] if command == "lora-inspect" else []
    ended = run_here(command, [*words, tmp_path / NAME, "-v"])
    assert ended.code in (1, 2)
    assert b"Traceback" in ended.err
    check_lines(ended.err)


def test_lines_of_training(root: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from lorapipe_engine.command.tool import say
    from lorapipe_engine.datasets.described import folder_lines
    from lorapipe_engine.datasets.scan import scan
    from lorapipe_engine.errors import InputError
    from lorapipe_engine.settings import DataSettings

    with pytest.raises(InputError, match="broken"):
        scan(DataSettings(train_data_dir=root, resolution=(64, 64)))
    folder = tmp_path / f"2_{NAME}"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    for line in folder_lines(scan(DataSettings(train_data_dir=tmp_path, resolution=(64, 64)))):
        say(line)
    err = capfdbinary.readouterr().err
    assert b"INJECTED" in err
    check_lines(err)


def test_an_error_of_training(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / f"99999_{NAME}").mkdir()
    words = ["--base", "demo", "--train_data_dir", tmp_path, "--output_dir", tmp_path]
    ended = check(run_here("lora-train", words), 2)
    assert len(ended.lines) == 1
    assert "its name asks for 99,999 repeats of each picture, more than 10,000" in ended.lines[0]


@pytest.mark.parametrize(
    ("command", "words", "codes"),
    [
        ("lora-grid", ["PICTURES", "--html", "OUT"], (0, 1, 2)),
        ("lora-grid", ["PICTURES", "--best"], (0, 1, 2)),
        ("lora-sample", ["--base", "demo", "--prompt", TEXT, "--dry-run"], (0, 2)),
        ("lora-sample", ["--base", "demo", "--prompt", "a", "--x", f"sampler:{TEXT}", "--dry-run"], (2,)),
        (
            "lora-sample",
            [f"PICTURES/{NAME}*.safetensors", "--base", "demo", "--prompt", "a", "--dry-run"],
            (2,),
        ),
    ],
)
def test_pictures_of_plans(
    command: str, words: Sequence[str], codes: Sequence[int], root: Path, tmp_path: Path
) -> None:
    places = {"PICTURES": str(root), "OUT": str(tmp_path / "page.html")}
    given = [word.replace("PICTURES", places["PICTURES"]).replace("OUT", places["OUT"]) for word in words]
    ended = run_here(command, given)
    for line in ended.out.splitlines() if command == "lora-sample" else ():
        json.loads(line)
    check(Ended(ended.code, b"" if command == "lora-sample" else ended.out, ended.err), *codes)


def test_every_command_is_here() -> None:
    from support.limited import scripts

    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in scripts() if name.startswith("lora-") and f'"{name}"' not in text] == []
