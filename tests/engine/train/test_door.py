"""What users ran and what was wrong with it: each line of a table of public reports, at the door of ``lora-train``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file

from lorapipe_engine.cli import lora_train
from lorapipe_engine.datasets.described import dataset_notes, folder_lines
from lorapipe_engine.datasets.record import dataset_record
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.captions import fixed_caption
from lorapipe_engine.settings import DataSettings
from lorapipe_engine.train.sample.prompts import Prompt, read_prompts
from lorapipe_engine.train.session import as_captions


def draw(folder: Path, count: int = 2, caption: str = "mira, red", size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.full((size[1], size[0], 3), 40 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
        (folder / f"{index:03}.txt").write_text(caption)
    return folder


def data(root: Path, **options: object) -> DataSettings:
    return DataSettings(train_data_dir=root, resolution=(64, 64), min_bucket_reso=64, **options)  # type: ignore[arg-type]


def train(root: Path, *words: str) -> Result:
    small = ["--base", "demo", "--resolution", "64", "--min_bucket_reso", "64", "--mixed_precision", "no"]
    small += ["--network_dim", "2", "--lr_warmup_steps", "0", "--max_train_steps", "1", "--device", "cpu"]
    out = ["--output_dir", str(root / "out"), "--train_data_dir", str(root / "data")]
    return CliRunner().invoke(lora_train, [*small, *out, *words])


# ------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.json", '[{"prompt":"a","width":"64"}]', 'prompt 1: width: expected a whole number, got "64"'),
        ("p.json", '[{"prompt":"a","scale":"7"}]', 'prompt 1: scale: expected a number, got "7"'),
        (
            "p.json",
            '[{"prompt":"a"},{"sample_steps":2.5}]',
            "prompt 2: sample_steps: expected a whole number, got 2.5",
        ),
        ("p.json", '[{"prompt":"a","seed":18446744073709551616}]', "more than 64 bits"),
        ("p.json", '[{"prompt":"a","seed":-1}]', "the seed must be from 0"),
        ("p.json", '[{"prompt":"a","scale":NaN}]', "the scale nan is not a usable number"),
        ("p.toml", 'prompt = "a"', 'prompt: must be a table, [prompt], not "a"'),
        ("p.toml", "[prompt]\nprompt = 3", "prompt 1: prompt: expected a text, got 3"),
        ("p.txt", "a --s 2.5", "p.txt:1: --s takes a number, not '2.5'"),
        ("p.txt", "a --l nan", "p.txt:1: the scale nan is not a usable number"),
    ],
)
def test_a_value_of_a_prompt_that_is_none_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises((ConfigError, InputError)) as caught:
        read_prompts(path, Prompt(text=""))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_prompts_are_refused_before_the_base_is_loaded(tmp_path: Path) -> None:
    draw(tmp_path / "data/1_mira")
    path = tmp_path / "p.json"
    path.write_text('[{"prompt":"a","scale":"7"}]')
    found = train(tmp_path, "--sample_prompts", str(path), "--sample_every_n_epochs", "1")
    assert found.exit_code == 2
    assert "base:" not in found.stderr
    path.write_text('[{"prompt":"a","sample_sampler":"fastest"}]')
    found = train(tmp_path, "--sample_prompts", str(path), "--sample_every_n_epochs", "1")
    assert (found.exit_code, "base:" in found.stderr, "fastest" in found.stderr) == (2, False, True)


def test_a_text_that_is_no_file_is_the_prompt(tmp_path: Path) -> None:
    assert [row.text for row in read_prompts("a portrait, smile", Prompt(text=""))] == ["a portrait, smile"]
    assert [row.width for row in read_prompts("a --w 64\n# no\nb --w 128", Prompt(text=""))] == [64, 128]
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(str(tmp_path / "my prompts.txt"), Prompt(text=""))


# ------------------------------------------------------------------------------------------------ datasets


def test_a_mark_ends_the_tags_beside_it_everywhere(tmp_path: Path) -> None:
    draw(tmp_path / "1_mira", caption="1boy##standing, red")
    options = data(tmp_path, keep_tokens_separator="##", validation_split=0.5)
    dataset = scan(options)
    for picture in (*dataset.pictures, *dataset.validation):
        assert fixed_caption(picture.caption, dataset.subset_of(picture).captions) == "1boy, standing, red"
    assert dataset_record(options, dataset)["tag_frequency"] == {
        "1_mira": {"1boy": 1, "standing": 1, "red": 1}
    }


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    draw(root, 1)
    draw(root / "0_old", 1)
    draw(root / "1_mira/more", 3)
    draw(root / "1_mira")
    draw(root / "haruka", 3)
    options = data(root)
    assert {note for note in dataset_notes(options, scan(options)) if "not trained" in note} == {
        f"{root}: not trained: 1 picture loose beside the concepts' folders",
        f"{root}: not trained: 1 picture in '0_old', whose name asks for 0 repeats",
        f"{root}: not trained: 3 pictures in folders inside a concept's folder",
        f"{root}: not trained: 3 pictures in 'haruka', which has no number of repeats in front (rename it to "
        "'10_haruka')",
    }
    plain = data(root / "1_mira")
    assert not [note for note in dataset_notes(plain, scan(plain)) if "haruka" in note]


def test_a_folder_with_a_space_for_its_mark_is_told_its_name(tmp_path: Path) -> None:
    draw(tmp_path / "10 mira")
    with pytest.raises(InputError, match="rename '10 mira' to '10_mira'"):
        scan(data(tmp_path))


def test_pictures_cropped_by_more_than_a_third_are_counted(tmp_path: Path) -> None:
    draw(tmp_path / "1_mira", 1, size=(400, 64))
    options = data(tmp_path, enable_bucket=False)
    assert (
        "1 picture is cropped by more than a third, 000.png by 84%"
        in dataset_notes(options, scan(options))[-1]
    )
    draw(tmp_path / "1_mira", 1, size=(90, 64))
    assert not [note for note in dataset_notes(options, scan(options)) if "cropped" in note]


def test_pictures_masked_as_a_whole_are_named(tmp_path: Path) -> None:
    folder = draw(tmp_path / "1_mira", 3)
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(folder / "000.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 1)).save(folder / "001.png")
    options = data(tmp_path, alpha_mask=True)
    said = "1 picture is masked as a whole, so nothing of them is trained: 000.png"
    assert dataset_notes(options, scan(options))[-1] == said
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(3):
        Image.new("L", (64, 64), 255 * (index != 2)).save(masks / f"{index:03}.png")
    options = data(tmp_path, masked_loss=True, conditioning_data_dir=masks)
    assert dataset_notes(options, scan(options))[-1].endswith(": 002.png")


def test_steps_finer_than_the_base_has_are_taken_as_its_finest(tmp_path: Path) -> None:
    draw(tmp_path / "1_mira", size=(70, 70))
    options = data(tmp_path, bucket_reso_steps=1, bucket_no_upscale=True)
    assert "bucket_reso_steps 1 is taken as 8" in "\n".join(dataset_notes(options, scan(options)))
    dataset = scan(options, finest=32)
    assert dataset.specs[0].buckets.step == 32
    assert "bucket_reso_steps 1 is taken as 32" in "\n".join(dataset_notes(options, dataset))
    usual = data(tmp_path, bucket_reso_steps=64)
    assert scan(usual, finest=32).specs[0].buckets.step == 64


def test_prompts_are_read_by_the_captions_rule(tmp_path: Path) -> None:
    """A caption that is copied as a prompt is drawn as it is trained, and every time alike."""
    draw(tmp_path / "1_mira")
    options = data(
        tmp_path,
        keep_tokens_separator="##",
        secondary_separator=";;;",
        enable_wildcard=True,
        caption_prefix="best",
        shuffle_caption=True,
    )
    dataset = scan(options)
    given = [
        Prompt(text="1boy##standing, a;;;b, {red|blue} hair", negative="x##y"),
        Prompt(text="(a, b:1.2)"),
    ]
    shown, note = as_captions(given, dataset)
    assert shown[0].text in ("1boy, standing, a,b, red hair", "1boy, standing, a,b, blue hair")
    assert (shown[0].negative, shown[1]) == ("x, y", given[1])
    assert note is not None
    assert "1 of 2 change" in note
    assert as_captions(given, dataset) == (shown, note)
    assert as_captions(given[1:], dataset) == (given[1:], None)
    assert as_captions(given, scan(data(tmp_path)))[1] is None


def test_a_dry_run_tells_what_is_left_out(tmp_path: Path) -> None:
    draw(tmp_path / "data/1_mira", 2)
    draw(tmp_path / "data/0_old", 1)
    done = train(tmp_path, "--dry-run")
    assert done.exit_code == 0
    assert f"note: last: {tmp_path / 'data'}: not trained: " in done.stderr
    assert "0_old" in done.stderr


def test_a_dry_run_tells_what_does_nothing_and_what_is_not_there(tmp_path: Path) -> None:
    draw(tmp_path / "data/1_mira", 2)
    done = train(tmp_path, "--dry-run", "--max_train_epochs", "3", "--output_name", "x.safetensors")
    assert "6 steps in 3 epochs" in done.stdout
    assert "max_train_steps 1 is not used: max_train_epochs 3 says how long" in done.stderr
    assert "output_name x.safetensors: the results' suffix is put behind it" in done.stderr
    state = tmp_path / "other.state"
    done = train(tmp_path, "--dry-run", "--resume", str(state))
    assert (done.exit_code, done.stderr) == (2, f"lora-train: error: resume: {state}: no such file\n")
    state.touch()
    assert f"goes on from {state}" in train(tmp_path, "--dry-run", "--resume", str(state)).stdout
    done = train(tmp_path, "--dry-run", "--seed", str(1 << 63))
    assert (done.exit_code, "seed: 9223372036854775808 is above" in done.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------- metadata files


def test_captions_may_stand_in_one_file(tmp_path: Path) -> None:
    folder = draw(tmp_path / "flat", 3)
    file = tmp_path / "meta.json"
    file.write_text(
        json.dumps({"000": {"caption": "mira", "tags": "red, blue"}, "001.png": {"tags": "x"}, "9": {}})
    )
    options = data(folder, in_json=file, dataset_repeats=5)
    dataset = scan(options)
    assert [(row.caption, row.repeats) for row in dataset.pictures] == [("mira, red, blue", 5), ("x", 5)]
    notes = dataset_notes(options, dataset)
    assert f"{file}: left out: 1 picture without an entry, 1 picture of the file that are not there" in notes
    lines = tmp_path / "meta.jsonl"
    lines.write_text(json.dumps({"image_path": str(folder / "002.png"), "caption": "y"}) + "\n")
    assert [row.caption for row in scan(data(folder, in_json=lines)).pictures] == ["y"]
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\nmetadata_file = 'meta.json'\n"
    )
    found = scan(DataSettings(dataset_config=config, resolution=(64, 64), dataset_repeats=7))
    assert [row.repeats for row in found.pictures] == [7, 7]


def test_lines_and_accents_of_a_metadata_file(tmp_path: Path) -> None:
    """A caption of several lines is cut as one in a file of its own is, which a note says; names as macOS has them are
    found; a separator of lines that is none of a file ends no line."""
    folder = draw(tmp_path / "flat", 2)
    (folder / "001.png").rename(folder / "caf\u00e9.png")
    rows = {"000.png": {"caption": "\n first \r\nsecond", "tags": "a, b"}, "cafe\u0301": {"caption": "one"}}
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    options = data(folder, in_json=file)
    dataset = scan(options)
    assert [row.caption for row in dataset.pictures] == ["first", "one"]
    assert any("1 caption has several lines" in note for note in dataset_notes(options, dataset))
    every = scan(data(folder, in_json=file, enable_wildcard=True))
    assert every.pictures[0].caption == "first\nsecond, a, b"
    lines = tmp_path / "meta.jsonl"
    one = {"image_path": "000.png", "caption": "left\u2028right"}
    lines.write_text(json.dumps(one, ensure_ascii=False) + "\n", encoding="utf-8")
    assert scan(data(folder, in_json=lines)).pictures[0].caption == "left\u2028right"


def test_options_that_a_dataset_file_overrides_are_told(tmp_path: Path) -> None:
    """Where it has another value for all that is trained; where one subset takes the option, it is used."""
    a, b = draw(tmp_path / "a"), draw(tmp_path / "b")
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"[[datasets]]\nresolution = 64\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = '{a}'\nnum_repeats = 2\n"
        f"flip_aug = false\n[[datasets.subsets]]\nimage_dir = '{b}'\nnum_repeats = 3\n"
    )
    given = ["--train_batch_size", "4", "--dataset_repeats", "5", "--flip_aug", "--keep_tokens", "1"]
    done = CliRunner().invoke(
        lora_train,
        ["--base", "demo", "--dataset_config", str(config), "--dry-run", *given, "--resolution", "128,64"],
    )
    assert done.exit_code == 0, done.output
    told = re.findall(r"dataset.toml: (\w+ .*) is not used: (\w+)", done.stderr)
    assert told == [
        ("train_batch_size 4", "batch_size"),
        ("resolution [128, 64]", "resolution"),
        ("dataset_repeats 5", "num_repeats"),
    ]
    # What nobody gave is not told, as the base's own size.
    config.write_text(config.read_text().replace("resolution = 64", "resolution = 96"))
    plain = ["--base", "demo", "--dataset_config", str(config), "--dry-run"]
    done = CliRunner().invoke(lora_train, plain)
    assert (done.exit_code, "is not used" in done.stderr) == (0, False), done.output
    done = CliRunner().invoke(lora_train, [*plain, "--resolution", "64"])
    assert "note: " in done.stderr
    assert f"{config}: resolution [64, 64] is not used: resolution stands in the file" in done.stderr


def test_a_metadata_file_beside_a_dataset_file_is_told(tmp_path: Path) -> None:
    folder = draw(tmp_path / "flat", 1)
    config = tmp_path / "dataset.toml"
    config.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\n")
    options = DataSettings(dataset_config=config, in_json=tmp_path / "meta.json", resolution=(64, 64))
    assert any("in_json is not used" in note for note in dataset_notes(options, scan(options)))
    config.write_text(f"{config.read_text()}metadata_file = 'none.json'\n")
    with pytest.raises(InputError, match=r"^metadata_file: .*none\.json: cannot be read"):
        scan(options)


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_what_links_bring_from_elsewhere_is_not_published(tmp_path: Path) -> None:
    """A set of strangers whose metadata file is a link, and whose names of pictures lead out."""
    folder, home = draw(tmp_path / "set/flat", 1), draw(tmp_path / "home", 2)
    (home / "mine.json").write_text(json.dumps({"000": {"caption": "my secret"}}))
    (folder / "meta.json").symlink_to(home / "mine.json")
    options = data(folder, in_json=folder / "meta.json")
    dataset = scan(options)
    assert [row.caption for row in dataset.pictures] == ["my secret"]
    assert "secret" not in json.dumps(dataset_record(options, dataset))
    assert "1 captions are links out of the dataset" in "\n".join(folder_lines(dataset))
    (folder / "meta.json").unlink()
    (folder / "deeper").symlink_to(home)
    names = ["../../home/001.png", str(home / "001.png"), "deeper/001", "deeper/../../../home/001", "000"]
    (folder / "meta.json").write_text(json.dumps({name: {"caption": name} for name in names}))
    dataset = scan(options)
    assert [(row.path, row.caption) for row in dataset.pictures] == [(folder / "000.png", "000")]
    assert f"{folder / 'meta.json'}: left out: 4 pictures of the file that are not there" in dataset_notes(
        options, dataset
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a table"),
        ('{"000": 1}', "000: must be a table"),
        ('{"000": {"caption": 1}}', "000: caption: expected a text"),
        ('{"000": {}, "000.png": {}}', "is named twice"),
        ('{"000": {"tags": "a"}, "000": {"tags": "b"}}', "000 is given twice, with different values"),
        ('{"far/away": {}}', "none of its 1 pictures is in"),
        ("{", "not JSON"),
    ],
)
def test_a_metadata_file_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    folder = draw(tmp_path / "flat", 1)
    file = tmp_path / "meta.json"
    file.write_text(text)
    with pytest.raises((ConfigError, InputError), match=said):
        scan(data(folder, in_json=file))


# ------------------------------------------------------------------------------------------ files of programs


def printed(path: Path) -> tuple[Result, dict[str, str]]:
    found = CliRunner().invoke(lora_train, ["--config_file", str(path), "--print-config"])
    lines = [line.partition(" = ") for line in found.stdout.splitlines() if not line.startswith(("#", "["))]
    return found, {name: value for name, _, value in lines if name}


def test_a_preset_of_kohya_ss(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    preset = {
        **{"LoRA_type": "LyCORIS/LoKr", "LyCORIS_preset": "attn-mlp", "optimizer": "AdamW8bit", "factor": 4},
        **{"max_resolution": "512,640", "network_dim": 8, "epoch": 7, "lr_warmup": 10, "seed": "", "unit": 1},
        **{
            "save_every_n_steps": 0,
            "scale_weight_norms": 0,
            "noise_offset_type": "Multires",
            "noise_offset": 0.1,
        },
        **{
            "multires_noise_iterations": 6,
            "multires_noise_discount": 0.2,
            "unet_lr": 0,
            "text_encoder_lr": 0,
        },
        **{
            "stop_text_encoder_training_pct": 30,
            "xformers": "xformers",
            "optimizer_args": "weight_decay=0.1",
        },
        **{"additional_parameters": "--network_dropout 0.1 --max_grad_norm=2", "block_dims": "1,2"},
    }
    path.write_text(json.dumps(preset))
    found, options = printed(path)
    assert found.exit_code == 0, found.stderr
    wanted = {
        **{"network_module": '"lycoris.kohya"', "optimizer_type": '"AdamW8bit"', "resolution": "[512, 640]"},
        **{"network_args": '["algo=lokr", "preset=attn-mlp", "factor=4"]', "max_train_epochs": "7"},
        **{
            "lr_warmup_steps": '"10%"',
            "multires_noise_iterations": "6",
            "stop_text_encoder_training": '"30%"',
        },
        **{"optimizer_args": '["weight_decay=0.1"]', "network_dropout": "0.1", "max_grad_norm": "2.0"},
    }
    assert {name: options[name] for name in wanted} == wanted
    absent = {"save_every_n_steps", "scale_weight_norms", "noise_offset", "unet_lr"}
    assert not absent & set(options)
    assert "note: block_dims, unit: not used by LoRA_type LyCORIS/LoKr\n" in found.stderr


def test_a_file_of_easy_training_scripts(tmp_path: Path) -> None:
    folder = draw(tmp_path / "flat")
    path = tmp_path / "easy.toml"
    path.write_text(
        f"[[subsets]]\nname = 'x'\nimage_dir = '{folder}'\nnum_repeats = 2\n"
        "random_crop_padding_percent = 0.05\n[train_mode]\ntrain_mode = 'lora'\n[sample_args]\n"
        "[general_args.args]\nsdxl = false\npretrained_model_name_or_path = 'demo'\n"
        "[general_args.dataset_args]\nresolution = 64\nbatch_size = 3\nmax_token_length = 150\n"
        "[network_args.args.network_args]\nalgo = 'loha'\nconv_dim = 4\n"
        "[optimizer_args.args]\nwarmup_ratio = 0.05\n[optimizer_args.args.optimizer_args]\nbetas = '0.9,0.99'\n"
    )
    found, options = printed(path)
    assert found.exit_code == 0, found.stderr
    assert options["network_module"] == '"lycoris.kohya"'
    assert options["network_args"] == '["algo=loha", "conv_dim=4"]'
    assert options["optimizer_args"] == '["betas=0.9,0.99"]'
    assert (options["lr_warmup_steps"], options["train_batch_size"]) == ('"0.05"', "3")
    assert options["max_token_length"] == "150"  # of the run, though it stands with the dataset's
    dataset = scan(DataSettings(dataset_config=path, min_bucket_reso=64))
    assert (dataset.specs[0].batch_size, dataset.specs[0].buckets.resolution) == (3, (64, 64))
    assert [row.repeats for row in dataset.pictures] == [2, 2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.json",
            '{"LoRA_type": "Standard", "network_dim": "x"}',
            "network_dim: expected a whole number, got 'x'",
        ),
        ("a.json", '{"LoRA_type": "Flux1"}', "LoRA_type: 'Flux1' asks for a family that is not"),
        ("a.json", '{"LoRA_type": "Standard", "nonsense": 1}', "nonsense: unknown key"),
        ("a.json", '{"lr_warmup": 3}', "load it in the GUI's LoRA tab"),
        ("a.json", '{"LoRA_type": "Standard", "subsets": []}', "give a file of one program"),
        ("a.json", '{"LoRA_type": "Standard", "additional_parameters": "x"}', "'x' belongs to no option"),
        ("a.toml", "[a.args]\nzzz = 1", "a.args.zzz: unknown key"),
        ("a.toml", "[a.args]\n[train_mode]\ntrain_mode = 'textual_inversion'", "is not trained here"),
    ],
)
def test_what_a_file_of_a_program_holds_and_is_not_known_is_refused_by_name(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    found, _ = printed(path)
    assert (found.exit_code, said in found.stderr, str(path) in found.stderr) == (2, True, True), found.stderr


# ------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_what_does_nothing_is_told_and_the_text_encoder_may_be_trained_alone(tmp_path: Path) -> None:
    draw(tmp_path / "data/1_mira")
    (tmp_path / "p.txt").write_text("mira")
    words = ["--network_train_text_encoder_only", "--save_last_n_steps", "2", "--sample_prompts"]
    found = train(tmp_path, *words, str(tmp_path / "p.txt"))
    assert found.exit_code == 0, found.stderr
    assert "note: save_last_n_steps does nothing without save_every_n_steps" in found.stderr
    assert "note: sample_prompts does nothing without sample_every_n_epochs" in found.stderr
    names = load_file(tmp_path / "out/last.safetensors")
    assert {name.partition("_text")[0] for name in names} == {"lora_te"}


@pytest.mark.parametrize(
    ("ratio", "steps", "saved"),
    [
        (2, 12, ["net-000003.safetensors", "net.safetensors"]),
        (9, 3, ["net-000001.safetensors", "net.safetensors"]),
    ],
)
def test_as_many_networks_are_saved_as_are_asked_for(
    ratio: int, steps: int, saved: list[str], tmp_path: Path
) -> None:
    draw(tmp_path / "data/1_mira")
    words = ["--output_name", "net", "--max_train_steps", str(steps), "--save_n_epoch_ratio", str(ratio)]
    result = train(tmp_path, *words, "--network_train_unet_only")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.glob("out/*.safetensors")) == sorted(saved)


def test_keys_of_a_dataset_file_that_do_nothing_are_told_once(tmp_path: Path) -> None:
    draw(tmp_path / "data/1_mira")
    subset = f"[[datasets.subsets]]\nimage_dir = '{tmp_path}/data/1_mira'\ncache_info = true\n"
    path = tmp_path / "dataset.toml"
    path.write_text(f"[general]\nnetwork_multiplier = 0.5\n[[datasets]]\n{subset}[[datasets]]\n{subset}")
    result = train(tmp_path, "--train_data_dir", "", "--dataset_config", str(path), "--dry-run")
    assert result.exit_code == 0, result.stderr
    told = [line.partition(f"{path}: ")[2] for line in result.stderr.splitlines() if "not needed" in line]
    assert told == [
        "network_multiplier is not needed: every picture is trained with the whole network, as in sd-scripts",
        "cache_info is not needed: sizes of pictures are read from their headers, which is quick",
    ]
