"""Optimizers by name: arguments and rates checked before anything is loaded, and steps that are those of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lorapipe_engine.errors import ConfigError, LoraError, MissingExtra  # noqa: E402
from lorapipe_engine.nn.flat import FlatGroup  # noqa: E402
from lorapipe_engine.settings import OptimizerSettings  # noqa: E402
from lorapipe_engine.train.optimizers import (  # noqa: E402
    KINDS,
    Rates,
    alpha_note,
    build_optimizer,
    check_arguments,
    evaluating,
    known_names,
    optimizer_kind,
    parse_arguments,
    rate_notes,
    rates_in_force,
    rates_of,
    set_rates,
    write_rates,
)

SD1, SDXL = ("te1", "unet"), ("te1", "te2", "unet")
SHAPES = ((6, 40), (30, 6), (6, 10, 3, 3), (16, 6, 1, 1))


def usable(name: str) -> bool:
    """Whether the optimizer's package is installed here."""
    try:
        optimizer_kind(name).load()
    except MissingExtra:
        return False
    return True


def problem(seed: int = 0) -> tuple[dict[str, FlatGroup], dict[str, list[Any]]]:
    """Two flat groups, and the same values as plain tensors."""
    torch.manual_seed(seed)
    plain = {
        part: [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in SHAPES] for part in ("te1", "unet")
    }
    copies = {
        part: [torch.nn.Parameter(row.detach().clone()) for row in rows] for part, rows in plain.items()
    }
    return {part: FlatGroup(part, rows) for part, rows in plain.items()}, copies


