"""Preservation: the term's gradient, what it costs nothing where it is off, runs with it, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.settings.preserve import read_preserve  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.data.microbatch import Held, MicroBatch  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import Conditioning  # noqa: E402
from lorapipe_engine.train.step.forward import draw, seed_step  # noqa: E402
from lorapipe_engine.train.step.preserving import Preserving  # noqa: E402
from lorapipe_engine.train.step.step import Stepper  # noqa: E402
from support import tiny  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import stopped_after  # noqa: E402

pytestmark = pytest.mark.torch

OWN, OTHER = ["red cat, smile", "1girl, night"], ["dog, smile", ""]
WEIGHTS = [0.5, 0.25]

# ------------------------------------------------------------------------------------------------- the gradient


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def families(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Family]:
    """A tiny base in double precision, twice: one takes the network, the other stays as it is."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    tiny.save_checkpoint(tiny.build(request.param), path)
    base = load_base(path, dtype=torch.float64)
    one, other = (
        open_family(copy.deepcopy(base), dtype=torch.float64, max_token_length=75) for _ in range(2)
    )
    return one, other


def stepper_of(family: Family, words: str, *, apart: bool) -> Stepper:
    targets = [
        Target(part, family.lora_name(part, path), module)
        for part, path, module in family.target_modules(conv=True)
    ]
    network = attach(family.parts.values(), targets, NetworkPlan(rank=2, alpha=1.0, conv_rank=1))
    torch.manual_seed(3)
    for group in network.groups.values():  # a new network changes nothing, and would equal the base
        group.parameter.data += 0.05 * torch.randn_like(group.parameter)
    optimizer = torch.optim.SGD([group.parameter for group in network.groups.values()], lr=1e-3)
    objective = family.objective(LossSettings(min_snr_gamma=5.0, noise_offset=0.05), "epsilon")
    stepper = Stepper(
        family, network, optimizer, objective, max_grad_norm=0.0, train_text=True, half_precision=False
    )
    asked = read_preserve(words.split())
    assert asked is not None
    stepper.preserving = Preserving(asked, family, network, objective, apart=apart, train_text=True)
    return stepper


def batch_of(family: Family, held: Held) -> MicroBatch:
    torch.manual_seed(7)
    moments = torch.randn(2, 8, 8, 8)
    return MicroBatch(
        latents=moments.abs(),
        tokens=family.text.tokenize(OWN),
        weights=torch.tensor([0.5, 1.0]),
        geometry=family.plain_geometry(2, 64, 64),
        mask=torch.rand(2, 1, 8, 8),
        held=held,
    )


def predict(family: Family, noised: Any, text: Conditioning, geometry: Tensor | None) -> Tensor:
    """The denoiser's answer, straight from the library's model, in double precision."""
    more: dict[str, Any] = {}
    if text.pooled is not None:
        more["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": geometry}
    answer: Tensor = family.denoiser(noised.input.double(), noised.times, text.hidden, **more).sample
    return answer


