"""Pictures of plans, drawn with the demo's base and small networks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.models.bases import demo_base  # noqa: E402
from lorapipe_engine.nn.base import Adapter  # noqa: E402
from lorapipe_engine.pictures.parameters import read_stored  # noqa: E402
from lorapipe_engine.sample_cli import lora_sample  # noqa: E402
from lorapipe_engine.sampling.infotext import model_hash, network_hash, read_infotext  # noqa: E402
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.text import AskedPrompt  # noqa: E402
from lorapipe_engine.train.sample.networks import Swapper  # noqa: E402
from lorapipe_engine.train.sample.picture import Drawn  # noqa: E402
from lorapipe_engine.train.sample.samplers.scheduler import CourseScheduler  # noqa: E402
from support import tiny  # noqa: E402
from support.commands import TARGETS, run  # noqa: E402

PROMPT = f"{TRIGGER}, (forest:1.3), 1girl"
FIXED = ("--base", "demo", "--device", "cpu", "--steps", "3", "--json", "--quiet")
SAMPLERS = "sampler:Euler,Euler a,DPM++ 2M,DPM++ 2M Uniform,DDIM,UniPC,Heun"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``one`` (LoRA) and ``two`` (LoKr), each after a coarse step, so that pictures differ well."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("networks")
    draw_concept(data, TRIGGER, pictures=2, repeats=1, seed=3)
    fixed = (
        "--base demo --resolution 64 --max_token_length 75 --device cpu --max_train_steps 2 --network_dim 4"
    )
    rates = "--unet_lr 0.02 --text_encoder_lr 0.02 --lr_scheduler constant --save_precision float"
    for name, more in (
        ("one", ("--network_args", "conv_dim=2")),
        ("two", ("--network_module", "lycoris.kohya", "--network_args", "algo=lokr", "conv_dim=2")),
    ):
        words = [*fixed.split(), *rates.split(), "--train_data_dir", str(data), "--output_dir", str(out)]
        with pytest.raises(SystemExit) as end:
            lora_train.main([*words, "--output_name", name, *more])
        assert not end.value.code
    return out


class Sampler:
    """Runs the command in this process: its status, records and complaints."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.said = ""

    def __call__(self, *words: object, prompt: str = PROMPT, status: int = 0) -> list[dict[str, Any]]:
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            lora_sample.main([*FIXED, "--prompt", prompt, *map(str, words)])
        out, self.said = self._capfd.readouterr()
        assert (end.value.code or 0) == status, self.said
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def sample(capfd: pytest.CaptureFixture[str]) -> Sampler:
    return Sampler(capfd)


def pixels(record: dict[str, Any]) -> np.ndarray:
    with Image.open(record["path"]) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def distance(one: dict[str, Any], other: dict[str, Any]) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())


def by(rows: list[dict[str, Any]], *names: str) -> dict[Any, dict[str, Any]]:
    return {tuple(row.get(name) for name in names): row for row in rows}


