"""Keys and tokens: planted in every place that they come from, looked for in all that is written and said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorapipe_engine.command.masking import MASK, masked, remember_secrets
from support.attacks import TOOLS
from support.dataset import draw_data

WANDB = "wandbkey0123456789abcdef0123456789abcdef"
WANDB_IN_FILE = "filekey99887766554433221100ffeeddccbbaa"
HUB = "hf_PlantedTokenOfTheHub0123456789abcd"
PASSWORD = "s3cretpassw0rd"
PLANTED = (WANDB, WANDB_IN_FILE, HUB, PASSWORD)
TINY = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --network_dim 2 "
    "--network_train_unet_only --save_state --log_with tensorboard --state_interval 0"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("lorapipe_demo")
    return draw_data(tmp_path_factory, pictures=2)


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """``lora-train`` with a user's keys in its environment and the W&B key among its words."""
    keys = {"HF_TOKEN": HUB, "HUGGING_FACE_HUB_TOKEN": HUB, "WANDB_API_KEY": WANDB}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [str(TOOLS / "lora-train"), *map(str, words)],
        cwd=folder,
        env={**os.environ, **keys, "OMP_NUM_THREADS": "1", "HOME": str(home)},
        capture_output=True,
        check=False,
        timeout=120,
    )


def look(folder: Path, *done: subprocess.CompletedProcess[bytes], but: tuple[Path, ...] = ()) -> None:
    """No planted secret stands in what commands said, nor in any file of the folder."""
    texts = {
        f"{number} {name}": getattr(one, name)
        for number, one in enumerate(done)
        for name in ("stdout", "stderr")
    }
    texts |= {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in but
    }
    for name, text in texts.items():
        for secret in PLANTED:
            assert secret.encode() not in text, f"{secret} in {name}"


def test_training_writes_and_says_no_key(pictures: Path, tmp_path: Path) -> None:
    """A whole run and one that goes on, with the key in a file and on the command line."""
    config = tmp_path / "options.toml"
    config.write_text(f'wandb_api_key = "{WANDB_IN_FILE}"\ntraining_comment = "mine"\n')
    files = ["--train_data_dir", pictures, "--output_dir", tmp_path / "out"]
    first = run(tmp_path, *TINY.split(), *files, "--config_file", config, "--max_train_steps", "2")
    assert first.returncode == 0, first.stderr
    more = ["--max_train_steps", "3", "--resume", tmp_path / "out" / "net-end.state", "-v"]
    second = run(tmp_path, *TINY.split(), *files, *more, "--wandb_api_key", WANDB, "--metadata_author", "me")
    assert second.returncode == 0, second.stderr
    assert list((tmp_path / "out").glob("logs/*/network_train/events*"))
    look(tmp_path, first, second, but=(config,))


