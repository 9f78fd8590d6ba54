"""Cached text states: the same as encoded ones, found by content, in several forms where captions vary."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.settings import ModelSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.base.shelf import Shelf, base_key  # noqa: E402
from lorapipe_engine.train.data.text_cache import TextCache  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from support import tiny  # noqa: E402
from support.called import status_of  # noqa: E402

CAPTIONS = ["", "cat", "a red cat, night, " * 20, "dog"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {
        family: tiny.save_checkpoint(tiny.build(family), root / family / "base.safetensors")
        for family in ("sd1", "sd2", "sdxl")
    }


def opened(path: Path, **more: Any) -> Any:
    return open_family(load_base(path), **more)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_states_are_those_of_the_encoders(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases[family], max_token_length=225, clip_skip=2)
    for folder in (None, tmp_path, tmp_path):
        cache = TextCache(base, weighted=False, folder=folder)
        cache.prepare(CAPTIONS)
        found = cache.take(CAPTIONS[::-1])
        want = base.text.encode(base.text.tokenize(CAPTIONS[::-1]))
        torch.testing.assert_close(found.hidden, want.hidden, rtol=1e-5, atol=1e-5)
        if family == "sdxl":
            torch.testing.assert_close(found.pooled, want.pooled, rtol=1e-5, atol=1e-5)
    assert len(files(tmp_path)) == len(CAPTIONS)


def test_entries_are_found_by_what_they_were_made_of(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sd1"], max_token_length=75, clip_skip=2)

    def entries(base: Any, **more: Any) -> int:
        cache = TextCache(base, folder=tmp_path, **{"weighted": False, **more})
        cache.prepare(["(cat:1.5)"])
        return len(files(tmp_path))

    assert entries(base) == 1
    assert entries(base) == 1
    assert entries(opened(bases["sd1"], max_token_length=75, clip_skip=1)) == 2
    assert entries(base, weighted=True) == 3
    assert entries(opened(bases["sd1"], max_token_length=150, clip_skip=2)) == 4
    assert entries(opened(bases["sd1"], max_token_length=75, clip_skip=2, dtype=torch.bfloat16)) == 5
    with torch.no_grad():
        next(base.text.modules["te1"].parameters()).add_(1e-3)
    assert entries(base) == 6


def test_broken_entries_are_made_again(bases: dict[str, Path], tmp_path: Path) -> None:
    base = opened(bases["sdxl"], max_token_length=75)
    first = TextCache(base, weighted=False, folder=tmp_path)
    first.prepare(CAPTIONS)
    for index, path in enumerate(sorted(files(tmp_path))):
        path.write_bytes(b"" if index % 2 else path.read_bytes()[:-100])
    (tmp_path / "of another version.npz").write_bytes(b"?")
    again = TextCache(base, weighted=False, folder=tmp_path)
    again.prepare(CAPTIONS)
    assert torch.equal(first.take(CAPTIONS).hidden, again.take(CAPTIONS).hidden)
    third = TextCache(base, weighted=False, folder=tmp_path)
    third.prepare(CAPTIONS)
    assert torch.equal(third.take(CAPTIONS).pooled, first.take(CAPTIONS).pooled)


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TextCache(opened(bases["sd1"]), weighted=False, folder=tmp_path / "file" / "text")
    cache.prepare(CAPTIONS)
    assert len(cache) == len(CAPTIONS)


def test_a_queue_encodes_the_same_captions_once(bases: dict[str, Path]) -> None:
    shelf = Shelf(wanted=(key := base_key(ModelSettings(), bases["sdxl"], torch.float32)))
    found = []
    for made_with, captions in (("a", CAPTIONS), ("a", CAPTIONS[::-1]), ("b", CAPTIONS), ("a", CAPTIONS[:2])):
        base = open_family(shelf.base(key, lambda: load_base(bases["sdxl"]), copies_weights=True))
        encoded: list[int] = []
        encode = base.text.encode
        base.text.encode = lambda tokens, e=encode, n=encoded: n.append(len(tokens.ids[0])) or e(tokens)
        cache = TextCache(base, weighted=False, shelf=shelf, made_with=made_with)
        cache.prepare(captions)
        found.append((sum(encoded), cache.take(["cat"])))
    # Other captions, and the same ones in another way, are encoded anew: which go together is part of the states.
    assert [count for count, _ in found] == [4, 0, 4, 2]
    assert torch.equal(found[0][1].hidden, found[1][1].hidden)
    assert torch.equal(found[0][1].pooled, found[1][1].pooled)


# ------------------------------------------------------------------------------------------------- runs


def train(base: Path, data: Path, out: Path, *more: object) -> int:
    words = "--resolution 64 --device cpu --network_dim 2 --max_token_length 75 --output_name net --quiet"
    words += " --save_precision float --unet_lr 1e-2 --seed 5 --max_train_epochs 2"
    places = ["--base", base, "--train_data_dir", data, "--output_dir", out]
    return status_of(lora_train, *words.split(), *places, *more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    draw_concept(root, "mirelune", pictures=4, repeats=2, seed=1)
    return root


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_training_is_the_same_with_cached_text(
    family: str, bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    found = []
    for number, more in enumerate(
        [[], ["--cache_text_encoder_outputs_to_disk", "--cache_dir", tmp_path / "cache"]]
    ):
        out = tmp_path / str(number)
        same = ["--network_train_unet_only", "--validation_split", "0.25", "--train_batch_size", "2"]
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("cat --s 1 --w 64 --h 64")
        same += ["--sample_prompts", prompts, "--sample_every_n_epochs", "1"]
        assert train(bases[family], pictures, out, *same, *more) == 0
        found.append(load_file(out / "net.safetensors"))
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=1e-3, atol=1e-5)
    assert len(files(tmp_path / "cache/text")) == 4
    assert not files(pictures)


@pytest.mark.parametrize("way", ["--flow_model --timestep_sampling shift", "--timestep_curve 0:1 1000:3"])
def test_every_way_to_learn_is_the_same_with_cached_text(
    way: str, bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """With an average and the best by the validation loss beside the network."""
    words = [*way.split(), "--network_train_unet_only", "--train_batch_size", "2", "--ema_decay", "0.5"]
    words += ["--validation_split", "0.25", "--early_stop", "9", "--gradient_accumulation_steps", "2"]
    assert train(bases["sd1"], pictures, tmp_path / "encoded", *words) == 0
    assert train(bases["sd1"], pictures, tmp_path / "cached", *words, "--cache_text_encoder_outputs") == 0
    for kind in ("", "-ema", "-best", "-best-ema"):
        one, other = (load_file(tmp_path / name / f"net{kind}.safetensors") for name in ("encoded", "cached"))
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-5)


def test_cached_text_is_that_of_the_merged_base(
    bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    assert (
        train(
            bases["sd1"], pictures, tmp_path / "first", "--text_encoder_lr", "1", "--save_precision", "float"
        )
        == 0
    )
    only_text = ["--network_train_unet_only", "--base_weights", tmp_path / "first/net.safetensors"]
    only_text += ["--max_train_epochs", "1"]
    found = {}
    for name, more in {"cached": ["--cache_text_encoder_outputs"], "encoded": []}.items():
        assert (
            train(
                bases["sd1"], pictures, tmp_path / name, *only_text, *more, "--base_weights_multiplier", "3"
            )
            == 0
        )
        rows = (tmp_path / name / "net.metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(row)["loss/current"] for row in rows]
    assert train(bases["sd1"], pictures, tmp_path / "plain", "--network_train_unet_only") == 0
    rows = (tmp_path / "plain" / "net.metrics.jsonl").read_text().splitlines()
    assert found["cached"] == pytest.approx(found["encoded"], rel=1e-5)
    assert json.loads(rows[0])["loss/current"] != pytest.approx(found["cached"][0], rel=1e-5)


def test_captions_that_vary_have_several_forms(
    bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    more = [
        "--network_train_unet_only",
        "--cache_text_encoder_outputs_to_disk",
        "--cache_dir",
        tmp_path / "cache",
    ]
    more += ["--shuffle_caption", "--caption_dropout_rate", "0.5", "--text_cache_variants", "3"]
    assert train(bases["sd1"], pictures, tmp_path / "out", *more, "--trace_steps", *range(16)) == 0
    seen: dict[str, set[bytes]] = {}
    for path in (tmp_path / "out/trace").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            (name,) = json.loads(file.metadata()["0.files"])
            seen.setdefault(name, set()).add(file.get_tensor("0.input_ids.te1").numpy().tobytes())
    # Three forms of each, one for all that is dropped; of shuffled tags a few may be alike.
    shared = Counter(ids for found in seen.values() for ids in found)
    assert [count for count in shared.values() if count > 1] == [shared.most_common(1)[0][1]]
    assert all(2 <= len(ids) <= 4 for ids in seen.values())
    assert 4 + 1 < len(files(tmp_path / "cache/text")) <= 4 * 3 + 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ["--text_encoder_lr", "1e-5"],
            "text_encoder_lr: trains the text encoders, whose outputs are cached",
        ),
        (["--learning_rate", "1e-4"], "learning_rate: trains the text encoders"),
        ([], "the text encoders are trained"),
        (["--network_train_unet_only", "--token_warmup_step", "5"], "token_warmup_step"),
    ],
)
def test_what_cannot_be_cached_is_told(
    more: list[str], told: str, bases: dict[str, Path], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(bases["sd1"], pictures, tmp_path, "--cache_text_encoder_outputs", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_sdxl_leaves_its_encoders_alone_so_they_may_be_cached(
    bases: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    assert train(bases["sdxl"], pictures, tmp_path, "--cache_text_encoder_outputs") == 0


def test_captions_over_the_limit_are_told(
    bases: dict[str, Path], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = draw_concept(tmp_path / "data", "mirelune", pictures=3, repeats=1, seed=1)
    first, second, _ = sorted(folder.glob("*.txt"))
    first.write_text("red cat, " * 40)
    second.write_text("red cat, " * 30)
    words = ["--base", bases["sd1"], "--train_data_dir", tmp_path / "data", "--output_dir", tmp_path / "out"]
    fixed = "--resolution 64 --device cpu --network_dim 2 --max_train_steps 1 --max_token_length 75"
    words += fixed.split()
    with pytest.raises(SystemExit):
        lora_train.main(list(map(str, words)))
    (line,) = [row for row in capsys.readouterr().err.splitlines() if "longer than" in row]
    assert line.startswith("note: 2 captions are longer than 75 tokens and cut there, the longest that of ")
    assert line.endswith(f"{first.with_suffix('.png')} with 120; --max_token_length 150 takes more")