def test_draws_the_cells_of_a_plan(sample: Sampler, networks: Path, tmp_path: Path) -> None:
    words = (
        *(networks / "one.safetensors", networks / "two.safetensors"),
        *("--y", "weight:0,1", "--sheet", "seed:5,6"),
    )
    planned = sample(*words, "-o", tmp_path, "--dry-run")
    drawn = sample(*words, "-o", tmp_path)
    # Every cell once, with the record that the dry run has.
    assert sorted(map(json.dumps, drawn)) == sorted(map(json.dumps, planned))
    cells = by(drawn, "file", "weight", "seed")
    base = cells["None", None, 5]
    assert cells["one", 0.0, 5]["path"] == base["path"], "strength 0 is the base"
    paths = {row["path"] for row in drawn}
    assert len(paths) == 6
    assert set(tmp_path.iterdir()) == {Path(path) for path in paths}, "nothing half-written stays"
    for name in ("one", "two"):
        assert distance(cells[name, 1.0, 5], base) > 20
    assert distance(cells["one", 1.0, 5], cells["two", 1.0, 5]) > 20
    assert distance(base, cells["None", None, 6]) > 20
    assert pixels(base).shape == (64, 64, 3)

    info = read_infotext(read_stored(Path(cells["one", 1.0, 5]["path"])) or "")
    assert info.prompt == f"{PROMPT} <lora:one:1>"
    digits = network_hash(networks / "one.safetensors")
    expected = {
        **{"Steps": "3", "Sampler": "Euler a", "CFG scale": "7.0", "Seed": "5"},
        **{"Size-1": "64", "Size-2": "64", "Model hash": model_hash(demo_base()), "Model": "demo"},
        **{"RNG": "CPU", "Lora hashes": f"one: {digits}"},
    }
    assert {key: info.value(key) for key in expected} == expected

    # A second run draws nothing, one picture that is missing is drawn again, another prompt is refused.
    times = {path: Path(path).stat().st_mtime_ns for path in paths}
    before = pixels(base)
    Path(base["path"]).unlink()
    again = sample(*words, "-o", tmp_path)
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, planned))
    same = {path for path in paths if Path(path).stat().st_mtime_ns == times[path]}
    assert same == paths - {base["path"]}
    # Alone, and in a run that had networks in the model, in a batch.
    assert np.abs(pixels(base) - before).max() <= 1
    assert sample(*words, "-o", tmp_path, prompt="another", status=1) == []
    assert "is there with other parameters" in sample.said
    assert "--overwrite" in sample.said
    assert {path for path in paths if Path(path).stat().st_mtime_ns == times[path]} == same


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM"])
def test_a_cell_does_not_depend_on_its_batch(sampler: str, sample: Sampler, tmp_path: Path) -> None:
    words = ("--sampler", sampler, "--y", "seed:1-4")
    alone = sample(*words, "-o", tmp_path / "alone", "--batch-size", "1")
    together = sample(*words, "-o", tmp_path / "together", "--batch-size", "4")
    assert len(alone) == 4
    for one, other in zip(alone, together, strict=True):
        assert distance(one, other) <= 1


def test_the_base_is_itself_after_networks(sample: Sampler, networks: Path, tmp_path: Path) -> None:
    # By their names "one" and "two" come before the base without any, which a prompt has here.
    prompts = f"prompt:{TRIGGER} <lora:one>, {TRIGGER} <lora:one><lora:two:0.5:1>, {TRIGGER}"
    rows = sample("--x", prompts, "--lora-dir", networks, "--seed", 3, "-o", tmp_path / "all", prompt="")
    alone = sample("--x", f"prompt:{TRIGGER}", "--seed", 3, "-o", tmp_path / "alone", prompt="")
    cells = by(rows, "prompt")
    assert distance(cells[TRIGGER,], alone[0]) <= 1
    assert distance(cells[f"{TRIGGER} <lora:one>",], alone[0]) > 20
    assert distance(cells[f"{TRIGGER} <lora:one>",], cells[f"{TRIGGER} <lora:one><lora:two:0.5:1>",]) > 20


