"""Which timesteps are drawn for noise and v prediction, which train the text encoders, and the loss of each tenth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.families.text import Conditioning  # noqa: E402
from lorapipe_engine.train.objective.diffusion import Diffusion  # noqa: E402
from lorapipe_engine.train.objective.flow import Flow  # noqa: E402
from lorapipe_engine.train.processes import ALONE  # noqa: E402
from lorapipe_engine.train.step.forward import trained_at  # noqa: E402
from lorapipe_engine.train.step.time_bins import TimeBins  # noqa: E402

pytestmark = pytest.mark.torch
COUNT = 4000


def times(options: LossSettings, kind: type[Diffusion | Flow] = Diffusion) -> torch.Tensor:
    torch.manual_seed(1)
    return kind(options).draw(torch.zeros(COUNT, 4, 1, 1)).times


def test_what_is_not_asked_for_is_drawn_as_ever() -> None:
    torch.manual_seed(1)
    torch.randn(COUNT, 4, 1, 1)
    as_ever = torch.randint(0, 1000, (COUNT,))
    assert torch.equal(times(LossSettings()), as_ever)
    assert torch.equal(times(LossSettings(timestep_sampling="uniform")), as_ever)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"timestep_sampling": "sigmoid"}, 480, 520),
        ({"timestep_sampling": "logit_normal", "logit_mean": 1.0, "logit_std": 0.5}, 700, 740),
        ({"timestep_sampling": "logit_normal", "logit_mean": -1.0}, 290, 320),
        ({"timestep_sampling": "shift", "discrete_flow_shift": 3.0}, 660, 720),
        ({"timestep_curve": ("0:0", "1000:1")}, 650, 680),
    ],
)
def test_the_mean_follows_the_distribution(options: dict[str, object], low: int, high: int) -> None:
    drawn = times(LossSettings(**options))  # type: ignore[arg-type]
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert low <= drawn.float().mean() <= high


@pytest.mark.parametrize("options", [{"timestep_sampling": "sigmoid"}, {"timestep_curve": ("0:1",)}])
@pytest.mark.parametrize("kind", [Diffusion, Flow])
def test_all_stay_in_the_range(options: dict[str, object], kind: type[Diffusion | Flow]) -> None:
    drawn = times(LossSettings(min_timestep=300, max_timestep=400, **options), kind)  # type: ignore[arg-type]
    assert drawn.min() >= 300
    assert drawn.max() <= 400
    assert drawn.float().std() > 10


def test_a_curve_draws_by_its_weights() -> None:
    for kind in (Diffusion, Flow):
        drawn = times(
            LossSettings(timestep_curve=("99:0", "100:1", "199:1", "200:3", "299:3", "300:0")), kind
        )
        assert drawn.min() >= 100
        assert drawn.max() <= 300
        assert (drawn >= 200).float().mean() == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ConfigError, match="no weight between"):
        Diffusion(LossSettings(timestep_curve=("0:1", "10:0"), min_timestep=500))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timestep_sampling": "sigma"}, "sigma is for flow models"),
        ({"weighting_scheme": "cosmap"}, "give --flow_model if it is one"),
        ({"text_encoder_min_timestep": 600, "max_timestep": 500}, "no timestep is trained"),
        ({"text_encoder_min_timestep": 600, "text_encoder_max_timestep": 500}, "no timestep is trained"),
    ],
)
def test_what_this_base_has_no_use_for(options: dict[str, object], word: str) -> None:
    loss = LossSettings(**options)  # type: ignore[arg-type]
    assert Diffusion.check(loss, None) == []  # the base may be one of flow
    with pytest.raises(ConfigError, match=word):
        Diffusion.check(loss, "epsilon")


def test_text_encoders_learn_from_their_own_range_alone() -> None:
    leaf = torch.randn(3, 2, 4, requires_grad=True)
    pooled = torch.randn(3, 5, requires_grad=True)
    options = LossSettings(text_encoder_min_timestep=300, text_encoder_max_timestep=600)
    text = trained_at(Conditioning(leaf * 1, pooled * 1), torch.tensor([299, 300, 600]), options)
    assert torch.equal(text.hidden, leaf)
    assert text.pooled is not None
    (text.hidden.sum() + text.pooled.sum()).backward()
    assert leaf.grad is not None
    assert pooled.grad is not None
    assert leaf.grad.sum((1, 2)).tolist() == [0, 8, 0]
    assert pooled.grad.sum(1).tolist() == [0, 5, 0]
    whole = Conditioning(leaf)
    assert trained_at(whole, torch.tensor([1, 2, 3]), LossSettings()) is whole


def test_losses_are_added_up_by_tenths() -> None:
    bins = TimeBins(1000, torch.device("cpu"))
    bins.add(torch.tensor([0, 99, 500]), torch.tensor([1.0, 2.0, 4.0]))
    bins.add(torch.tensor([999.9, 1000.0]), torch.tensor([1.0, 2.0]))
    other = TimeBins(1000, torch.device("cpu"))
    other.restore(bins.sums.tolist())
    wanted = {"loss/timesteps/000-099": 1.5, "loss/timesteps/500-599": 4.0, "loss/timesteps/900-999": 1.5}
    assert bins.take(ALONE) == other.take(ALONE) == wanted
    assert bins.take(ALONE) == {}


def test_a_run_records_them_and_curves_show_them(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from lorapipe_inspect.commands.curves import command

    draw_concept(tmp_path / "pictures", "mirelune", pictures=2, repeats=1, seed=1)
    words = (
        f"--base demo --train_data_dir {tmp_path}/pictures --output_dir {tmp_path} --output_name net --quiet"
    )
    words += " --resolution 64 --device cpu --network_dim 2 --max_token_length 75 --max_train_steps 2"
    words += " --timestep_curve 200:1 299:1 300:0 --text_encoder_min_timestep 250 --min_timestep 200"
    with pytest.raises(SystemExit) as stop:
        lora_train.main(words.split())
    assert stop.value.code == 0
    rows = [json.loads(line) for line in (tmp_path / "net.metrics.jsonl").read_text().splitlines()]
    tags = {name for row in rows for name in row if name.startswith("loss/timesteps/")}
    assert tags == {"loss/timesteps/200-299"}
    mean = sum(row["loss/current"] for row in rows) / 2
    assert rows[-1]["loss/timesteps/200-299"] >= mean * (1 - 1e-6)  # before min-SNR's weights
    shown = CliRunner().invoke(command, [str(tmp_path / "net.metrics.jsonl"), "--only", "timesteps"])
    assert shown.exit_code == 0, shown.output
    assert "loss by timestep" in shown.output
