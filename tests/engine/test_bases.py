from __future__ import annotations

from pathlib import Path

import pytest

from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_engine.models.bases import demo_base, describe_kind, explain_base, resolve_base
from lorapipe_engine.models.families import Recognised


def test_paths_hub_ids_and_what_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").touch()
    assert resolve_base("model.ckpt") == Path("model.ckpt")
    assert resolve_base("someone/model-v1.5") == "someone/model-v1.5"
    for name in ("absent.safetensors", "folder/absent.safetensors", "a/b/c", ""):
        if name:
            with pytest.raises(InputError, match="no such file"):
                resolve_base(name)


def test_demo_is_the_packaged_checkpoint_unless_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve_base("demo")
    assert found == demo_base()
    assert Path(found).name == "demo.safetensors"
    (tmp_path / "demo").touch()
    assert resolve_base("demo") == Path("demo")


def test_demo_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorapipe_engine.models.bases.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install \./packages/demo in the repository"):
        resolve_base("demo")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            Recognised("lora", "sd1"),
            "a LoRA for Stable Diffusion 1.x, not a base model; it goes on top of one",
        ),
        (Recognised("lora"), "a LoRA, not a base model; it goes on top of one"),
        (Recognised("vae"), "a VAE, not a base model; it can replace one's with --vae"),
        (
            Recognised("unknown"),
            "nothing that is known here, not a base model of Stable Diffusion 1.x, 2.x or SDXL",
        ),
        (Recognised("checkpoint", "sdxl"), None),
    ],
)
def test_what_was_given_instead(found: Recognised, says: str | None) -> None:
    assert explain_base(found) == says


def test_every_kind_has_words() -> None:
    assert describe_kind(Recognised("checkpoint", "sdxl")) == "a Stable Diffusion XL checkpoint"
    assert explain_base(Recognised("checkpoint")) is not None
    for kind in ("unet", "text_encoder", "refiner"):
        assert "not a base model" in str(explain_base(Recognised(kind)))
