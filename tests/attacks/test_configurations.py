"""Configurations of strangers: bounded in what they cost, one line for what is wrong, and nothing of the current folder
is run for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.errors import LoraError
from support.attacks import TOOLS, run_tool

MEMORY = 1 << 30  # bytes of address space; a light command takes a third of it
SECONDS = 20  # on a busy machine; one takes a third of a second

DEEP = 3000
HOSTILE: dict[str, str] = {
    "a key of 50,000 dots": "a" + ".a" * 50_000 + " = 1\n",
    "a table of 50,000 dots": "[" + "a" + ".a" * 50_000 + "]\n",
    "dots between quotations": "a = {" + '"a"' + ' . "a.b"' * 5000 + " = 1}\n",
    "a deep list": "network_args = " + "[" * DEEP + "]" * DEEP + "\n",
    "a deep table": "a = " + "{a = " * DEEP + "1" + "}" * DEEP + "\n",
    "a number of 5,000 digits": "seed = " + "9" * 5000 + "\n",
    "a number of 5,000 hexadecimal digits": "seed = 0x" + "f" * 5000 + "\n",
    "a number of 80 bits": f"seed = {1 << 80}\n",
    "a float of 5,000 digits": "unet_lr = 1" + "0" * 5000 + ".0\n",
    "not a number": "unet_lr = nan\n",
    "a key of 100,000 letters": "k" * 100_000 + " = 1\n",
    "a value of 100,000 letters": 'loss_type = "' + "x" * 100_000 + '"\n',
    "NUL in a path": 'output_dir = "a\\u0000b"\n',
    "NUL in a folder of pictures": 'train_data_dir = "a\\u0000b"\n',
    "NUL in a name": 'output_name = "a\\u0000b"\n',
    "a line break in a name": 'output_name = "a\\nb"\n',
    "a path as a name": 'output_name = "../a"\n',
    "a prefix that leaves the folder": 'log_prefix = "../../a"\n',
    "half a character": 'output_name = "\\ud800"\n',
    "a quotation without end": 'a = "' + '\\"' * 400_000,
    "two megabytes": "# " + "x" * (2 << 20),
    "not UTF-8": "\udcff",
    "a control character": "a\x1b[31m = 1\n",
}


@pytest.mark.table
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_bytes(HOSTILE[name].encode("utf-8", "surrogateescape"))
    done = run_tool(
        ["lora-train", "--print-config", "--config_file", "options.toml"],
        tmp_path,
        memory=MEMORY,
        timeout=SECONDS,
    )
    done.assert_one_line()
    assert done.code == 2
    assert "\x1b" not in done.err
    assert len(done.err) < 1000


@pytest.mark.table
@pytest.mark.parametrize("name", HOSTILE)
def test_the_same_as_a_file_of_datasets_and_of_prompts(name: str, tmp_path: Path) -> None:
    from lorapipe_engine.datasets.file import read_dataset_file
    from lorapipe_engine.settings import DataSettings
    from lorapipe_engine.train.sample.prompts import Prompt, read_prompts

    path = tmp_path / "file.toml"
    path.write_bytes(HOSTILE[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(LoraError) as error:
        read_dataset_file(path, DataSettings())
    assert len(str(error.value)) < 2500
    if "=" in HOSTILE[name]:
        path.write_text("[prompt]\n" + HOSTILE[name], encoding="utf-8", errors="surrogateescape")
        with pytest.raises(LoraError):
            read_prompts(path, Prompt(text=""))


JSONS: dict[str, str] = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep tables": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "5,000 digits": '{"prompt": ' + "9" * 5000 + "}",
    "half a character": '[{"prompt": "\\ud800"}]',
    "not a list": '{"prompt": "a"}',
    "numbers": "[1, 2]",
    "a text as width": '[{"prompt": "a", "width": "64"}]',
    "a list as prompt": '[{"prompt": ["a"]}]',
    "a width of billions": '[{"prompt": "a", "width": 4000000000}]',
    "steps without end": '[{"prompt": "a", "sample_steps": 1000000000}]',
    "a scale that is none": '[{"prompt": "a", "scale": NaN}]',
    "a negative seed": '[{"prompt": "a", "seed": -1}]',
}


@pytest.mark.parametrize("name", JSONS)
def test_hostile_prompts_and_datasets_in_json(name: str, tmp_path: Path) -> None:
    from lorapipe_engine.datasets.file import read_dataset_file
    from lorapipe_engine.settings import DataSettings
    from lorapipe_engine.train.sample.prompts import Prompt, read_prompts

    path = tmp_path / "file.json"
    path.write_text(JSONS[name])
    with pytest.raises(LoraError):
        read_prompts(path, Prompt(text=""))
    with pytest.raises(LoraError):
        read_dataset_file(path, DataSettings())


@pytest.mark.slow
def test_what_is_bounded_is_not_what_people_write(tmp_path: Path) -> None:
    """Dots in texts, comments and quotations, keys of several parts, large files."""
    from lorapipe_engine.command.documents import parse_toml

    dots = "a." * 400
    text = f"""
