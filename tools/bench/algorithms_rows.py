"""The rows of algorithms.py: each algorithm in the words of lora-train, and in those of LyCORIS where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from train import Workload

# LyCORIS' presets of these names choose other layers in its release 4.1.3; so the layers are said outright.
ATTENTION: Mapping[str, Any] = {
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel"],
    "unet_target_name": [],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
    "module_algo_map": {},
    "name_algo_map": {},
    "use_fnmatch": False,
    "exclude_name": [],
}
WITH_CONV: Mapping[str, Any] = {
    **ATTENTION,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
}
SCALED: Mapping[str, Any] = {
    **ATTENTION,
    "unet_target_module": [],
    "unet_target_name": [".*to_k", ".*to_v", ".*ff[.]net[.]2"],
    "text_encoder_target_module": [],
    "text_encoder_target_name": [".*k_proj", ".*v_proj", ".*fc2"],
}
DEFAULT, BYPASS = "default", "bypass"


@dataclass(frozen=True)
class Entry:
    """An algorithm. ``algorithm``, ``dim`` and ``args`` as lora-train takes them; ``goal``: how many times LoRA's step
    its own may take. ``peer``: LyCORIS' arguments, None where it has no such algorithm; ``layers``: its preset.
    """

    name: str
    algorithm: str = "lora"
    dim: Callable[[Workload], int] = lambda work: work.rank
    args: Callable[[Workload], tuple[str, ...]] = lambda _work: ()
    goal: float | None = None
    peer: Callable[[Workload], Mapping[str, Any]] | None = None
    layers: Mapping[str, Any] = field(default_factory=lambda: ATTENTION)


def conv_dim(work: Workload) -> int:
    """Half of the rank: 32 in A, 16 in C."""
    return max(1, work.rank // 2)


def _fixed(dim: int) -> Callable[[Workload], int]:
    return lambda _work: dim


def _args(*words: str) -> Callable[[Workload], tuple[str, ...]]:
    return lambda _work: words


def _algo(algo: str, **more: Any) -> Callable[[Workload], Mapping[str, Any]]:
    return lambda _work: {"algo": algo, **more}


# The first is the control, which is measured again at the end.
ENTRIES: tuple[Entry, ...] = (
    Entry("lora", peer=_algo("lora")),
    Entry(
        "locon",
        args=lambda work: (f"conv_dim={conv_dim(work)}", f"conv_alpha={conv_dim(work) / 2}"),
        goal=1.15,
        peer=lambda work: {"algo": "locon", "conv_dim": conv_dim(work)},
        layers=WITH_CONV,
    ),
    Entry(
        "dora", args=_args("dora_wd=True"), goal=1.25, peer=_algo("lora", dora_wd=True, wd_on_output=False)
    ),
    Entry(
        "dora, by outputs",
        args=_args("dora_wd=True", "wd_on_output=True"),
        goal=1.25,
        peer=_algo("lora", dora_wd=True),
    ),
    Entry("dylora", "dylora", args=_args("unit=4"), goal=1.15, peer=_algo("dylora", block_size=4)),
    Entry("lora_fa", "lora_fa"),
    Entry("loha", "loha", dim=_fixed(8), goal=1.5, peer=_algo("loha")),
    Entry("lokr", "lokr", dim=_fixed(16), args=_args("factor=8"), goal=1.25, peer=_algo("lokr", factor=8)),
    Entry("ia3", "ia3", goal=1.15, peer=_algo("ia3"), layers=SCALED),
    Entry("norm layers", args=_args("train_norm=True"), goal=1.15, peer=_algo("lora", train_norm=True)),
    Entry("full", "full", goal=1.7, peer=_algo("full")),
    Entry("oft", "oft", dim=_fixed(8), peer=_algo("diag-oft")),
    Entry("boft", "boft", dim=_fixed(10), peer=_algo("boft")),
)
# Under magnitudes LyCORIS' bypass computes the change without them, which is another network; full has none.
NO_BYPASS = frozenset({"dora", "dora, by outputs", "full"})


def modes_of(entry: Entry) -> tuple[str, ...]:
    """How LyCORIS is asked to compute an algorithm."""
    return () if entry.peer is None else (DEFAULT,) if entry.name in NO_BYPASS else (DEFAULT, BYPASS)