def test_equals_a_base_with_the_network_merged_in(sample: Sampler, networks: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.safetensors"
    done = run(
        "lora-merge", demo_base(), networks / "one.safetensors:0.8", "-o", merged, "--save-precision", "float"
    )
    assert done.returncode == 0, done.stderr
    words = ("--x", SAMPLERS, "--seed", 4, "--tokenizer-dir", demo_base().with_name("tokenizer"))
    beside = sample(
        *words, "--network", f"{networks / 'one.safetensors'}:0.8", "-o", tmp_path / "a", "--no-base-column"
    )
    inside = sample(*words, "--base", merged, "--size", "64x64", "-o", tmp_path / "b")
    base = sample(*words, "-o", tmp_path / "c")
    assert len(beside) == 7
    for one, other, without in zip(beside, inside, base, strict=True):
        assert distance(one, other) <= 2, one["sampler"]
        assert distance(one, without) > 20, "the network is seen"


def test_two_networks_at_once_are_the_merge_of_both(sample: Sampler, networks: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.safetensors"
    files = [networks / f"{name}.safetensors" for name in ("one", "two")]
    done = run(
        "lora-merge",
        demo_base(),
        f"{files[0]}:0.6",
        f"{files[1]}:0.7",
        "-o",
        merged,
        "--save-precision",
        "float",
    )
    assert done.returncode == 0, done.stderr
    words = ("--seed", 4, "--tokenizer-dir", demo_base().with_name("tokenizer"), "--sampler", "DPM++ 2M")
    beside = sample(
        *words, "-o", tmp_path / "a", "--network", f"{files[0]}:0.6", "--network", f"{files[1]}:0.7"
    )
    inside = sample(*words, "-o", tmp_path / "b", "--base", merged, "--size", "64x64")
    assert distance(beside[0], inside[0]) <= 2


def test_a_broken_network_among_others(sample: Sampler, networks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    shutil.copytree(networks, folder, ignore=shutil.ignore_patterns("*.json*", "logs"))
    whole = (networks / "one.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    xl = {
        f"{prefix}_text_model_encoder_layers_0_mlp_fc1.lora_{role}.weight": torch.ones(shape)
        for prefix in ("lora_te1", "lora_te2")
        for role, shape in (("down", (2, 8)), ("up", (8, 2)))
    }
    save_file(xl, folder / "wrong.safetensors")
    rows = sample(
        *(folder / f"{name}.safetensors" for name in ("one", "short", "two", "wrong")),
        *("--seed", 2, "-o", tmp_path / "out"),
        status=1,
    )
    assert {row["file"] for row in rows} == {"None", "one", "two"}
    assert all(Path(row["path"]).is_file() for row in rows)
    complaints = [line for line in sample.said.splitlines() if "error" in line]
    assert len(complaints) == 2
    assert "short.safetensors" in complaints[0] + complaints[1]
    wrong = "wrong.safetensors: is for Stable Diffusion XL, but the base is Stable Diffusion 1.x; its pictures are left"
    assert any(wrong in line for line in complaints)


def test_a_network_whose_pictures_are_no_numbers_among_others(
    sample: Sampler, networks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "networks"
    folder.mkdir()
    shutil.copy(networks / "one.safetensors", folder)
    tensors = load_file(folder / "one.safetensors")
    burst = {name: t * 1e25 if name.endswith("lora_up.weight") else t for name, t in tensors.items()}
    save_file(burst, folder / "burst.safetensors")
    rows = sample(
        *(folder / f"{name}.safetensors" for name in ("burst", "one")),
        *("--x", "seed:1,2", "-o", tmp_path / "out"),
        status=1,
    )
    assert sorted(row["file"] for row in rows) == ["None", "None", "one", "one"]
    complaints = [line for line in sample.said.splitlines() if "error" in line]
    assert len(complaints) == 2
    assert all("burst.safetensors gives no numbers (NaN); this picture is left out" in c for c in complaints)
    assert {str(path) for path in (tmp_path / "out").iterdir()} == {row["path"] for row in rows}


def test_memory_that_runs_out_in_a_thread_loses_no_picture_in_silence(
    sample: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for the memory of the batch that is drawn meanwhile."""
    image, calls = Drawn.image, []

    def once(drawn: Drawn) -> Any:
        calls.append(drawn)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.25 GiB.")
        return image(drawn)

    monkeypatch.setattr(Drawn, "image", once)
    rows = sample("--x", "seed:1-8", "-o", tmp_path / "out", "--overwrite", status=1)
    assert "memory ran out while" in sample.said
    assert len({row["path"] for row in rows}) == len(rows) < 8
    monkeypatch.undo()
    assert len(sample("--x", "seed:1-8", "-o", tmp_path / "out")) == 8


def test_a_full_disk_ends_the_run_and_leaves_whole_pictures(sample: Sampler, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # a picture takes 5,000 bytes or more
    try:
        rows = sample("--y", "seed:1-8", "-o", tmp_path, status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert rows == []
    (complaint,) = sample.said.splitlines()
    assert complaint.startswith(f"lora-sample: error: {tmp_path / '00000-1.png'}: cannot be written: ")
    assert list(tmp_path.iterdir()) == []
    assert len(sample("--y", "seed:1-8", "-o", tmp_path)) == 8


def test_time_and_memory_are_said(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    loud = [word for word in FIXED if word != "--quiet"]
    with pytest.raises(SystemExit):
        lora_sample.main([*loud, "--prompt", PROMPT, "--y", "seed:1-3", "-o", str(tmp_path)])
    said = capfd.readouterr().err
    assert re.search(r"^about \d+ (s|min) for 3 pictures, in \d+\.\d GiB$", said, re.MULTILINE), said


def test_what_a_base_predicts_is_its_file_s_or_asked_for(sample: Sampler, tmp_path: Path) -> None:
    made = tiny.build("sd1")
    marks = {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    marked = tiny.save_checkpoint(made, tmp_path / "marked.safetensors", **marks)
    plain = tiny.save_checkpoint(made, tmp_path / "plain.safetensors")
    fixed = ("--tokenizer-dir", tmp_path / "tokenizer", "--size", "64x64", "--seed", 1)
    asked = ("--v-prediction", "--zero-terminal-snr")
    (by_file,) = sample(*fixed, "--base", marked, "-o", tmp_path / "a")
    (by_words,) = sample(*fixed, "--base", plain, *asked, "-o", tmp_path / "b")
    (without,) = sample(*fixed, "--base", plain, "-o", tmp_path / "c")
    (denied,) = sample(
        *fixed, "--base", marked, "--no-v-prediction", "--no-zero-terminal-snr", "-o", tmp_path / "d"
    )
    assert distance(by_file, by_words) == 0 < distance(by_file, without)
    assert distance(denied, without) == 0
    info = read_infotext(read_stored(Path(by_words["path"])) or "")
    assert info.value("Prediction") == "v"
    assert info.value("Noise Schedule") == "Zero Terminal SNR"
    sample(*fixed, "--base", plain, "--zero-terminal-snr", "-o", tmp_path / "e", status=2)
    assert "a base that predicts noise cannot begin at zero terminal SNR" in sample.said


def test_cells_of_other_guidance_share_a_batch(sample: Sampler, tmp_path: Path) -> None:
    words = ("--seed", 2, "--x", "cfg:1,4,9")
    alone = sample(*words, "-o", tmp_path / "alone", "--batch-size", "1")
    together = sample(*words, "-o", tmp_path / "together", "--batch-size", "3")
    assert all(distance(one, other) <= 1 for one, other in zip(alone, together, strict=True))
    assert distance(alone[0], alone[2]) > 5


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_other_formats_have_the_parameters(suffix: str, sample: Sampler, tmp_path: Path) -> None:
    prompt = "日本, (a:1.2) BREAK night"
    (row,) = sample("--seed", 9, "--format", suffix, "-o", tmp_path, prompt=prompt)
    assert row["path"].endswith(suffix)
    assert read_infotext(read_stored(Path(row["path"])) or "").prompt == prompt
    before = Path(row["path"]).stat().st_mtime_ns
    sample("--seed", 9, "--format", suffix, "-o", tmp_path, prompt=prompt)
    assert Path(row["path"]).stat().st_mtime_ns == before


def test_networks_leave_the_base_as_it_was(networks: Path) -> None:
    family = open_family(load_base(demo_base()))
    modules = {
        name: module
        for part in family.parts.values()
        for name, module in part.named_modules(prefix=str(id(part)))
    }
    weights = {name: tensor.clone() for name, tensor in family.denoiser.state_dict().items()}
    one, two = (NetworkFile(networks / f"{name}.safetensors", name) for name in ("one", "two"))
    swapper = Swapper(family)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = family.text.encode_prompts([AskedPrompt("a")])[0]

    def answer(*rows: Loaded) -> Any:
        swapper.use(rows)
        with torch.inference_mode():
            return family.predict(noisy, torch.tensor([500.0]), text)

    with torch.inference_mode():
        plain = answer()
        both = answer(Loaded(one, 0.0, 0.8), Loaded(two, 0.0, 0.5))
        assert not any(isinstance(module, Adapter) for module in family.text.modules["te1"].modules())
        turned = answer(Loaded(two, 0.0, 0.5), Loaded(one, 0.0, 0.3, True), Loaded(one, 0.0, 0.5))
        assert (both - plain).abs().max() > 0.01
        assert torch.allclose(both, turned, atol=1e-5), (
            "sums, in any order; the same network twice is its sum"
        )
        # On the text encoder alone.
        assert torch.equal(answer(Loaded(one, 1.0, 0.0)), plain)
        assert not torch.allclose(
            family.text.encode_prompts([AskedPrompt("a")])[0].hidden, text.hidden, atol=0.01
        )
        assert torch.equal(answer(), plain)
    now = {
        name: module
        for part in family.parts.values()
        for name, module in part.named_modules(prefix=str(id(part)))
    }
    assert now.keys() == modules.keys()
    assert all(now[name] is module for name, module in modules.items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in family.denoiser.state_dict().items())


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "UniPC"])
def test_equals_a_pipeline_of_diffusers(
    sampler: str, sample: Sampler, networks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    base = load_base(demo_base())
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=CLIPTokenizer.from_pretrained(demo_base().with_name("tokenizer"), model_max_length=77),
        unet=base.denoiser,
        scheduler=CourseScheduler(sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(networks), weight_name="one.safetensors")
    drawn = pipeline(
        f"{TRIGGER}, forest",
        negative_prompt="1boy",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=7.0,
        generator=[torch.Generator("cpu").manual_seed(8)],
        output_type="np",
    ).images[0]
    words = (
        "--sampler",
        sampler,
        "--seed",
        8,
        "--negative",
        "1boy",
        "--network",
        networks / "one.safetensors",
    )
    (row,) = sample(*words, "-o", tmp_path, prompt=f"{TRIGGER}, forest")
    assert np.abs(pixels(row) - np.round(drawn * 255)).max() <= 2


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signal")
def test_an_interrupted_run_leaves_whole_pictures(tmp_path: Path) -> None:
    module, _, function = TARGETS["lora-sample"].partition(":")
    code = f"import sys; sys.argv[0] = 'lora-sample'; from {module} import {function} as main; main()"
    words = [*FIXED, "--prompt", "a", "--y", "seed:1-400", "--batch-size", "2", "-o", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    records = [first, *map(json.loads, rest.splitlines())]
    assert len(records) < 400
    # A picture may be there whose record was cut off, but nothing by another name, and all are whole.
    names = {path.name for path in tmp_path.iterdir()}
    assert {Path(row["path"]).name for row in records} <= names
    assert all(name.endswith(".png") for name in names)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.load()


def test_decodes_in_the_precision_asked_for(sample: Sampler, tmp_path: Path) -> None:
    words = ("--seed", 1, "--steps", 1)
    rows = {
        name: sample(*words, *more, "-o", tmp_path / name)[0]
        for name, more in (
            ("default", ()),
            ("float", ("--no_half_vae",)),
            ("fp16", ("--vae-precision", "fp16")),
            ("bf16", ("--vae_precision", "bf16")),
        )
    }
    assert distance(rows["default"], rows["float"]) == 0, "the CPU decodes in float32"
    assert distance(rows["fp16"], rows["float"]) <= 1
    assert 1 <= distance(rows["bf16"], rows["float"]) <= 16
    sample(*words, "--no-half-vae", "--vae-precision", "fp16", "-o", tmp_path / "both", status=2)
    assert "--no-half-vae is --vae-precision float" in sample.said


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(family: str, sample: Sampler, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    tiny.save_checkpoint(tiny.build(family), base)
    words = (
        *("--base", base, "--tokenizer-dir", tiny.write_tokenizer(tmp_path / "tokenizer"), "--size", "64x32"),
        *(
            "--seed",
            1,
            "--steps",
            2,
            "--x",
            'prompt:a cat,"a BREAK cat","(a:1.5) cat"',
            "--y",
            "negative:,bad",
        ),
    )
    rows = sample(*words, "-o", tmp_path / "together", "--batch-size", 6, prompt="")
    alone = sample(*words, "-o", tmp_path / "alone", "--batch-size", 1, prompt="")
    assert len(rows) == 6
    assert pixels(rows[0]).shape[1] == 2 * pixels(rows[0]).shape[0]
    for one, other in zip(sorted(rows, key=str), sorted(alone, key=str), strict=True):
        assert distance(one, other) <= 1
    first = rows[0]
    assert all(distance(row, first) > 1 for row in rows[1:])
