"""The options of ``lora-train``: lists of numbers, and sd-scripts' options that are known and not taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lorapipe_engine.cli import lora_train
from lorapipe_engine.command.options import build_settings, fields_of, print_config
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS, OptimizerSettings
from lorapipe_engine.settings.refused import FOREIGN

OWN = {field.name for part in PARTS for field in fields_of(part)}


def run(*words: str) -> Result:
    return CliRunner().invoke(lora_train, list(words))


# ------------------------------------------------------------------------------------------ lists of numbers


@pytest.mark.parametrize(
    "words", [["--text_encoder_lr", "1e-5", "2e-5"], ["--text-encoder-lr", "1e-5", "2e-5"]]
)
def test_several_rates_on_the_command_line(words: list[str]) -> None:
    found = run("--print-config", *words)
    assert "text_encoder_lr = [1e-05, 2e-05]" in found.stdout


@pytest.mark.parametrize(
    ("text", "rates"), [("[1e-5, 2e-5]", (1e-5, 2e-5)), ("1e-5", (1e-5,)), ('["1e-5"]', (1e-5,)), ("[]", ())]
)
def test_several_rates_in_a_file(text: str, rates: tuple[float, ...], tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(f"text_encoder_lr = {text}\n")
    (settings,), _ = build_settings([OptimizerSettings], {}, path)
    assert settings.text_encoder_lr == rates


@pytest.mark.parametrize(("value", "word"), [("fast", "expected a number"), ("-1", "below 0")])
def test_rates_that_are_none(value: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build_settings([OptimizerSettings], {"text_encoder_lr": ("1e-5", value)})


def test_what_is_printed_is_read_again(tmp_path: Path) -> None:
    flags = {"text_encoder_lr": ("1e-5", "3e-5"), "lr_warmup_steps": "5%", "lr_scheduler_args": ("T_0=3",)}
    parts, origin = build_settings(PARTS, flags)
    path = tmp_path / "options.toml"
    path.write_text(print_config(parts, origin))
    again, _ = build_settings(PARTS, {}, path)
    assert again == parts


# ------------------------------------------------------------------------------------- sd-scripts' other options


def test_no_option_is_both_taken_and_refused() -> None:
    assert not OWN & set(FOREIGN)


@pytest.mark.parametrize("name", FOREIGN)
def test_each_says_why_in_one_line(name: str) -> None:
    row = FOREIGN[name]
    found = run("--plot-lr", f"--{name}", *([] if row.flag else ["7"]))
    assert row.why in found.stderr
    assert found.exit_code == (0 if row.is_ignored else 2)
    assert found.stderr.count("\n") == 1
    assert name in found.stderr


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_may_hold_them_switched_off(name: str, tmp_path: Path) -> None:
    row = FOREIGN[name]
    off = ["false", '""', "[]"]
    off += [f'"{value}"' if isinstance(value, str) else str(value) for value in row.off]
    for text in off:
        path = tmp_path / "options.toml"
        path.write_text(f"[training]\n{name} = {text}\n")
        found = run("--plot-lr", "--config_file", str(path))
        assert (found.exit_code, found.stderr) == (0, "")


def test_a_file_that_holds_one_switched_on_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("[a]\nlearning_rate = 1e-4\nxformers = true\n[b]\nuse_8bit_adam = true\n")
    found = run("--plot-lr", "--config_file", str(path))
    assert found.exit_code == 2
    assert "line 5" in found.stderr
    assert "--optimizer_type AdamW8bit" in found.stderr


def test_they_are_not_in_the_help() -> None:
    text = run("--help").stdout
    assert "--optimizer_type" in text
    assert not [name for name in FOREIGN if f"--{name} " in text or f"--{name}\n" in text]


def test_several_notes_and_the_run_goes_on() -> None:
    found = run("--plot-lr", "--xformers", "--lowram")
    assert found.exit_code == 0
    assert found.stderr.count("is not needed") == 2