def gradients(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(
    name: str, arguments: dict[str, Any], rates: dict[str, float], steps: int = 5
) -> tuple[dict[str, list[Any]], Any]:
    """The values after a few steps on flat buffers, and the optimizer."""
    groups, _ = problem()
    optimizer = build_optimizer(name, arguments, groups, Rates(rates))
    for step in range(steps):
        set_rates(optimizer, 1.0)
        for index, group in enumerate(groups.values()):
            for parameter, gradient in zip(group.parameters, gradients(10 * step + index), strict=True):
                parameter.grad.copy_(gradient)
        optimizer.step()
    return {
        part: [row.detach().clone() for row in group.parameters] for part, group in groups.items()
    }, optimizer


def train_plain(make: Any, rates: dict[str, float], steps: int = 5) -> dict[str, list[Any]]:
    """The same with an optimizer made by ``make`` on the single tensors, as other trainers use it."""
    _, copies = problem()
    rows = [
        {"params": copies[part], **({} if rate is None else {"lr": rate})} for part, rate in rates.items()
    ]
    optimizer = make(rows)
    for step in range(steps):
        for index, part in enumerate(copies):
            for parameter, gradient in zip(copies[part], gradients(10 * step + index), strict=True):
                parameter.grad = gradient.clone()
        optimizer.step()
    return {part: [row.detach() for row in rows] for part, rows in copies.items()}


def same(found: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    for part, rows in expected.items():
        for mine, other in zip(found[part], rows, strict=True):
            torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-7)


# --------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("name", known_names())
def test_every_optimizer_of_the_table_trains(name: str) -> None:
    if not usable(name):
        pytest.skip("its package is not installed")
    arguments = check_arguments(name, [])
    groups, _ = problem()
    optimizer = build_optimizer(name, arguments, groups, Rates({"te1": 0.5, "unet": 0.5}))
    before = {part: group.parameter.detach().clone() for part, group in groups.items()}
    for step in range(8):  # some do nothing in their first steps
        set_rates(optimizer, 0.5 if step else 1.0)
        for group in groups.values():
            for parameter, gradient in zip(group.parameters, gradients(step), strict=True):
                parameter.grad.copy_(gradient)
        optimizer.step()
    for part, group in groups.items():
        assert torch.isfinite(group.parameter).all()
        assert not torch.equal(group.parameter, before[part])
        # The single tensors are still views of the flat buffer.
        assert group.parameters[0].data_ptr() == group.parameter.data_ptr()
    assert {"lr/te1", "lr/unet"} <= set(rates_in_force(optimizer))


def test_adamw_has_two_rates() -> None:
    rates = {"te1": 1e-2, "unet": 3e-3}
    found, _ = train("AdamW", check_arguments("AdamW", ["betas=0.9,0.99"]), rates)
    same(
        found, train_plain(lambda rows: torch.optim.AdamW(rows, betas=(0.9, 0.99), weight_decay=0.01), rates)
    )


def test_adafactor_is_that_of_single_tensors() -> None:
    from transformers.optimization import Adafactor

    found, optimizer = train("AdaFactor", check_arguments("AdaFactor", []), {"te1": 1.0, "unet": 1.0})
    same(found, train_plain(lambda rows: Adafactor(rows), {"te1": None, "unet": None}))
    size = found["unet"][0].square().mean().sqrt().item()
    assert rates_in_force(optimizer)["lr/unet"] == pytest.approx(1e-2 * size, rel=0.05)


def test_adafactor_takes_two_rates_if_told() -> None:
    from transformers.optimization import Adafactor

    rates = {"te1": 1e-3, "unet": 2e-3}
    words = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    found, _ = train("AdaFactor", check_arguments("adafactor", words), rates)
    same(
        found,
        train_plain(lambda rows: Adafactor(rows, relative_step=False, scale_parameter=False), rates),
    )


def test_prodigy_is_that_of_single_tensors() -> None:
    ported = pytest.importorskip("pytorch_optimizer")
    arguments = {"d_coef": 2.0, "weight_decay": 0.01, "bias_correction": True, "safeguard_warmup": True}
    assert check_arguments("Prodigy", []) == {**arguments, "weight_decouple": True}
    found, optimizer = train("Prodigy", check_arguments("Prodigy", []), {"te1": 1.0, "unet": 1.0})
    same(found, train_plain(lambda rows: ported.Prodigy(rows, **arguments), {"te1": 1.0, "unet": 1.0}))
    logged = rates_in_force(optimizer)
    assert logged["lr/d*lr/unet"] == logged["lr/d*lr/te1"] > 0
    assert logged["lr/unet"] == 1.0


def test_eight_bits_are_close_to_thirty_two() -> None:
    pytest.importorskip("bitsandbytes")
    rates = {"te1": 1e-3, "unet": 1e-3}
    start = {part: [row.detach() for row in rows] for part, rows in problem()[1].items()}
    exact, _ = train("AdamW", check_arguments("AdamW", []), rates)
    rough, _ = train("AdamW8bit", check_arguments("AdamW8bit", ["min_8bit_size=64"]), rates)
    for part, rows in exact.items():
        for mine, other, first in zip(rough[part], rows, start[part], strict=True):
            assert (mine - other).norm() < 0.1 * (other - first).norm()


def test_rates_are_written_in_place_where_they_are_tensors() -> None:
    groups, _ = problem()
    optimizer = build_optimizer("AdamW", {}, groups, Rates({"te1": 1e-3, "unet": 2e-3}))
    places = [row["lr"] for row in optimizer.param_groups]
    write_rates(optimizer, [5e-4, 7e-4])
    assert [row["lr"] for row in optimizer.param_groups] == places
    assert [float(place) for place in places] == pytest.approx([5e-4, 7e-4])


def test_a_part_with_rate_zero_is_left_out() -> None:
    groups, _ = problem()
    optimizer = build_optimizer("AdamW", {}, groups, Rates({"te1": 0.0, "unet": 2e-3}))
    assert [row["part"] for row in optimizer.param_groups] == ["unet"]


def test_averaging_optimizers_show_other_weights_than_they_train() -> None:
    pytest.importorskip("pytorch_optimizer")
    groups, _ = problem()
    optimizer = build_optimizer("AdamWScheduleFree", {}, groups, Rates({"te1": 1e-2, "unet": 1e-2}))
    for step in range(3):
        for group in groups.values():
            group.grad.copy_(torch.randn(group.grad.shape, generator=torch.Generator().manual_seed(step)))
        optimizer.step()
    trained = groups["unet"].parameter.detach().clone()
    with evaluating(optimizer):
        shown = groups["unet"].parameter.detach().clone()
    assert (shown - trained).norm() > 1e-3
    torch.testing.assert_close(groups["unet"].parameter.detach(), trained, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- names


GUIDES = (
    *("AdamW", "AdamW8bit", "Lion", "Lion8bit", "SGDNesterov", "SGDNesterov8bit", "AdaFactor", "Prodigy"),
    *("DAdaptation", "DAdaptAdamPreprint", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptAdanIP"),
    *("DAdaptLion", "DAdaptSGD"),
)


def test_every_name_of_the_guide_is_known() -> None:
    assert tuple(optimizer_kind(name.lower()).name for name in GUIDES) == GUIDES


@pytest.mark.parametrize("name", ["adamw", "ADAMW", "AdamW"])
def test_case_does_not_matter(name: str) -> None:
    assert optimizer_kind(name).name == "AdamW"


def test_classes_of_torch_and_by_path() -> None:
    assert optimizer_kind("RAdam").path == "torch.optim:RAdam"
    assert optimizer_kind("torch.optim.NAdam").path == "torch.optim:NAdam"
    assert optimizer_kind("torch.optim:NAdam").rate == 2e-3
    assert not optimizer_kind("Adam").by_tensor
    assert optimizer_kind("torch.optim.Adafactor").by_tensor


def test_classes_of_pytorch_optimizer() -> None:
    pytest.importorskip("pytorch_optimizer")
    assert optimizer_kind("CAME").path == "pytorch_optimizer:CAME"
    found, _ = train("came", check_arguments("CAME", []), {"te1": 1e-3, "unet": 1e-3})
    assert all(torch.isfinite(row).all() for row in found["unet"])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("AdamV", "AdamW"),
        ("Prodgy", "Prodigy"),
        ("LBFGS", "several times"),
        ("torch.optim.SparseAdam", "dense"),
        ("torch.nn.Linear", "not an optimizer"),
        ("torch.optim.Nothing", "no class 'Nothing'"),
        ("..", "module.Class"),
        ("no_such_package.Adam", "by its own instructions"),
        ("LoraEasyCustomOptimizer.none.None_", "LoRA_Easy_Training_Scripts alone"),
    ],
)
def test_names_that_are_none(name: str, word: str) -> None:
    with pytest.raises(LoraError, match=word) as error:
        optimizer_kind(name)
    assert "\n" not in str(error.value)


def test_optimizers_that_wrap_others() -> None:
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ConfigError, match="wraps another"):
        optimizer_kind("pytorch_optimizer.Lookahead")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtra, match="pip install"):
        check_arguments("AdamW8bit", ["min_8bit_size=64"])


