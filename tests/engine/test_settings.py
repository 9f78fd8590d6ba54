"""The options of ``lora-train``: lists of numbers, and sd-scripts' options that are known and not taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lorapipe_engine.cli import lora_train
from lorapipe_engine.command.options import build_settings, fields_of
from lorapipe_engine.command.printed import print_config
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS, OptimizerSettings
from lorapipe_engine.settings.refused import FOREIGN

BASES = Path(__file__).parents[1] / "data/merge"
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


def test_of_rates_given_twice_the_last_count() -> None:
    found = run("--print-config", "--text_encoder_lr", "1e-5", "--text_encoder_lr", "2e-5", "3e-5")
    assert "text_encoder_lr = [2e-05, 3e-05]" in found.stdout
    found = run("--print-config", "--optimizer_args", "a=1", "--optimizer_args", "b=2")
    assert 'optimizer_args = ["a=1", "b=2"]' in found.stdout


# ------------------------------------------------------------------------------------- sd-scripts' other options


@pytest.mark.table
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--use_8bit_adam"], 'optimizer_type = "AdamW8bit"'),
        (["--use_lion_optimizer"], 'optimizer_type = "Lion"'),
        (["--lr_restart_cycles", "3"], "lr_scheduler_num_cycles = 3.0"),
        (["--caption_extention", ".tags"], 'caption_extension = ".tags"'),
        (["--network_train_text_encoder_only"], "network_train_text_encoder_only = true"),
        (["--dataset_repeats", "10"], "dataset_repeats = 10"),
        (["--max_token_length", "0"], "max_token_length = 75"),
        (["--metadata_file", "meta.json"], 'in_json = "meta.json"'),
        (["--stop_text_encoder_training", "50%"], 'stop_text_encoder_training = "50%"'),
    ],
)
def test_options_that_mean_something_here_are_obeyed(words: list[str], line: str, tmp_path: Path) -> None:
    found = run("--print-config", *words)
    assert line in found.stdout.splitlines(), found.stderr
    path = tmp_path / "options.toml"
    value = words[1] if len(words) > 1 else "1"
    path.write_text(f"{words[0].removeprefix('--')} = '{value}'\n")
    found = run("--print-config", "--config_file", str(path))
    assert line in found.stdout.splitlines(), found.stderr


def test_a_tokenizer_of_sd_scripts_cache_is_taken_where_it_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "openai_clip-vit-large-patch14"
    assert "# tokenizer_dir =" in run("--print-config", "--tokenizer_cache_dir", str(tmp_path)).stdout
    folder.mkdir()
    (folder / "vocab.json").write_text("{}")
    found = run("--print-config", "--tokenizer_cache_dir", str(tmp_path))
    assert f'tokenizer_dir = "{folder}"'.replace("\\", "\\\\") in found.stdout


def test_one_that_contradicts_an_option_is_refused(tmp_path: Path) -> None:
    found = run("--print-config", "--use_8bit_adam", "--optimizer_type", "Lion")
    assert found.exit_code == 2
    assert "use_8bit_adam and optimizer_type Lion exclude each other" in found.stderr
    path = tmp_path / "options.toml"
    path.write_text("use_8bit_adam = true\noptimizer_type = 'Lion'\n")
    found = run("--print-config", "--config_file", str(path))
    assert found.exit_code == 2
    assert "optimizer_type: given twice, as optimizer_type and use_8bit_adam" in found.stderr


def test_names_may_be_cut_short_where_one_option_begins_so() -> None:
    found = run("--print-config", "--max_train_epoch", "3", "--max-grad=2")
    assert "max_train_epochs = 3" in found.stdout
    assert "max_grad_norm = 2.0" in found.stdout
    assert "note: --max_train_epoch is taken as --max_train_epochs" in found.stderr
    found = run("--print-config", "--max_train", "3")
    assert (found.exit_code, "no option --max_train" in found.stderr) == (2, True)


def test_words_for_accelerate_are_named() -> None:
    found = run("--plot-lr", "--num_cpu_threads_per_process", "2", "--num_processes", "1")
    assert found.exit_code == 0
    assert "num_cpu_threads_per_process is not needed: it is accelerate's" in found.stderr
    found = run("--plot-lr", "--num_processes", "2")
    assert (found.exit_code, "torchrun" in found.stderr) == (2, True)


def test_what_starts_sd_scripts_is_left_over(tmp_path: Path) -> None:
    launched = "accelerate launch --num_cpu_threads_per_process 2 ./sdxl_train_network.py"
    for words in (launched, "python -m accelerate.commands.launch train_network.py"):
        found = run(*words.split(), "--network_dim", "3", "--print-config")
        assert "network_dim = 3" in found.stdout, found.stderr
        assert "lora-train is the program itself, and needs no launcher" in found.stderr
    found = run("\u2013network_dim", "8")
    assert (found.exit_code, "begins with a long dash" in found.stderr) == (2, True)
    assert "write --network_dim" in found.stderr


def test_arguments_may_stand_in_one_text(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(
        'optimizer_args = "betas=(0.9, 0.95) weight_decay=0.1"\nnetwork_args = ["conv_dim=4 conv_alpha=1"]\n'
    )
    found = run("--print-config", "--config_file", str(path)).stdout
    assert 'optimizer_args = ["betas=(0.9, 0.95)", "weight_decay=0.1"]' in found
    assert 'network_args = ["conv_dim=4", "conv_alpha=1"]' in found


def test_options_of_other_families_are_named(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("guidance_scale = 3.5\n")
    found = run("--print-config", "--config_file", str(path))
    assert (found.exit_code, "is of FLUX, SD3 and the like" in found.stderr) == (2, True)


def test_nothing_is_uploaded_without_a_repository(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text('async_upload = true\nhuggingface_repo_id = ""\nhuggingface_repo_type = "model"\n')
    found = run("--plot-lr", "--config_file", str(path))
    assert found.exit_code == 0
    assert found.stderr.count("note:") == 1
    assert "async_upload, huggingface_repo_type are not needed: nothing is uploaded" in found.stderr.replace(
        "huggingface_repo_type, async_upload", "async_upload, huggingface_repo_type"
    )
    path.write_text('async_upload = true\nhuggingface_repo_id = "a/b"\n')
    found = run("--plot-lr", "--config_file", str(path))
    assert (found.exit_code, "huggingface_repo_id: upload the finished file" in found.stderr) == (2, True)


def test_no_option_is_both_taken_and_refused() -> None:
    assert not OWN & set(FOREIGN)


def test_a_rate_for_each_text_encoder_is_one_of_two(tmp_path: Path) -> None:
    found = run("--print-config", "--text_encoder_lr2=2e-5", "--text_encoder_lr1=1e-5")
    assert "text_encoder_lr = [1e-05, 2e-05]" in found.stdout
    assert "note: text_encoder_lr2: taken as value 2 of text_encoder_lr" in found.stderr
    path = tmp_path / "options.toml"
    path.write_text("text_encoder_lr2 = 2e-5\ntext_encoder_lr1 = 1e-5\n")
    assert "text_encoder_lr = [1e-05, 2e-05]" in run("--print-config", "--config_file", str(path)).stdout
    path.write_text("text_encoder_lr1 = 1e-5\n")
    for words in (["--text_encoder_lr1", "1e-5"], ["--config_file", str(path)]):
        found = run("--print-config", *words)
        assert found.exit_code == 2
        assert "text_encoder_lr1: is one of the values of text_encoder_lr" in found.stderr


@pytest.mark.table
@pytest.mark.parametrize("name", [name for name in FOREIGN if not name.startswith("text_encoder_lr")])
def test_each_says_why_in_one_line(name: str) -> None:
    row = FOREIGN[name]
    # With a scheduler that reads what one of them is taken as.
    words = ["--plot-lr", "--lr_scheduler", "cosine_with_restarts", f"--{name}"]
    found = run(*words, *([] if row.flag else ["7"]))
    assert row.why in found.stderr
    assert found.exit_code == (0 if row.is_ignored or row.means else 2)
    assert found.stderr.count("\n") == 1
    assert name in found.stderr


@pytest.mark.table
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
    path.write_text("[a]\nlearning_rate = 1e-4\nxformers = true\n[b]\ncpu_offload_checkpointing = true\n")
    found = run("--plot-lr", "--config_file", str(path))
    assert found.exit_code == 2
    assert "line 5" in found.stderr
    assert "use --gradient_checkpointing" in found.stderr


def test_they_are_not_in_the_help() -> None:
    text = run("--help").stdout
    assert "--optimizer_type" in text
    assert not [name for name in FOREIGN if f"--{name} " in text or f"--{name}\n" in text]


def test_several_notes_and_the_run_goes_on() -> None:
    found = run("--plot-lr", "--xformers", "--lowram")
    assert found.exit_code == 0
    assert found.stderr.count("is not needed") == 2


def test_the_size_is_the_bases_own_unless_it_is_said() -> None:
    found = run("--print-config", "--base", "demo").stdout
    assert "(the base's own)\nresolution = [64, 64]" in found
    found = run("--print-config", "--base", "demo", "--resolution", "512").stdout
    assert "resolution = [512, 512]" in found
    for name, side in (("sd15", 512), ("sd21", 768), ("sdxl", 1024)):
        base = BASES / f"{name}_base_fp16.safetensors"
        assert f"resolution = [{side}, {side}]" in run("--print-config", "--base", str(base)).stdout
