"""Spectra of modules of every algorithm against the SVD of their dense change."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.delta import Array, dense_delta, loha
from lorapipe_engine.delta.spectra import kernel_of, module_spectrum, spectral_rule
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import open_tensors

NETWORKS = sorted((Path(__file__).parents[1] / "data/networks").glob("*.safetensors"))
NOT_SPECTRAL = ("oft", "ia3", "glora", "norm")


def network_modules(path: Path) -> dict[str, dict[str, Array]]:
    modules: dict[str, dict[str, Array]] = defaultdict(dict)
    with open_tensors(path) as file:
        for key in file.tensors:
            if key.startswith(("lora_unet_", "oft_unet_")):
                module, suffix = key.split(".", 1)
                modules[module][suffix] = file.read(key)
    return modules


SPECTRAL = [path for path in NETWORKS if not any(word in path.stem for word in NOT_SPECTRAL)]


@pytest.mark.parametrize("path", SPECTRAL, ids=lambda path: path.stem)
def test_spectrum_is_that_of_the_dense_change(path: Path) -> None:
    for name, tensors in network_modules(path).items():
        inner = {suffix: tensor for suffix, tensor in tensors.items() if suffix != "dora_scale"}
        dense = dense_delta(inner, name=name).weight
        assert dense is not None
        matrix = dense.reshape(dense.shape[0], -1)
        found = module_spectrum(name, tensors)
        expected = np.linalg.svd(matrix, compute_uv=False)
        assert found.limit <= len(expected)
        assert np.allclose(found.scale * found.spectrum.singular[: found.limit], expected[: found.limit])
        assert np.allclose(expected[found.limit :], 0, atol=1e-12)
        up, down = found.spectrum.truncate(found.limit)
        assert np.allclose(found.scale * up @ down, matrix, atol=1e-6 * expected[0])
        if "conv" in name:
            kernel = (3, 3) if "conv3x3" in name else (1, 1)
            assert found.kernel in (kernel, ()) if kernel == (1, 1) else found.kernel == kernel
        assert np.prod(found.down_shape(2)) == 2 * matrix.shape[1]
        assert found.up_shape(2)[:2] == (matrix.shape[0], 2)


@pytest.mark.parametrize("path", [p for p in NETWORKS if p not in SPECTRAL], ids=lambda path: path.stem)
def test_what_depends_on_the_base_has_none(path: Path) -> None:
    for name, tensors in network_modules(path).items():
        assert spectral_rule(name, tensors) is None
        with pytest.raises(InputError, match=f"module {name}: .*no low-rank form"):
            module_spectrum(name, tensors)


def test_loha_of_a_large_rank_goes_through_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(p for p in SPECTRAL if p.stem == "loha")
    for name, tensors in network_modules(path).items():
        factored = module_spectrum(name, tensors)
        monkeypatch.setattr(loha, "LARGEST_KHATRI_RAO", 3)
        dense = module_spectrum(name, tensors)
        monkeypatch.undo()
        limit = factored.limit
        assert np.allclose(dense.spectrum.singular[:limit], factored.spectrum.singular[:limit])
        assert dense.limit == limit
        assert dense.down_shape(4) == factored.down_shape(4)


def test_lokr_builds_only_the_vectors_asked_for() -> None:
    path = next(p for p in SPECTRAL if p.stem == "lokr_factor")
    for name, tensors in network_modules(path).items():
        found = module_spectrum(name, tensors, vectors=3)
        assert found.spectrum.down.shape[0] == 3
        assert len(found.spectrum.singular) == found.limit > 3


@pytest.mark.parametrize(
    ("name", "columns", "kernel"),
    [
        ("lora_unet_down_blocks_0_resnets_0_conv1", 2880, (3, 3)),
        ("lora_unet_up_blocks_1_upsamplers_0_conv", 2880, (3, 3)),
        ("lora_unet_input_blocks_3_0_op", 2880, (3, 3)),
        ("lora_unet_output_blocks_2_0_in_layers_2", 2880, (3, 3)),
        ("lora_unet_conv_in", 36, (3, 3)),
        ("lora_unet_out_2", 2880, (3, 3)),
        ("lora_unet_down_blocks_1_resnets_0_conv_shortcut", 320, (1, 1)),
        ("lora_unet_output_blocks_0_0_skip_connection", 2560, (1, 1)),
        ("lora_unet_mid_block_attentions_0_proj_in", 1280, ()),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, ()),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2", 1280, ()),
    ],
)
def test_kernels_are_known_by_name(name: str, columns: int, kernel: tuple[int, ...]) -> None:
    assert kernel_of(name, columns) == kernel


def test_diff_of_a_vector_has_no_spectrum() -> None:
    assert spectral_rule("x", {"diff": np.ones(4)}) is None
    assert spectral_rule("x", {"diff": (4, 3)}) is not None
    assert spectral_rule("x", {"diff_b": np.ones(4)}) is None


@pytest.mark.parametrize("names", [("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b")])
def test_values_too_large_for_float64_are_an_error(names: tuple[str, str]) -> None:
    """LAPACK may never come back from an infinite matrix."""
    huge = np.full((4, 4), 1e200)
    tensors = dict.fromkeys(names, huge)
    if names[0] == "hada_w1_a":
        tensors |= {"hada_w2_a": huge, "hada_w2_b": huge}
    with pytest.raises(InputError, match="too large for float64"):
        module_spectrum("lora_unet_x", tensors)
