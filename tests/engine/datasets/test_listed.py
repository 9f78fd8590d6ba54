"""Files of captions of many pictures: those of other forms are named with the way to have them read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import DataSettings
from support.commands import run

CAPTIONS = {"0.png": "1girl, maid", "1.png": "1girl, tea"}


def draw(folder: Path) -> Path:
    """Two pictures in a folder."""
    folder.mkdir()
    for number, name in enumerate(CAPTIONS):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / name)
    return folder


def data(folder: Path, file: Path) -> DataSettings:
    return DataSettings(train_data_dir=folder, in_json=file, resolution=(64, 64))


def lines(name: str, text: str, start: str = "") -> str:
    rows = ({name: f"{start}{picture}", text: caption} for picture, caption in CAPTIONS.items())
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("metadata.jsonl", "Hugging Face's form"),
        ("my table.csv", "is no JSON"),
        ("records.jsonl", "is a record"),
    ],
)
def test_the_command_that_an_error_names_makes_the_file(
    name: str, told: str, beside: bool, tmp_path: Path
) -> None:
    folder = draw(tmp_path / "some pictures")
    texts = {
        "metadata.jsonl": lines("file_name", "text"),
        "my table.csv": "file_name,text\n" + "".join(f'{n},"{c}"\n' for n, c in CAPTIONS.items()),
        "records.jsonl": lines("path", "caption", f"{folder}/"),
    }
    file = (folder if beside else tmp_path) / name
    file.write_text(texts[name])
    with pytest.raises(ConfigError, match=told) as caught:
        scan(data(folder, file))
    command, _, source = str(caught.value).partition("writes: ")[2].partition(" < ")
    words = shlex.split(command)
    if not beside and "put it into" in str(caught.value):
        file.rename(folder / name)
    done = run(*words, stdin=Path(shlex.split(source)[0]).read_text() if source else "")
    assert done.returncode == 0, done.stderr
    made = Path(words[-1])
    assert [(row.path.name, row.caption) for row in scan(data(folder, made)).pictures] == [*CAPTIONS.items()]


@pytest.mark.parametrize("tool", ["lora-check", "lora-repeats"])
def test_tools_that_read_captions_beside_pictures_name_the_way(tool: str, tmp_path: Path) -> None:
    folder = draw(tmp_path / "pictures")
    file = folder / "metadata.jsonl"
    file.write_text(lines("file_name", "text"))
    done = run(tool, folder, "--in_json", file)
    assert done.returncode == 2
    command = re.search(r"lora-clean FILE --to txt", done.stderr)
    assert command is not None, done.stderr
    done = run(*command[0].replace("FILE", str(file)).split())
    assert done.returncode == 0, done.stderr
    assert {path.stem: path.read_text().strip() for path in folder.glob("*.txt")} == {
        name.removesuffix(".png"): caption for name, caption in CAPTIONS.items()
    }


def test_keys_of_rows_that_nothing_reads_are_noted_once(tmp_path: Path) -> None:
    """Those that sd-scripts' tools write of sizes and latents are nothing strange."""
    folder = draw(tmp_path / "pictures")
    own = {"train_resolution": [64, 64], "image_size": [64, 64], "npz_path": "0.npz"}
    file = folder / "meta.json"
    file.write_text(json.dumps({name: {"tags": text, **own} for name, text in CAPTIONS.items()}))
    assert not any("not used" in note for note in dataset_notes(data(folder, file), scan(data(folder, file))))
    rows = {"0.png": {"captoin": "a", "score": 3, **own}, "1.png": {"captoin": "b", "tags": "c"}}
    file.write_text(json.dumps(rows))
    told = [f"{file}: not used: captoin in 2 rows, score in 1 row; caption and tags are read"]
    assert [n for n in dataset_notes(data(folder, file), scan(data(folder, file))) if "not used" in n] == told
    config = tmp_path / "dataset.toml"
    subset = f"[[datasets.subsets]]\nimage_dir = {str(folder)!r}\nmetadata_file = {str(file)!r}\n"
    config.write_text(f"[[datasets]]\n{subset}[[datasets]]\n{subset}")
    options = DataSettings(dataset_config=config, resolution=(64, 64))
    assert [note for note in dataset_notes(options, scan(options)) if "not used" in note] == told
    lines = folder / "meta.jsonl"
    lines.write_text(json.dumps({"image_path": "0.png", "caption": "a", "rating": "s", "width": 64}) + "\n")
    options = data(folder, lines)
    found = dataset_notes(options, scan(options))
    assert f"{lines}: not used: rating in 1 row; caption and tags are read" in found
