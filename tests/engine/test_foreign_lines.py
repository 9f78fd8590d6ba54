"""Command lines and files made for sd-scripts, as its users have them, through the real command."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.cli import lora_train
from lorapipe_engine.command.options import Field, build_settings, fields_of
from lorapipe_engine.command.printed import print_config
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS
from support.quick import examples

# As a guide's PowerShell script puts it together.
SCRIPT = """
--network_module="networks.lora" --pretrained_model_name_or_path="D:/models/anime.safetensors"
--train_data_dir="D:/training set" --output_dir="D:/out" --output_name="neko" --caption_extension=".txt"
--logging_dir="D:/logs" --log_prefix="neko_" --enable_bucket --min_bucket_reso=256 --max_bucket_reso=1536
--bucket_reso_steps=64 --train_batch_size=2 --gradient_accumulation_steps=1 --unet_lr=1e-4 --text_encoder_lr=5e-5
--learning_rate=1e-4 --lr_scheduler="cosine_with_restarts" --lr_scheduler_num_cycles=4 --lr_warmup_steps=80
--optimizer_type="AdamW8bit" --optimizer_args "weight_decay=0.01" "betas=0.9,0.999" --network_dim=64
--network_alpha=32 --network_args "conv_dim=32" "conv_alpha=16" --resolution=768,768 --max_train_steps=1600
--save_every_n_epochs=1 --save_last_n_epochs=999 --clip_skip=2 --max_token_length=225 --keep_tokens=1
--shuffle_caption --seed=1337 --mixed_precision="bf16" --save_precision="bf16" --xformers --cache_latents
--persistent_data_loader_workers --max_data_loader_n_workers=2 --min_snr_gamma=5 --scale_weight_norms=1
--noise_offset=0 --prior_loss_weight=1 --v2=false --no_metadata
""".replace(" --v2=false", "")
# As bmaltais' kohya_ss writes it.
GUI = """
adaptive_noise_scale = 0
bucket_no_upscale = true
bucket_reso_steps = 64
cache_latents = true
caption_dropout_every_n_epochs = 0
caption_extension = ".txt"
clip_skip = 1
dynamo_backend = "no"
enable_bucket = true
epoch = 10
gradient_accumulation_steps = 1
huber_c = 0.1
huber_scale = 1
huber_schedule = "snr"
learning_rate = 0.0001
loss_type = "l2"
lr_scheduler = "cosine"
lr_scheduler_args = []
lr_scheduler_num_cycles = 1
lr_scheduler_power = 1
lr_warmup_steps = 100
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_grad_norm = 1
max_timestep = 1000
max_token_length = 75
max_train_steps = 1600
min_bucket_reso = 256
mixed_precision = "fp16"
multires_noise_discount = 0.3
multires_noise_iterations = 0
network_alpha = 1
network_args = []
network_dim = 8
network_module = "networks.lora"
noise_offset_type = "Original"
optimizer_args = []
optimizer_type = "AdamW8bit"
output_dir = "/home/me/out"
output_name = "last"
pretrained_model_name_or_path = "runwayml/stable-diffusion-v1-5"
prior_loss_weight = 1
resolution = "512,512"
sample_prompts = "/home/me/prompt.txt"
sample_sampler = "euler_a"
save_every_n_epochs = 1
save_model_as = "safetensors"
save_precision = "fp16"
text_encoder_lr = []
train_batch_size = 1
train_data_dir = "/home/me/img"
xformers = true
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(lora_train, list(words))


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    table = tomllib.loads(result.stdout)
    return {key: value for part in table.values() for key, value in part.items()}


def test_the_line_of_a_script_runs_unchanged() -> None:
    found = printed(run("--print-config", *shlex.split(SCRIPT)))
    assert found["optimizer_args"] == ["weight_decay=0.01", "betas=0.9,0.999"]
    assert found["network_args"] == ["conv_dim=32", "conv_alpha=16"]
    assert (found["resolution"], found["text_encoder_lr"], found["keep_tokens"]) == ([768, 768], [5e-5], 1)
    assert (found["train_data_dir"], found["no_metadata"]) == ("D:/training set", True)


def test_the_file_of_a_gui_runs_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_text(GUI)
    found = printed(run("--print-config", "--config_file", str(path), "--network_dim", "16"))
    assert (found["network_dim"], found["network_alpha"], found["lr_warmup_steps"]) == (16, 1.0, "100")
    for key, value in tomllib.loads(GUI).items():
        if key not in ("network_dim", "lr_warmup_steps", "resolution", "epoch", "noise_offset_type"):
            assert found.get(key, value) == value, key


def test_the_suffix_of_a_file_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "gui.toml").write_text(GUI)
    named = run("--print-config", "--config_file", str(tmp_path / "gui"))
    assert named.stdout == run("--print-config", "--config_file", str(tmp_path / "gui.toml")).stdout
    found = run("--print-config", "--config_file", str(tmp_path / "other"))
    assert (found.exit_code, "other: cannot be read" in found.stderr) == (2, True)


