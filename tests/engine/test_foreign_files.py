"""Files that other programs saved, of 2023 to 2026: obeyed, noted or refused, and no key passed over in silence.

The files in tests/data/foreign_configs have the keys that those programs write, with values of their users' kinds.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.cli import lora_train
from support.accounting import is_off, keys_of, unsaid
from support.configurations import CONFIGS, NAMES
from support.quick import examples

FILES = Path(__file__).parents[1] / "data/foreign_configs"
KOHYA, KOHYA_OLD, KOHYA_JULY = (
    json.loads((FILES / f"kohya_ss_{age}.json").read_text()) for age in ("2025", "2023_february", "2023_july")
)


def run(*words: str) -> Result:
    return CliRunner().invoke(lora_train, list(words))


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return {key: value for part in tomllib.loads(result.stdout).values() for key, value in part.items()}


def read(tmp_path: Path, table: dict[str, Any]) -> tuple[Result, dict[str, Any]]:
    """A preset, as read."""
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(table))
    found = run("--config_file", str(path), "--print-config")
    return found, printed(found)


def table_of(path: Path) -> dict[str, Any]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------- every key


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_every_key_is_an_option_or_in_a_note(name: str) -> None:
    path = FILES / name
    found = run("--config_file", str(path), "--print-config")
    assert found.exit_code == 0, found.stderr
    assert unsaid(keys_of(table_of(path)), found.stdout, found.stderr) == []


@pytest.mark.table
@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_the_published_configurations_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, keys = [], []
    for form in ("config.toml", "config.json"):
        path = CONFIGS / f"{name}.{form}"
        if path.exists():
            words += ["--config_file", str(path)]
            keys += keys_of(table_of(path))
    if (path := CONFIGS / f"{name}.args.json").exists():
        line = json.loads(path.read_text())
        words += line
        keys += [word.removeprefix("--").partition("=")[0] for word in line if word.startswith("--")]
    found = run(*words, "--print-config")
    assert found.exit_code == 0, found.stderr
    known = {"config_file", "config-file"}
    assert unsaid([key for key in keys if key not in known], found.stdout, found.stderr) == []


@pytest.mark.slow
def test_a_printed_file_is_read_as_the_same_run(tmp_path: Path) -> None:
    for path in FILES.iterdir():
        first = run("--config_file", str(path), "--print-config")
        again = tmp_path / "again.toml"
        again.write_text(first.stdout)
        assert printed(run("--config_file", str(again), "--print-config")) == printed(first)


# ----------------------------------------------------------------------------------------------- kohya_ss


@pytest.mark.parametrize(
    ("kind", "module", "words"),
    [
        ("Standard", "networks.lora", ["rank_dropout=0.1"]),
        ("Kohya LoCon", "networks.lora", ["rank_dropout=0.1"]),
        ("Kohya DyLoRA", "networks.dylora", ["rank_dropout=0.1", "unit=4"]),
        ("Kohya LoHa", "networks.loha", ["rank_dropout=0.1", "use_tucker=True"]),
        ("Kohya LoKr", "networks.lokr", ["factor=-1", "rank_dropout=0.1", "use_tucker=True"]),
        ("LoRA-FA", "networks.lora_fa", ["rank_dropout=0.1"]),
        ("LyCORIS/iA3", "lycoris.kohya", ["algo=ia3", "preset=full", "train_on_input=False"]),
        (
            "LyCORIS/DyLoRA",
            "lycoris.kohya",
            [
                *("algo=dylora", "preset=full", "conv_alpha=0", "conv_dim=0", "rank_dropout=0.1"),
                *("block_size=4", "use_tucker=True"),
            ],
        ),
        (
            "LyCORIS/Diag-OFT",
            "lycoris.kohya",
            [
                *("algo=diag-oft", "preset=full", "constraint=0.5", "conv_alpha=0", "conv_dim=0"),
                *("rank_dropout=0.1", "rescaled=True", "use_tucker=True"),
            ],
        ),
        (
            "LyCORIS/LoKr",
            "lycoris.kohya",
            [
                *("algo=lokr", "preset=full", "conv_alpha=0", "conv_dim=0", "dora_wd=True", "factor=-1"),
                *("rank_dropout=0.1", "use_tucker=True"),
            ],
        ),
        ("LyCORIS/Native Fine-Tuning", "lycoris.kohya", ["algo=full", "preset=full", "rank_dropout=0.1"]),
    ],
)
def test_a_type_of_network_takes_what_the_gui_hands_on(
    kind: str, module: str, words: list[str], tmp_path: Path
) -> None:
    """conv_dim 0 says with LyCORIS that no convolution is trained, so it is handed on."""
    changed = {
        **{"LoRA_type": kind, "conv_dim": 0, "conv_alpha": 0, "unit": 4, "train_on_input": False},
        **{"dora_wd": True, "rank_dropout": 0.1, "use_tucker": True, "constrain": 0.5, "rescaled": True},
    }
    found, options = read(tmp_path, {**KOHYA, **changed})
    assert (options["network_module"], options["network_args"]) == (module, words)
    assert unsaid([key for key, value in changed.items() if value], found.stdout, found.stderr) == []


def test_the_old_name_of_a_locon_is_the_gui_s_lycoris(tmp_path: Path) -> None:
    _, options = read(tmp_path, {**KOHYA_OLD, "LoRA_type": "LoCon", "conv_dim": 8, "conv_alpha": 1})
    assert options["network_module"] == "lycoris.kohya"
    assert options["network_args"] == ["algo=locon", "preset=full", "conv_alpha=1", "conv_dim=8"]
    _, options = read(tmp_path, {**KOHYA_OLD, "locon": True, "conv_dim": 8})
    assert (options["network_module"], options["network_args"]) == ("networks.lora", ["conv_dim=8"])


def test_what_is_for_other_families_is_left_out(tmp_path: Path) -> None:
    """The GUI writes FLUX's and SD3's values into every preset; as options here they would change the timesteps."""
    found, options = read(tmp_path, KOHYA)
    names = ("timestep_sampling", "discrete_flow_shift", "weighting_scheme", "logit_std", "mode_scale")
    assert not set(names) & set(options)
    (note,) = [row for row in found.stderr.splitlines() if "of FLUX.1, SD3 and the like" in row]
    assert all(name in note for name in (*names, "guidance_scale", "t5xxl_max_token_length"))


@pytest.mark.table
@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"unet_lr": "", "text_encoder_lr": "5e-5"}, {"unet_lr": 0.0, "text_encoder_lr": [5e-5]}),
        ({"unet_lr": 0.0, "text_encoder_lr": 0.0}, {"unet_lr": None, "text_encoder_lr": []}),
        ({"unet_lr": 1e-4, "text_encoder_lr": 0}, {"unet_lr": 1e-4, "text_encoder_lr": [0.0]}),
        ({"stop_text_encoder_training": 30}, {"stop_text_encoder_training": "30%"}),
        ({"stop_text_encoder_training_pct": 30}, {"stop_text_encoder_training": "30%"}),
        ({"max_train_epochs": "6", "max_train_steps": "100"}, {"max_train_epochs": 6}),
        ({"max_train_steps": "100", "epoch": 9}, {"max_train_steps": 100, "max_train_epochs": None}),
        ({"max_train_steps": "", "epoch": "9"}, {"max_train_epochs": 9}),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": "", "epoch": "12"},
            {"lr_scheduler_num_cycles": 12.0},
        ),
        ({"lr_warmup": "7"}, {"lr_warmup_steps": "7%"}),
        ({"lr_warmup": 7, "lr_warmup_steps": 50}, {"lr_warmup_steps": "50"}),
        ({"use_8bit_adam": True}, {"optimizer_type": "AdamW8bit"}),
        ({"use_8bit_adam": True, "optimizer": "Lion"}, {"optimizer_type": "Lion"}),
        ({"optimizer_args": 'a="1,2" b=3'}, {"optimizer_args": ["a=1,2", "b=3"]}),
        ({"optimizer_args": ["a=1"]}, {"optimizer_args": ["a=1"]}),
        ({"save_model_as": "same as source model"}, {"save_model_as": "safetensors"}),
        ({"sdxl": False, "sdxl_no_half_vae": True}, {"no_half_vae": False}),
        ({"sdxl": True, "sdxl_no_half_vae": True}, {"no_half_vae": True}),
        ({"sdxl": True, "sdxl_cache_text_encoder_outputs": True}, {"cache_text_encoder_outputs": True}),
        ({"noise_offset_type": "Multires", "noise_offset": 0.1}, {"noise_offset": None}),
        ({"noise_offset_type": "Original", "noise_offset": "0.05"}, {"noise_offset": 0.05}),
        ({"noise_offset": 0.05, "adaptive_noise_scale": 0.005}, {"adaptive_noise_scale": 0.005}),
        ({"loraplus_lr_ratio": 4}, {"network_args": ["loraplus_lr_ratio=4"]}),
        ({"block_dims": "2, 2, 4"}, {"network_args": ["block_dims=2,2,4"]}),
        ({"conv_dims": "1,2", "LoRA_type": "Kohya LoCon"}, {"network_args": ["conv_block_dims=1,2"]}),
        ({"gpu_ids": "1"}, {"device": "cuda:1"}),
        ({"clip_skip": 0}, {"clip_skip": 1}),
        ({"log_with": "None", "vae": None, "xformers": "None"}, {"log_with": "tensorboard"}),
        ({"use_wandb": True}, {"log_with": "wandb"}),
        ({"save_every_n_epochs": 0}, {"save_every_n_epochs": 0}),
        ({"enable_bucket": False}, {"enable_bucket": False}),
        ({"min_snr_gamma": 0}, {"min_snr_gamma": 0.0}),
        ({"max_timestep": 0}, {"max_timestep": 1000}),
        ({"resolution": ""}, {"resolution": [512, 512]}),
    ],
)
def test_values_of_presets_mean_what_the_gui_makes_of_them(
    changed: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    found, options = read(tmp_path, {**KOHYA_OLD, "LoRA_type": "Standard", "use_8bit_adam": False, **changed})
    assert {name: options.get(name) for name in wanted} == wanted
    keys = [key for key, value in changed.items() if not is_off(key, value)]
    assert unsaid(keys, found.stdout, found.stderr) == []


def test_words_behind_a_preset_count_instead_of_it(tmp_path: Path) -> None:
    words = (
        '--learning_rate 2e-4 --network_args "conv_dim=4" "conv_alpha=1" --max_train_epoch 3 --min_snr_gamma=5 '
        '--training_comment "it\'s mine" --seed 1 --seed=2 --sdpa'
    )
    found, options = read(
        tmp_path, {**KOHYA_OLD, "block_lr_zero_threshold": "", "additional_parameters": words}
    )
    wanted = {
        **{"learning_rate": 2e-4, "network_args": ["conv_dim=4", "conv_alpha=1"], "max_train_epochs": 3},
        **{"min_snr_gamma": 5.0, "training_comment": "it's mine", "seed": 2},
    }
    assert {name: options[name] for name in wanted} == wanted
    assert "count instead of the preset's" in found.stderr
    assert "learning_rate (0.00003333)" in found.stderr
    _, options = read(tmp_path, {**KOHYA_OLD, "additional_parameters": "--max_train_steps 50"})
    assert (options["max_train_steps"], options.get("max_train_epochs")) == (50, None)


# ------------------------------------------------------------------------------------------ other programs


def test_arguments_that_easy_training_scripts_saved_in_2023() -> None:
    options = printed(run("--config_file", str(FILES / "easy_scripts_2023.json"), "--print-config"))
    wanted = {
        **{"train_data_dir": "DATA/img", "network_dim": 32, "network_alpha": 16.0, "resolution": [512, 512]},
        **{"lr_warmup_steps": "0.05", "max_train_epochs": 10, "seed": 23, "shuffle_caption": True},
        **{"optimizer_args": ["betas=0.9,0.99", "weight_decay=0.1"], "output_name": "mira"},
        **{"network_module": "networks.lora", "max_token_length": 150, "min_bucket_reso": 320},
    }
    assert {name: options[name] for name in wanted} == wanted


def test_a_file_of_easy_training_scripts_of_2024() -> None:
    options = printed(run("--config_file", str(FILES / "easy_scripts_2024.toml"), "--print-config"))
    wanted = {
        **{"network_module": "networks.lora_fa", "lr_warmup_steps": "0.1", "train_batch_size": 4},
        **{"v_parameterization": True, "lr_scheduler_num_cycles": 2.0, "max_token_length": 225},
    }
    assert {name: options[name] for name in wanted} == wanted
    assert options.get("log_prefix", "") == ""


def test_the_parameters_of_lora_scripts() -> None:
    options = printed(run("--config_file", str(FILES / "lora_scripts.toml"), "--print-config"))
    wanted = {
        "network_args": [
            *("algo=lokr", "conv_dim=4", "conv_alpha=1", "dropout=0", "factor=8", "train_norm=True"),
            "rank_dropout=0.1",
        ],
        "optimizer_args": [
            *("decouple=True", "weight_decay=0.01", "use_bias_correction=True", "d_coef=2.0"),
            "betas=0.9,0.99",
        ],
        "max_token_length": 225,
        "sample_every_n_epochs": 2,
        "resolution": [512, 768],
    }
    assert {name: options[name] for name in wanted} == wanted


@pytest.mark.table
@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"enable_preview": False, "sample_prompts": "a"}, {"sample_prompts": None}),
        (
            {"enable_preview": True, "prompt_file": "p.txt", "positive_prompts": "1girl"},
            {"sample_prompts": "p.txt"},
        ),
        (
            {
                **{"enable_preview": True, "positive_prompts": "1girl", "negative_prompts": "bad"},
                **{"sample_width": 512, "sample_height": 768, "sample_cfg": 7, "sample_seed": 2333},
                "sample_steps": 24,
            },
            {"sample_prompts": "1girl --n bad --w 512 --h 768 --l 7 --s 24 --d 2333"},
        ),
        (
            {
                "enable_block_weights": True,
                "down_lr_weight": "1,0",
                "mid_lr_weight": "1",
                "up_lr_weight": "1",
            },
            {"network_args": ["down_lr_weight=1,0", "mid_lr_weight=1", "up_lr_weight=1"]},
        ),
        ({"enable_block_weights": False, "down_lr_weight": "1,0"}, {"network_args": None}),
        (
            {"enable_base_weight": True, "base_weights": "a\nb", "base_weights_multiplier": "0.5\n1"},
            {"base_weights": ["a", "b"], "base_weights_multiplier": [0.5, 1.0]},
        ),
        ({"enable_base_weight": False, "base_weights": "a"}, {"base_weights": None}),
        ({"optimizer_type": "DAdaptAdam", "learning_rate": "1e-4"}, {"learning_rate": 1.0, "unet_lr": 1.0}),
        ({"network_module": "networks.dylora", "dylora_unit": 4}, {"network_args": ["unit=4"]}),
        ({"ui_custom_params": "noise_offset = 0.03\nnetwork_dim = 8"}, {"noise_offset": 0.03}),
        ({"network_args_custom": "rank_dropout=0.1\n"}, {"network_args": ["rank_dropout=0.1"]}),
    ],
)
def test_fields_of_lora_scripts_mean_what_its_gui_makes_of_them(
    changed: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    found, options = read(tmp_path, {"model_train_type": "sd-lora", **changed})
    assert {name: options.get(name) or None for name in wanted} == wanted
    keys = [key for key, value in changed.items() if not is_off(key, value)]
    assert unsaid(keys, found.stdout, found.stderr) == []


def test_parameters_of_civitai() -> None:
    options = printed(run("--config_file", str(FILES / "civitai.json"), "--print-config"))
    wanted = {
        **{"unet_lr": 5e-4, "text_encoder_lr": [5e-5], "network_dim": 32, "dataset_repeats": 5},
        **{"resolution": [1024, 1024], "lr_scheduler": "cosine_with_restarts", "max_train_epochs": 10},
    }
    assert {name: options[name] for name in wanted} == wanted


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", json.dumps({**KOHYA, "LoRA_type": "Flux1"}), "LoRA_type: 'Flux1' asks for a family"),
        ("a.json", json.dumps({**KOHYA, "sd3_checkbox": True}), "sd3_checkbox: 'True' asks for a family"),
        ("a.json", json.dumps({**KOHYA, "new_thing": 1}), "new_thing: unknown key"),
        ("a.json", '{"max_resolution": "1,1", "num_vectors_per_token": 4}', "tab for textual inversion"),
        ("a.json", '{"lr_warmup": 1, "network_dim": 4, "prompts_file": "p"}', "which --slider trains here"),
        ("a.json", json.dumps({**KOHYA_OLD, "gpu_ids": "0,1"}), "gpu_ids: is accelerate's; several cards"),
        ("a.json", '{"training_method": "LORA", "model_type": "SDXL"}', "a file of OneTrainer"),
        ("a.json", '{"job": "extension", "config": {}}', "a file of ai-toolkit"),
        ("a.yaml", "job: extension\nconfig:\n  name: x\n", "is YAML, as ai-toolkit and SimpleTuner write"),
        ("a.json", '{"--model_type": "lora", "--lora_rank": 16}', "a file of SimpleTuner"),
        ("a.json", '{"model_family": "sdxl", "data_backend_config": "b"}', "a file of SimpleTuner"),
        ("a.env", "export MODEL_TYPE='lora'\nexport A=1\n", "as SimpleTuner's config.env"),
        ("a.toml", "dataset = 'd'\n[model]\n[adapter]\n", "a file of diffusion-pipe"),
        ("a.json", '{"train_base_model": "x", "train_net_dim": 8}', "a file of sd-webui-train-tools"),
        ("a.toml", "[metadata]\nname = 'x'\n[data]\nmodel_type = 'chroma'\n", "model_type: is of FLUX, SD3"),
        ("a.toml", "dit = 'x'\n", "a file of musubi-tuner"),
        ("a.toml", "[general]\n[[datasets]]\n", "is a dataset file, no options of lora-train; give it as"),
        ("a.toml", "[prompt]\nwidth = 64\n", "is a file of prompts"),
        ("a.bat", "accelerate launch train_network.py ^\n", "is a script, no file of options"),
        ("a.toml", "model_train_type = 'flux-lora'\n", "'flux-lora' is not trained here"),
        ("a.toml", "[anima_args.args]\nqwen3 = 'x'\n", "anima_args: of a family that is not trained here"),
        ("a.json", '{"engine": "ai-toolkit", "unetLR": 1e-4}', "engine: 'ai-toolkit' is not read"),
        ("a.json", '{"loraType": "lycoris", "unetLR": 1e-4}', "loraType: 'lycoris' is not read"),
        ("a.toml", "network_reg_lrs = 'a=1'\n", "network_reg_lrs: is of FLUX, SD3 and the like"),
        ("a.toml", "learning_rate_te1 = 1e-5\n", "is of training whole models; use --text_encoder_lr"),
        ("a.toml", "max_train_steps = 0\n", "max_train_steps: 0 is no length"),
        ("a.toml", "ui_custom_params = 'x ='\n", "ui_custom_params: not TOML"),
    ],
)
def test_what_is_not_ours_is_refused_by_name(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = run("--config_file", str(path), "--print-config")
    assert found.exit_code == 2, found.output
    assert isinstance(found.exception, SystemExit)
    assert said in found.stderr.splitlines()[-1]
    assert str(path) in found.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "text",
    [
        "[prompt]\nseed = 7\n[job]\nnetwork_dim = 8\n[config]\nlearning_rate = 1e-4\n",
        "[metadata]\nmetadata_title = 'x'\nseed = 7\n[data]\nnetwork_dim = 8\n",
        "[model]\nseed = 7\n[adapter]\nnetwork_dim = 8\n[dataset]\ntrain_batch_size = 2\n",
        "[args]\nseed = 7\n[dit]\nnetwork_dim = 8\n",
    ],
)
def test_sections_of_options_may_be_called_anything(text: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    found = run("--config_file", str(path), "--print-config")
    assert (printed(found)["seed"], printed(found)["network_dim"], found.stderr) == (7, 8, "")


def test_an_unbalanced_quotation_mark_is_no_crash(tmp_path: Path) -> None:
    _, options = read(tmp_path, {**KOHYA_OLD, "optimizer_args": "decouple=True 'x"})
    assert options["optimizer_args"] == ["decouple=True", "'x"]


# Keys by which files are known or that are read together with others, and tables of LoRA_Easy_Training_Scripts.
KEYS = [
    *("LoRA_type", "network_dim", "optimizer_args", "additional_parameters", "epoch", "lr_warmup", "unet_lr"),
    *("noise_offset", "block_dims", "xformers", "save_model_as", "gpu_ids", "conv_dim", "flux1_checkbox"),
    *("model_train_type", "network_module", "enable_preview", "positive_prompts", "ui_custom_params"),
    *("base_weights", "enable_base_weight", "prodigy_d0", "img_folder", "max_steps", "unetLR", "loraType"),
    *("subsets", "general_args", "train_mode", "prompt", "job", "config", "datasets", "metadata", "data"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.sampled_from(["", "x", "None", "1,2", "--seed 1", "a=1"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["args", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(300))
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=6))
def test_whatever_stands_there_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(table))
    found = run("--config_file", str(path), "--print-config")
    assert found.exit_code in (0, 2)
    assert found.exception is None or isinstance(found.exception, SystemExit)
    if found.exit_code == 2:
        assert found.stderr.splitlines()[-1].startswith("lora-train: error: ")


# --------------------------------------------------------------------------------- values of other programs


@pytest.mark.table
@pytest.mark.parametrize(
    ("line", "name", "value", "note"),
    [
        ("flip_aug = 1", "flip_aug", True, ""),
        ("flip_aug = 'Yes'", "flip_aug", True, ""),
        ("unet_lr = 'None'", "unet_lr", None, ""),
        ("log_with = 'none'", "log_with", "tensorboard", ""),
        ("weighting_scheme = 'none'", "weighting_scheme", "none", ""),
        ("vae = 'None'", "vae", None, ""),
        ("caption_prefix = 'None'", "caption_prefix", "", ""),
        ("output_name = 'None'", "output_name", "None", ""),
        ("max_train_epochs = '10.0'", "max_train_epochs", 10, ""),
        ("resolution = '(1024, 768)'", "resolution", [1024, 768], ""),
        ("loss_type = 'Huber'", "loss_type", "huber", ""),
        ("loss_type = 'mse'", "loss_type", "l2", "loss_type: mse is taken as l2"),
        ("seed = -1", "seed", 42, "seed: -1 is taken as 42"),
        ("sample_every_n_steps = -1", "sample_every_n_steps", None, ""),
        ("gradient_accumulation_steps = 0", "gradient_accumulation_steps", 1, "is taken as 1"),
        (
            "persistent_data_loader_workers = 1",
            "seed",
            42,
            "persistent_data_loader_workers is not needed: latents are always cached",
        ),
        ("max_data_loader_n_workers = '0'", "seed", 42, "max_data_loader_n_workers is not needed"),
        ("cache_latents = 'False'", "seed", 42, ""),
        ("initial_epoch = 1", "seed", 42, ""),
        ("zero_stage = 3", "seed", 42, "zero_stage is not needed: it is DeepSpeed's"),
        ("save_n_epoch_ratio = 5", "save_n_epoch_ratio", 5, ""),
        ("vae = ''", "vae", None, ""),
        ("resume = false", "resume", None, ""),
        ("max_token_length = 255", "max_token_length", 225, "max_token_length: 255 is taken as 225"),
        ("mixed_precision = 'fp32'", "mixed_precision", "no", "mixed_precision: fp32 is taken as no"),
        ("save_precision = 'fp32'", "save_precision", "float", "save_precision: fp32 is taken as float"),
        ("clip_skip = 0", "clip_skip", 1, "clip_skip: 0 is taken as 1"),
        ("vae_batch_size = 0", "vae_batch_size", 1, "vae_batch_size: 0 is taken as 1"),
        ("save_every_n_epochs = 0", "save_every_n_epochs", 0, ""),
        ("sample_every_n_steps = 0", "sample_every_n_steps", None, ""),
        ("max_train_epochs = 0", "max_train_epochs", None, ""),
        ("scale_weight_norms = 0.0", "scale_weight_norms", None, ""),
        ("save_n_epoch_ratio = 0", "save_n_epoch_ratio", None, ""),
        ("torch_compile = true", "seed", 42, "torch_compile is not needed: it changes speed alone"),
        ("ddp_gradient_as_bucket_view = true", "seed", 42, "ddp_gradient_as_bucket_view is not needed"),
        ("gpu_ids = ['1']", "device", "cuda:1", "gpu_ids: the card is taken as device"),
        ("attn_mode = 'flash'", "seed", 42, "attn_mode is not needed"),
    ],
)
def test_values_that_others_write_are_taken(
    line: str, name: str, value: Any, note: str, tmp_path: Path
) -> None:
    path = tmp_path / "options.toml"
    path.write_text(f"{line}\n")
    found = run("--config_file", str(path), "--print-config")
    assert printed(found).get(name) == value
    assert note in found.stderr
    assert bool(note) == bool(found.stderr)
    again = tmp_path / "again.toml"
    again.write_text(found.stdout)
    assert printed(run("--config_file", str(again), "--print-config")) == printed(found)