# {dots}
"{dots}" = "{dots}"
'{dots}-' = "{dots}"
a.b."c.d".e.'f.g' = ["{dots}", '{dots}']  # {dots}
many = [
  \"\"\"{dots}
{dots}\\\"\"\"\"\"\", '''{dots}
{dots}''''', "x \\" {dots}",
]
numbers = [1.5, 1979-05-27T07:32:00.999, {1 << 62}, -{1 << 63}]
[x.y.z]
k = {{ a.b = "{dots}" }}
"""
    table = parse_toml(text, "text")
    assert table[dots] == table[f"{dots}-"] == dots
    assert table["a"]["b"]["c.d"]["e"]["f.g"] == [dots, dots]
    assert table["many"] == [f'{dots}\n{dots}"""', f"{dots}\n{dots}''", f'x " {dots}']
    assert table["x"]["y"]["z"]["k"]["a"]["b"] == dots
    rows = "\n".join(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "folder-{n}"' for n in range(5000))
    assert len(parse_toml(rows, "rows")["datasets"]) == 5000


# -------------------------------------------------------------------------------- JSON inside of networks


PATTERNS: dict[str, dict[str, Any]] = {
    "a pattern without end": {"(a+)+b": 4},
    "groups of groups": {"((a|a)*)*$": 4},
    "many stars": {".*a.*a.*a.*a.*a.*a.*a.*a.*a.*a": 4},
    "no pattern": {"(": 4},
    "a long one": {"[a]" * 1000: 4},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_of_an_adapter_configuration(name: str) -> None:
    from lorapipe_engine.networks.adapter_config import AdapterConfig

    config = AdapterConfig(
        "config", {"r": 2, "lora_alpha": 2, "rank_pattern": PATTERNS[name]}, prefixed=False
    )
    with pytest.raises(LoraError):
        config.scale("unet", "a" * 60, None)


def test_patterns_that_the_field_writes() -> None:
    from lorapipe_engine.networks.adapter_config import AdapterConfig

    ranks = {"mid.proj": 4, r"up\.1\.proj": 8, r"down\.\d+\.proj": 16, "^to_k$": 2}
    config = AdapterConfig("config", {"r": 32, "lora_alpha": 32, "rank_pattern": ranks}, prefixed=False)
    names = ["mid.proj", "x.up.1.proj", "down.12.proj", "to_k", "a.to_k", "amid.proj"]
    assert [config.scale("unet", name, None) for name in names] == [8.0, 4.0, 2.0, 16.0, 1.0, 1.0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": ' + "9" * 5000 + "}", "[]", '{"r": "\\ud800"}'])
def test_adapter_configurations_that_are_none(text: str, tmp_path: Path) -> None:
    from lorapipe_engine.networks.adapter_config import ADAPTER_KEY, find_config

    with pytest.raises(LoraError, match="cannot be understood"):
        find_config(tmp_path / "a.safetensors", {ADAPTER_KEY: text}, beside=False)


# -------------------------------------------------------------------------------- classes that are named

CANARY = "from pathlib import Path\nPath({place!r}).write_text('it ran')\n"


def plant_modules(folder: Path, canary: Path) -> None:
    """Modules of names that training imports where it finds them, each of which says that it ran."""
    for name in (
        "mine",
        "xformers",
        "wandb",
        "bitsandbytes",
        "peft",
        "torchao",
        "accelerate",
        "onnx",
        "pandas",
    ):
        (folder / f"{name}.py").write_text(CANARY.format(place=str(canary)))


@pytest.mark.parametrize("way", ["module", "script", "script with an empty PYTHONPATH", "code"])
@pytest.mark.parametrize("option", [("--optimizer_type", "mine.Adam"), ("--lr_scheduler_type", "mine.Curve")])
def test_no_module_of_the_current_folder_is_imported(
    option: tuple[str, str], way: str, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    import os

    folder, canary = tmp_path / "theirs", tmp_path / "canary"
    folder.mkdir()
    plant_modules(folder, canary)
    starts = {
        "module": [sys.executable, "-m", "lorapipe_engine"],
        "code": [sys.executable, "-c", "from lorapipe_engine.cli import train_main; train_main()"],
    }
    words = starts.get(way, [str(TOOLS / "lora-train")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "empty" in way:
        environment["PYTHONPATH"] = os.pathsep + environment.get("PYTHONPATH", "")
    done = subprocess.run(
        [*words, "--plot_lr", "curve.svg", "--max_train_steps", "2", *option],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not canary.exists()
    assert done.returncode == 2, done.stderr
    assert "cannot import mine" in done.stderr


def test_a_folder_that_the_user_names_is_imported_from(tmp_path: Path) -> None:
    """Naming a class is running its code, and PYTHONPATH is how a user says where that is."""
    pytest.importorskip("torch")
    import os

    (tmp_path / "mine.py").write_text("import torch\nclass Adam(torch.optim.Adam): pass\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lorapipe_engine",
            *["--plot_lr", "a.svg", "--max_train_steps", "2", "--optimizer_type", "mine.Adam"],
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