@pytest.mark.slow
def test_a_configuration_is_printed_without_its_keys(tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text(f'wandb_api_key = "{WANDB_IN_FILE}"\nmetadata_author = "me"\n')
    address = f"https://user:{PASSWORD}@huggingface.co/a/b?token={PASSWORD}"
    done = [
        run(tmp_path, "--print-config", "--config_file", config),
        run(tmp_path, "--print-config", "--wandb_api_key", WANDB),
        run(tmp_path, "--print-config", f"--wandb_api_key={WANDB}", "--base", address),
        run(tmp_path, "--print-config", "--base", f"https://{HUB}@huggingface.co/a/b"),
    ]
    assert [one.returncode for one in done] == [0] * 4
    look(tmp_path, *done, but=(config,))
    printed = done[0].stdout.decode()
    assert 'metadata_author = "me"' in printed
    assert f'# wandb_api_key = "{MASK}"' in printed
    # It can be given back: the key is a comment then, and not taken for one.
    (tmp_path / "again.toml").write_text(printed)
    again = run(tmp_path, "--print-config", "--config_file", tmp_path / "again.toml")
    assert again.returncode == 0
    assert "# wandb_api_key =\n" in again.stdout.decode()


@pytest.mark.parametrize(
    "words",
    [
        ("--base", f"https://user:{PASSWORD}@huggingface.co/a/b", "--train_data_dir", "."),
        ("--base", f"https://huggingface.co/a/b?token={PASSWORD}", "--train_data_dir", ".", "-v"),
        ("--base", f"https://{HUB}@huggingface.co/a/b", "--train_data_dir", "."),
        ("--base", "demo", "--train_data_dir", f"nowhere/{HUB}"),
        ("--huggingface_token", HUB),
        (f"--huggingface_tokn={HUB}",),
        ("--wandb_api_key", WANDB, "--no_such_option", WANDB),
        ("--config_file", "wrong.toml"),
    ],
)
def test_errors_say_no_key(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    pytest.importorskip("torch")
    from lorapipe_engine.cli import lora_train

    wrong = tmp_path / "wrong.toml"
    wrong.write_text(f'wandb_api_key = ["{WANDB_IN_FILE}"]\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        lora_train.main([*words, "--output_dir", "out"])
    assert end.value.code in (1, 2)
    out, err = capfdbinary.readouterr()
    look(tmp_path, subprocess.CompletedProcess(words, 2, out, err), but=(wrong,))


def test_the_key_is_not_left_in_the_words_of_the_process() -> None:
    """Libraries write those down (W&B's "args"). In a process of its own, whose words are its own."""
    code = (
        "import sys\n"
        "from lorapipe_engine.settings import PARTS\n"
        "from lorapipe_engine.command.options import build_settings\n"
        f"build_settings(PARTS, {{'wandb_api_key': '{WANDB}'}})\n"
        "print(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--wandb_api_key", WANDB, f"--wandb_api_key={WANDB}", "--other"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"['--wandb_api_key', '{MASK}', '--wandb_api_key={MASK}', '--other']\n"


def test_the_key_goes_to_wandb_by_its_variable_and_its_configuration_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's package stands in for itself here: it is not installed, and would ask its server."""
    pytest.importorskip("torch")
    import types

    from lorapipe_engine.command.options import build_settings
    from lorapipe_engine.command.printed import print_config
    from lorapipe_engine.settings import PARTS
    from lorapipe_engine.train.results.boards import WeightsAndBiases

    said: list[object] = []
    seen: dict[str, str] = {}

    def init(**given: object) -> object:
        said.append(given)
        seen["key"] = os.environ.get("WANDB_API_KEY", "")
        config = types.SimpleNamespace(update=said.append)
        return types.SimpleNamespace(define_metric=lambda *_, **__: None, config=config)

    fake = types.SimpleNamespace(init=init, Settings=lambda **given: given, Image=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "")
    parts, origin = build_settings(PARTS, {"wandb_api_key": WANDB})
    board = WeightsAndBiases(tmp_path, parts[-1])
    board.text("configuration", print_config(parts, origin))
    assert seen["key"] == WANDB
    assert "network_dim" in str(said)
    assert WANDB not in str(said)


def test_what_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "anything-that-is-long")
    assert masked("a anything-that-is-long b") == f"a {MASK} b"
    assert masked("https://me:pass@host/a@b") == f"https://{MASK}@host/a@b"
    assert masked("x?token=abc&b=1 y") == f"x?token={MASK}&b=1 y"
    assert masked(f"go {HUB}!") == f"go {MASK}!"
    # Plain words and addresses stay as they are, and so do short values, which may be parts of words.
    monkeypatch.setenv("HF_TOKEN", "cat")
    plain = "https://host/a@b?page=2 keep_tokens=1 cat 1girl, hf_short"
    assert masked(plain) == plain
    remember_secrets(["a-key-of-a-test"])
    assert masked("x a-key-of-a-test y") == f"x {MASK} y"