def test_each_value_has_its_source(tmp_path: Path) -> None:
    path = tmp_path / "gui.toml"
    path.write_text(GUI)
    lines = run("--print-config", "--config_file", str(path), "--network_dim", "16").stdout.splitlines()
    sources = {
        lines[n + 1].split(" =")[0].strip("# "): line for n, line in enumerate(lines) if line[:2] == "# "
    }
    assert sources["network_dim"].endswith("(from the command line)")
    number = 1 + GUI.splitlines().index("network_alpha = 1")
    assert sources["network_alpha"].endswith(f"(from {path}, line {number})")
    assert sources["seed"].endswith("(default)")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("network_dims = 4", "network_dims: unknown key, did you mean 'network_dim'?"),
        ("deepspeed = true", "deepspeed: it is not used here, each card has the whole base"),
        ("face_crop_aug_range = '2.0,4.0'", "face_crop_aug_range: use --random_crop"),
    ],
)
def test_the_key_that_does_not_is_named(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[network]\nnetwork_alpha = 1\n{line}\n")
    found = run("--config_file", str(path))
    (error,) = found.stderr.splitlines()
    assert (found.exit_code, f"{path}, line 3" in error, told in error) == (2, True, True), error


# -------------------------------------------------------------------------------- print and read back


def values_of(field: Field) -> st.SearchStrategy[Any]:
    """Anything that an option takes."""
    if field.facts.choices is not None:
        return st.sampled_from(field.facts.choices)
    kind = field.type.__args__[0] if field.is_list or field.is_pair else field.type
    low, high = field.facts.min, field.facts.max
    text = st.text(
        st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12
    )
    single: st.SearchStrategy[Any] = {
        bool: st.booleans(),
        int: st.integers(int(low or 0), int(high if high is not None else 10**9)),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
        str: text,
        # A drive's letter before what is no letter is taken for an escape, and refused.
        Path: text.filter(
            lambda word: not word.startswith("~") and (word[1:2] != ":" or word.isprintable())
        ).map(Path),
    }[kind]
    if field.is_pair:
        return st.tuples(single, single)
    return st.lists(single, min_size=1, max_size=3).map(tuple) if field.is_list else single


FIELDS = {field.name: field for part in PARTS for field in fields_of(part)}
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        name: values_of(field)
        for name, field in FIELDS.items()
        if name != "output_name" and not field.facts.secret  # a secret is not printed
    },
)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(60))
@given(GIVEN)
def test_what_is_printed_means_the_same_and_prints_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "printed.toml"
    try:
        first, origin = build_settings(PARTS, values)
    except ConfigError:  # values that do not go together
        return
    path.write_text(text := print_config(first, origin), encoding="utf-8")
    again, origin = build_settings(PARTS, {}, path)
    assert again == first
    assert without_sources(print_config(again, origin)) == without_sources(text)


@pytest.mark.parametrize("name", ["none", "NULL"])
def test_a_folder_that_is_called_nothing_is_printed_as_a_path(name: str, tmp_path: Path) -> None:
    first, origin = build_settings(PARTS, {"train_data_dir": f"./{name}"})
    (tmp_path / "printed.toml").write_text(text := print_config(first, origin))
    assert f'train_data_dir = "./{name}"' in text
    assert build_settings(PARTS, {}, tmp_path / "printed.toml")[0] == first


def without_sources(text: str) -> str:
    return re.sub(r"(?m)^(# .*) \([^()]*(\([^()]*\)[^()]*)*\)$", r"\1", text)


# ------------------------------------------------------------------------------------------- pasted lines

BASE = "--pretrained_model_name_or_path=demo"
LINES = [
    f"accelerate launch --num_cpu_threads_per_process 8 train_network.py {BASE}",
    f"accelerate launch --num_processes=1 --num_machines 1 --dynamo_backend no sdxl_train_network.py {BASE}",
    f"accelerate launch --config_file default.yaml --gpu_ids all sd-scripts/train_network.py {BASE}",
    f"python -m accelerate.commands.launch --num_cpu_threads_per_process=8 train_network.py {BASE}",
    f"'C:\\sd\\venv\\Scripts\\accelerate.exe' launch 'C:\\sd\\train_network.py' ^ {BASE} ^ --seed=42",
    f"accelerate launch train_network.py '`' {BASE} '`' --seed=42",
    f"accelerate launch train_network.py '\\' {BASE} '\\' --seed=42",
    f"/venv/bin/python3 train_network.py {BASE}",
]


@pytest.mark.parametrize("line", LINES)
def test_a_pasted_line_is_read_without_what_starts_it(line: str) -> None:
    found = run("--print-config", *shlex.split(line))
    assert printed(found) == printed(run("--print-config", BASE))
    assert "lora-train is the program itself, and needs no launcher" in found.stderr


def test_the_precision_of_the_launcher_counts() -> None:
    line = f"accelerate launch --mixed_precision bf16 train_network.py {BASE}"
    assert printed(run("--print-config", *line.split()))["mixed_precision"] == "bf16"
    assert printed(run("--print-config", *line.split(), "--mixed_precision=no"))["mixed_precision"] == "no"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"accelerate launch train_network.py {BASE} ^", "the lines after it are missing"),
        (f"accelerate launch train_db.py {BASE}", "train_db.py: trains something else"),
        (f"accelerate launch sdxl_train.py {BASE}", "sdxl_train.py: trains something else"),
        (f"accelerate launch flux_train_network.py {BASE}", "flux_train_network.py: trains something else"),
        (f"{BASE} --xformers true", "true: a switch takes no value; --NAME turns it on, --no_NAME off"),
        (f"CUDA_VISIBLE_DEVICES=1 accelerate launch train_network.py {BASE}", "write it before lora-train"),
        (f"accelerate launch --multi_gpu train_network.py {BASE}", "several cards: torchrun"),
    ],
)
def test_a_line_that_would_do_something_else_is_refused(line: str, said: str) -> None:
    found = run("--print-config", *line.split())
    assert (found.exit_code, said in found.stderr) == (2, True), found.stderr
