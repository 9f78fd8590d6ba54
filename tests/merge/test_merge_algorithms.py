"""Every algorithm of the golden networks merged into a checkpoint, whole and in pieces of rows."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.checkpoints.opened import open_base
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_merge.checkpoint.change import changes_of, piece_rows
from lorapipe_merge.matching import Applied, match

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NETWORKS = Path(__file__).resolve().parents[1] / "data" / "networks"
BLOCK = "model.diffusion_model.input_blocks"
# Layers of the golden networks -> layers of SD 1.x: in the checkpoint, and in names of networks.
LAYERS = {
    "linear": (
        f"{BLOCK}.1.1.transformer_blocks.0.ff.net.2",
        "down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2",
    ),
    "conv3x3": (f"{BLOCK}.4.0.in_layers.2", "down_blocks_1_resnets_0_conv1"),
    "conv1x1": (f"{BLOCK}.4.0.skip_connection", "down_blocks_1_resnets_0_conv_shortcut"),
    "layernorm": (
        f"{BLOCK}.1.1.transformer_blocks.0.norm1",
        "down_blocks_0_attentions_0_transformer_blocks_0_norm1",
    ),
    "groupnorm": (f"{BLOCK}.4.0.in_layers.0", "down_blocks_1_resnets_0_norm1"),
}


def build(golden: Path, folder: Path) -> dict[str, np.ndarray]:
    """Write base.safetensors and net.safetensors into ``folder``; the golden changes by checkpoint key."""
    base = {
        f"{BLOCK}.1.1.transformer_blocks.0.attn2.to_k.weight": np.ones((4, 768), np.float32),
        f"{BLOCK}.3.0.op.weight": np.ones((4, 4, 3, 3), np.float32),
    }
    network, deltas = {}, {}
    with open_tensors(golden) as file:
        for key in file.tensors:
            values = file.read(key)
            kind, layer, *rest = key.split(".")
            if kind == "base":
                base[f"{LAYERS[layer][0]}.{rest[0]}"] = values
            elif layer in LAYERS and rest[0].startswith("delta"):
                suffix = "bias" if rest[0] == "delta_b" else "weight"
                deltas[".".join([f"{LAYERS[layer][0]}.{suffix}", *rest[1:]])] = values
            else:
                prefix, name = kind.rsplit("_", 1)
                network[".".join([f"{prefix}_{LAYERS[name][1]}", layer, *rest])] = values
    write_tensors(folder / "base.safetensors", base)
    write_tensors(folder / "net.safetensors", network)
    return deltas


GOLDEN = sorted(NETWORKS.glob("*.safetensors"))


@pytest.mark.table
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_every_algorithm(golden: Path, merge: Run, tmp_path: Path) -> None:
    deltas = build(golden, tmp_path)
    ratio = "0.7" if any(key.endswith(".m0.7") for key in deltas) else "1"
    done = merge("base.safetensors", f"net.safetensors:{ratio}", "-o", "out.safetensors", "--verify")
    assert done.returncode == 0, done.stderr
    ending = {"0.7": ".m0.7", "1": ""}[ratio]
    with (
        open_tensors(tmp_path / "base.safetensors") as base,
        open_tensors(tmp_path / "out.safetensors") as out,
    ):
        checked = 0
        for key in base.tensors:
            if key + ending in deltas:
                wanted = deltas[key + ending].reshape(base.tensors[key].shape)
                moved = out.read(key).astype(np.float64) - base.read(key)
                # The result is float32: one rounding of W + ΔW beside the golden tolerance.
                bound = 3e-5 * np.abs(wanted).max() + 1.2e-7 * np.abs(out.read(key)).max()
                assert np.abs(moved - wanted).max() <= bound, key
                checked += 1
            else:
                assert out.raw(key) == base.raw(key), key
    assert (
        checked == len([key for key in deltas if key.endswith(ending) and (ending or ".m" not in key)])
        or checked
    )


@pytest.mark.table
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_pieces_of_rows_give_the_whole(golden: Path, tmp_path: Path) -> None:
    build(golden, tmp_path)
    with (
        open_base(str(tmp_path / "base.safetensors")) as base,
        open_tensors(tmp_path / "net.safetensors") as file,
    ):
        applied = Applied(file, describe_network(file), 0.7, "net", "")
        found = match(base, [applied], None)
        assert not found.unmatched
        for (number, key), contributions in found.changes.items():
            values = base.files[number].weights.read(key)
            weight = values.reshape(values.shape[0], -1)
            changes = changes_of(contributions, values.shape, np.float64)
            whole, pieces = np.zeros(weight.shape), np.zeros(weight.shape)
            for change in changes:
                change.rows(0, len(weight), weight, whole)
            step = piece_rows(changes, len(weight), weight.shape[1], 1)
            for start in range(0, len(weight), step):
                rows = slice(start, min(start + step, len(weight)))
                for change in changes:
                    change.rows(rows.start, rows.stop, weight[rows], pieces[rows])
            np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-12 + 1e-6 * np.abs(whole).max())