def by_hand(
    stepper: Stepper, frozen: Family, batch: MicroBatch, weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of the plain loss and of the term by part: two passes, each a row of plain formulas."""
    family, held = stepper.family, batch.held
    assert held is not None
    assert batch.mask is not None
    seed_step(5, 2)
    _, noised = draw(family, stepper.objective, batch)
    tokens = held.tokens or batch.tokens
    with torch.no_grad():
        answer = predict(frozen, noised, frozen.text.encode(tokens), batch.geometry)
    groups, gradients = stepper.network.groups, []
    for words, target, mask, weights in (
        (batch.tokens, noised.target, batch.mask, batch.weights),
        (tokens, answer, 1.0, held.weights * weight),
    ):
        for group in groups.values():
            group.zero_grad()
        own = predict(family, noised, family.text.encode(words), batch.geometry)
        rows = ((own - target.double()) ** 2 * mask).mean(dim=(1, 2, 3))
        (rows * noised.weights * weights).mean().backward()
        gradients.append({part: group.grad.clone() for part, group in groups.items()})
    return gradients[0], gradients[1]


CASES = [
    ("trigger=cat weight=1.5", False, True),
    ("trigger=cat weight=1.5", True, True),
    ("caption= te=0.25 unet=2", False, True),
    ("caption= te=0.25 unet=2", True, True),
    ("caption= unet=0 te=3", False, True),
    ("caption= te=0", False, True),
    ("weight=0.5", False, False),
    ("weight=0.5 te=0", False, False),
]


@pytest.mark.parametrize(("words", "apart", "other"), CASES)
def test_the_gradient_is_that_of_two_plain_passes(
    families: tuple[Family, Family], words: str, apart: bool, other: bool
) -> None:
    from lorapipe_engine.nn.attach import detach

    family, frozen = families
    stepper = stepper_of(family, words, apart=apart)
    try:
        tokens = family.text.tokenize(OTHER) if other else None
        batch = batch_of(family, Held(torch.tensor(WEIGHTS), tokens))
        assert stepper.preserving is not None
        asked = stepper.preserving.asked
        plain, term = by_hand(stepper, frozen, batch, asked.weight)
        seed_step(5, 2)
        stepper.begin()
        shares = stepper.hold(batch)
        assert bool((shares > 0).all())
        for part, group in stepper.network.groups.items():
            wanted = plain[part] + term[part] * (asked.unet if part == "unet" else asked.te)
            assert term[part].norm() > 1e-3 * plain[part].norm()
            assert (group.grad - wanted).norm() <= 1e-6 * wanted.norm(), part
    finally:
        detach(family.parts.values())


def test_the_network_is_off_for_the_base_alone(families: tuple[Family, Family]) -> None:
    from lorapipe_engine.nn.attach import detach

    family, frozen = families
    stepper = stepper_of(family, "caption=", apart=False)
    try:
        noisy, times = torch.randn(1, 4, 8, 8), torch.tensor([500])
        geometry = family.plain_geometry(1, 64, 64)
        with torch.no_grad():

            def answer(of: Family) -> Tensor:
                return of.predict(noisy, times, of.text.encode(of.text.tokenize(OWN[:1])), geometry)

            changed = answer(family)
            with stepper.network.off():
                assert torch.equal(answer(family), answer(frozen))
            assert torch.equal(answer(family), changed)
        assert not torch.equal(changed, answer(frozen))
    finally:
        detach(family.parts.values())


# ------------------------------------------------------------------------------------------------- runs

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_dim 2 --max_train_epochs 2 --train_batch_size 2 --unet_lr 1e-3 --seed 4 --quiet --state_interval 0 "
    "--shuffle_caption --caption_dropout_rate 0.2 --network_dropout 0.1"
)
TEXT = ["--text_encoder_lr", "1e-3"]
CACHED = ["--network_train_unet_only", "--cache_text_encoder_outputs"]
HOLD = ["--preserve", f"trigger={TRIGGER}", "class=1girl"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=4)


def run(data: Path, out: Path, *more: object) -> int:
    words = [*FIXED.split(), "--output_dir", str(out), *map(str, more)]
    if "--dataset_config" not in words:
        words += ["--train_data_dir", str(data)]
    return status_of(lora_train, *words)


def net(out: Path) -> dict[str, Tensor]:
    return load_file(out / "net.safetensors")


def is_same(one: Path, other: Path) -> bool:
    first, second = net(one), net(other)
    return all(torch.equal(first[key], second[key]) for key in first | second)


def held_at(out: Path) -> list[int]:
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "loss/preservation" in row]


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    assert run(data, out, *TEXT) == 0
    return out


def test_at_weight_0_the_run_is_the_plain_one(data: Path, plain: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, *TEXT, *HOLD, "weight=0") == 0
    assert is_same(plain, tmp_path)
    assert held_at(tmp_path) == []


def test_it_goes_on_bit_for_bit(data: Path, plain: Path, tmp_path: Path) -> None:
    """At one step in two, accumulated, recomputed, stopped between them."""
    words = [*TEXT, *HOLD, "every=2", "te=0.5", "--gradient_checkpointing", "--train_batch_size", "1"]
    calm, again = tmp_path / "calm", tmp_path / "again"
    words += ["--gradient_accumulation_steps", "2"]
    assert run(data, calm, *words) == 0
    assert held_at(calm) == [1, 3]
    assert not is_same(plain, calm)
    with stopped_after(2):
        assert run(data, again, *words) == 130
    assert run(data, again, *words) == 0
    assert is_same(calm, again)
    with open_tensors(again / "net.safetensors") as file:
        assert json.loads(file.metadata["ss_preserve"])[:2] == [f"trigger={TRIGGER}", "class=1girl"]


def test_cached_text_gives_what_encoded_text_gives(data: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("1girl, smile\n\n1boy, city\n", encoding="utf-8")
    fixed = ["--preserve", f"file={captions}", "--network_train_unet_only", "--caption_dropout_rate", "0"]
    fixed += ["--no_shuffle_caption"]
    assert run(data, tmp_path / "encoded", *fixed) == 0
    assert run(data, tmp_path / "cached", *fixed, "--cache_text_encoder_outputs") == 0
    # Several captions encoded at once round otherwise.
    for key, tensor in net(tmp_path / "encoded").items():
        torch.testing.assert_close(net(tmp_path / "cached")[key], tensor, rtol=1e-3, atol=2e-5)
    assert run(data, tmp_path / "varied", *CACHED, *HOLD) == 0
    captions.write_text("1boy, city\n", encoding="utf-8")
    assert run(data, tmp_path / "cached", *fixed, "--cache_text_encoder_outputs", "--overwrite") == 0


def test_marked_pictures_stay_what_the_base_makes_of_them(data: Path, tmp_path: Path) -> None:
    """Of a network that is trained for nothing but to stay, the base is left."""
    draw_concept(tmp_path / "more", TRIGGER, pictures=2, repeats=1, seed=5)
    config = tmp_path / "data.toml"
    rows = [
        ("train", f"{data}/1_{TRIGGER}", "false"),
        ("kept", f"{tmp_path}/more/1_{TRIGGER}", "true"),
    ]
    config.write_text(
        "[[datasets]]\n"
        + "".join(
            f"[[datasets.subsets]]\nimage_dir = '{path}'\nis_preserved = {mark}\n" for _, path, mark in rows
        ),
        encoding="utf-8",
    )
    assert run(data, tmp_path / "out", *TEXT, "--dataset_config", config, "--train_batch_size", "1") == 0
    lines = (tmp_path / "out" / "net.metrics.jsonl").read_text().splitlines()
    rows_of = [json.loads(line) for line in lines]
    still = [row for row in rows_of if row["loss/current"] == 0]
    assert len(still) == 2 * 2  # the marked pictures of two epochs: nothing is learned of them but to stay
    assert all(row["loss/preservation"] == 0 for row in rows_of if row["loss/current"] > 0)
    assert any(row["loss/preservation"] > 0 for row in still)
    with open_tensors(tmp_path / "out" / "net.safetensors") as file:
        subsets = json.loads(file.metadata["ss_datasets"])[0]["subsets"]
    assert [row.get("is_preserved", False) for row in subsets] == [False, True]


REFUSED = [
    (["trigger=nobody"], "no caption has the trigger 'nobody'"),
    ([f"trigger={TRIGGER}", f"class=a {TRIGGER.upper()}"], "has the trigger"),
    ([f"trigger={TRIGGER}", "caption="], "two ways to name captions"),
    (["weight=1"], "names no captions"),
    (["class=1girl"], "class= follows the trigger="),
    (["tigger=a"], "did you mean 'trigger'?"),
    (["caption=", "every=0"], "every takes a whole number of 1 or more"),
    (["caption=", "weight=-1"], "weight takes a number of 0 or more"),
    (["caption=", "te=0", "unet=0"], "no part is held"),
    (["file=there-is-none.txt"], "there-is-none.txt: cannot be read"),
    (["trigger"], "is not of the form name=value"),
    (["caption=", "unet=0", "--network_train_unet_only"], "unet=0 leaves out all that is trained (unet)"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[row[1][:20] for row in REFUSED])
def test_what_means_nothing_is_refused_in_one_line(
    words: list[str], told: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, "--preserve", *words) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("lora-train: error: ")]
    assert len(error) == 1
    assert told in error[0]
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--preserve", "trigger=nobody"], "no caption has the trigger"), (["--early_stop", "2"], "early_stop")],
)
def test_a_dry_run_finds_what_the_pictures_do_not_have(
    words: list[str], told: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, *words, "--dry_run") == 2
    assert told in capfd.readouterr().err


def test_held_captions_that_call_what_is_learned_are_told(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in FIXED.split() if word != "--quiet"]
    words += ["--train_data_dir", str(data), "--output_dir", str(tmp_path), "--dry_run", "--preserve"]
    for caption, told in ((f"caption={TRIGGER}, 1girl", True), ("caption=1girl", False)):
        with pytest.raises(SystemExit) as stop:
            lora_train.main([*words, caption])
        assert stop.value.code == 0
        line = f"preserve: the caption that is held has '{TRIGGER}' in it, as 4 of 4 captions of an epoch"
        assert (line in capfd.readouterr().err) == told


def test_what_every_step_holds_is_traced(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, *TEXT, *HOLD, "every=2", "--trace_steps", "1,2") == 0
    first, second = (load_file(tmp_path / "trace" / f"step-00000{step}.safetensors") for step in (1, 2))
    assert not any(".held." in name for name in first)
    difference = second["0.held.prediction"] - second["0.held.answer"]
    assert torch.allclose(second["0.held.losses"], difference.square().mean(dim=(1, 2, 3)), rtol=1e-4)
    assert not torch.equal(second["0.held.input_ids.te1"], second["0.input_ids.te1"])


def test_tokens_are_joined_row_by_row() -> None:
    from lorapipe_engine.train.families.text import Tokens

    one = Tokens((torch.ones(1, 3, dtype=torch.int64),), (torch.ones(1, 3),))
    two = replace(one, ids=(torch.zeros(2, 3, dtype=torch.int64),), weights=(torch.zeros(2, 3),))
    both = Tokens.joined([one, two])
    assert both.ids[0].tolist() == [[1] * 3, [0] * 3, [0] * 3]
    assert both.weights is not None
    assert both.weights[0].tolist() == [[1.0] * 3, [0.0] * 3, [0.0] * 3]
