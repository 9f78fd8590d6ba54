"""Configurations of real users on a card, as they stand: no option is changed but where the results go.

``pytest -s --durations=0 tests/engine/train/test_configurations_gpu.py`` trains them one after another in a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from click.testing import CliRunner  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from support.configurations import LEFT_OPEN, Place, make_place  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Of each kind of network, optimizer and file, those of the fewest steps: 2 to 256.
PLAIN = (
    *("c001", "c012", "c025", "c037", "c049", "c052", "c057", "c064"),
    *("c079", "c091", "c106", "c111", "c112"),
)
IN_8_BITS = ("c016", "c031", "c073", "c108", "c114")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("configurations"), side=768)


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place.root)
    yield
    for path in place.root.glob("OUT/*.safetensors"):
        path.unlink()


@pytest.mark.parametrize("name", [*PLAIN, *IN_8_BITS])
def test_trains_as_it_stands(name: str, place: Place) -> None:
    if name in IN_8_BITS and find_spec("bitsandbytes") is None:
        pytest.skip("its optimizer needs bitsandbytes")
    out = place.root / "OUT" / name
    more = [*LEFT_OPEN.get(name, []), "--output_dir", str(out)]
    done = CliRunner().invoke(lora_train, [*place.words(name), *more])
    assert done.exit_code == 0, done.stderr[-2000:]
    assert list(out.glob("*.safetensors"))
    (metrics,) = out.glob("*.metrics.jsonl")
    losses = [json.loads(line).get("loss/current") for line in metrics.read_text().splitlines()]
    print(f"\n{name}: {len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    assert all(0 < loss < 10 for loss in losses if loss is not None)