# ----------------------------------------------------------------------------------------------- arguments


def test_arguments_are_literals() -> None:
    words = ["betas=.9,.99", "decouple=True", "name=x=y", "growth_rate=inf", "eps = None", "foreach=false"]
    assert parse_arguments(words) == {
        "betas": (0.9, 0.99),
        "decouple": True,
        "name": "x=y",
        "growth_rate": float("inf"),
        "eps": None,
        "foreach": False,
    }


def test_the_guides_arguments_are_for_those_who_give_none() -> None:
    pytest.importorskip("pytorch_optimizer")
    assert check_arguments("DAdaptAdam", []) == {
        "weight_decouple": True,
        "weight_decay": 0.01,
        "betas": (0.9, 0.99),
    }
    assert check_arguments("DAdaptAdam", ["decouple=True"]) == {"weight_decouple": True}
    assert check_arguments("AdamW", [])["weight_decay"] == 0.01
    assert check_arguments("AdamW", ["weight_decay=0.01", "betas=0.9,0.999"])["betas"] == (0.9, 0.999)
    # What sd-scripts always sets stays set.
    assert check_arguments("SGDNesterov", ["weight_decay=0.1"])["momentum"] == 0.9
    assert check_arguments("DAdaptLion", ["log_every=5"]) == {"betas": (0.9, 0.99), "weight_decouple": True}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("AdamW", ["weight_decy=0.1"], "did you mean weight_decay"),
        ("AdamW", ["zzz=1"], "it takes betas"),
        ("AdamW", ["weight_decay=much"], "takes a number, not 'much'"),
        ("AdamW", ["amsgrad=1"], "True or False"),
        ("AdamW", ["betas=0.9"], "2 numbers"),
        ("AdamW", ["betas=0.9,1.5"], "beta"),
        ("AdamW", ["lr=1e-3"], "learning_rate"),
        ("AdamW", ["weight_decay"], "name=value"),
        ("AdamW", ["eps=1e-8", "eps=1e-6"], "twice"),
        ("AdaFactor", ["warmup_init=True", "relative_step=False"], "relative_step"),
    ],
)
def test_wrong_arguments(name: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_arguments(name, words)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("settings", "parts", "rates"),
    [
        (OptimizerSettings(), SD1, (5e-5, 1e-4)),
        (OptimizerSettings(), SDXL, (0, 0, 1e-4)),
        (OptimizerSettings(unet_lr=2e-4), SD1, (1e-4, 2e-4)),
        (OptimizerSettings(learning_rate=2e-4), SD1, (2e-4, 2e-4)),
        (OptimizerSettings(learning_rate=2e-4), SDXL, (2e-4, 2e-4, 2e-4)),
        (OptimizerSettings(learning_rate=1e-4, text_encoder_lr=(0.0,)), SD1, (0, 1e-4)),
        (OptimizerSettings(unet_lr=1e-4, text_encoder_lr=(1e-5,)), SDXL, (1e-5, 1e-5, 1e-4)),
        # As a GUI writes the one rate of any model.
        (OptimizerSettings(unet_lr=1e-4, text_encoder_lr=(1e-5, 1e-5)), SD1, (1e-5, 1e-4)),
        (OptimizerSettings(unet_lr=1e-4, text_encoder_lr=(1e-5, 2e-5)), SDXL, (1e-5, 2e-5, 1e-4)),
        (OptimizerSettings(optimizer_type="Lion"), SD1, (5e-6, 1e-5)),
        (OptimizerSettings(optimizer_type="Prodigy"), SD1, (1.0, 1.0)),
        (OptimizerSettings(optimizer_type="Prodigy", text_encoder_lr=(0.0,)), SD1, (0.0, 1.0)),
        (OptimizerSettings(optimizer_type="DAdaptAdam"), ("unet",), (1.0,)),
        (OptimizerSettings(text_encoder_lr=(1e-5,)), ("unet",), (1e-4,)),
    ],
)
def test_rates_by_part(settings: OptimizerSettings, parts: tuple[str, ...], rates: tuple[float, ...]) -> None:
    found = rates_of(settings, parts)
    assert tuple(found.by_part.values()) == rates
    assert found.trained == tuple(part for part, rate in zip(parts, rates, strict=True) if rate)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (OptimizerSettings(optimizer_type="Prodigy", unet_lr=1.0, text_encoder_lr=(0.5,)), "must be equal"),
        (OptimizerSettings(optimizer_type="DAdaptLion", unet_lr=0.5), "must be equal"),
        (OptimizerSettings(text_encoder_lr=(1e-5, 2e-5)), "2 rates, but this model has 1 text encoder"),
        (OptimizerSettings(learning_rate=0.0), "nothing would be trained"),
    ],
)
def test_rates_that_cannot_be(settings: OptimizerSettings, word: str) -> None:
    if word == "must be equal" and settings.text_encoder_lr == ():
        settings = OptimizerSettings(
            optimizer_type=settings.optimizer_type, unet_lr=0.5, text_encoder_lr=(1.0,)
        )
    with pytest.raises(ConfigError, match=word):
        rates_of(settings, SD1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (OptimizerSettings(), None),
        (OptimizerSettings(learning_rate=1e-3), None),
        (OptimizerSettings(learning_rate=1.0), ("too high for AdamW", "Prodigy")),
        (OptimizerSettings(optimizer_type="Prodigy", learning_rate=1e-4), ("too low for Prodigy",)),
        (OptimizerSettings(optimizer_type="Lion", learning_rate=1e-3), ("too high for Lion", "1e-05")),
        (OptimizerSettings(optimizer_type="AdaFactor", learning_rate=1e-4), ("relative_step=False",)),
        (OptimizerSettings(optimizer_type="SGDNesterov8bit"), ("no Nesterov",)),
    ],
)
def test_notes_about_rates(settings: OptimizerSettings, words: tuple[str, ...] | None) -> None:
    kind = optimizer_kind(settings.optimizer_type)
    notes = rate_notes(settings, kind.always, rates_of(settings, SD1))
    if words is None:
        assert notes == []
    else:
        assert len(notes) == 1
        assert all(word in notes[0] for word in words)


def test_a_low_alpha_is_noted_for_estimating_optimizers_only() -> None:
    assert alpha_note(KINDS["adamw"], 1, 64) is None
    assert alpha_note(KINDS["prodigy"], 16, 64) is None
    assert str(alpha_note(KINDS["prodigy"], 8, 64)).endswith("raise alpha, or lower d_coef")
    # DAdaptAdam has no d_coef.
    assert "lower learning_rate" in str(alpha_note(KINDS["dadaptadam"], 8, 64))


def test_the_page_names_every_optimizer() -> None:
    page = (Path(__file__).parents[3] / "docs/optimizers.md").read_text(encoding="utf-8")
    assert [name for name in known_names() if f"`{name}`" not in page] == []
