"""Mutated names and configurations: each file is read right or refused in one line, never with a wrong number.

What a file means is read here once more, by tables written out for this test and numpy alone. Files are drawn by seed:
``LORAPIPE_MUTATIONS=2000 pytest tests/weights/test_mutations.py`` tries that many, by default there are 200.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import random
import re
import string
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors
from lorapipe_merge.networks.merge import merge_networks
from support.sums import wishes

COUNT = int(os.environ.get("LORAPIPE_MUTATIONS", "200"))
GROUPS = 20
Array = NDArray[Any]


def layers() -> Iterator[tuple[str, str, tuple[int, int], int]]:
    """Part, path, size and kernel of layers of SD 1.x, narrow."""
    blocks = [
        f"{side}_blocks.{n}.attentions.{a}"
        for side, n in (("down", 0), ("down", 1), ("up", 3))
        for a in (0, 1)
    ]
    for block in [*blocks, "mid_block.attentions.0"]:
        yield "unet", f"{block}.proj_in", (8, 8), 1
        for attention, width in (("attn1", 8), ("attn2", 12)):
            for name in ("to_q", "to_k", "to_v"):
                columns = 8 if name == "to_q" else width
                yield "unet", f"{block}.transformer_blocks.0.{attention}.{name}", (8, columns), 0
            yield "unet", f"{block}.transformer_blocks.0.{attention}.to_out.0", (8, 8), 0
        yield "unet", f"{block}.transformer_blocks.0.ff.net.2", (8, 32), 0
    for block in ("down_blocks.0.resnets.0", "down_blocks.1.resnets.1", "up_blocks.2.resnets.0"):
        yield "unet", f"{block}.conv1", (8, 8), 3
        yield "unet", f"{block}.time_emb_proj", (8, 16), 0
    for number in range(12):
        for name, size in (
            ("self_attn.q_proj", (12, 12)),
            ("self_attn.out_proj", (12, 12)),
            ("mlp.fc1", (20, 12)),
        ):
            yield "te", f"text_model.encoder.layers.{number}.{name}", size, 0


LAYERS = list(layers())


def kohya(part: str, path: str) -> str:
    return f"lora_{'unet' if part == 'unet' else 'te'}_{path.replace('.', '_')}"


def peft(side: str) -> str:
    return f"lora_{'A' if side == 'down' else 'B'}"


def old(part: str, path: str) -> str:
    """diffusers 0.20, without its suffix."""
    if part != "unet":
        return f"text_encoder.{path}.lora_linear_layer"
    head, _, projection = path.rpartition(".to_")
    return f"unet.{head}.processor.to_{projection.removesuffix('.0')}_lora" if head else f"unet.{path}.lora"


SCHEMES: dict[str, Any] = {
    "kohya": lambda part, path, side: f"{kohya(part, path)}.lora_{side}.weight",
    "kohya with PEFT's factors": lambda part, path, side: f"{kohya(part, path)}.{peft(side)}.weight",
    "diffusers": lambda part, path, side: (
        f"{'unet' if part == 'unet' else 'text_encoder'}.{path}.{peft(side)}.weight"
    ),
    "old": lambda part, path, side: f"{old(part, path)}.{side}.weight",
    "peft": lambda _part, path, side: f"base_model.model.{path}.{peft(side)}.weight",
    "peft, named": lambda _part, path, side: f"base_model.model.{path}.{peft(side)}.my.run.weight",
}
# What every name of a scheme means.
MEANING = {
    scheme: {
        **{
            name(part, path, side): (part, path, side)
            for part, path, _, _ in LAYERS
            for side in ("down", "up")
        },
        **{
            f"{kohya(part, path)}.alpha": (part, path, "alpha")
            for part, path, _, _ in LAYERS
            if "kohya" in scheme
        },
    }
    for scheme, name in SCHEMES.items()
}
STRANGERS = (
    "foo",
    "foo.bar",
    "lora_unet_foo.lora_up",
    "unet.foo.weight",
    "text_encoder.x.lora_C.weight",
    "a.lora_E",
)
REFUSED = ("fan_in_fan_out", "modules_to_save", "bias", "layer_replication", "peft_type")


@dataclass
class Sample:
    """A file to be: its tensors and, in PEFT's schemes, its configuration."""

    scheme: str
    tensors: dict[str, Array]
    config: Any = None
    mutation: str = "none"
    text: str | None = None  # of a configuration that is no JSON
    sound: bool = True  # has to be read
    notes: list[str] = field(default_factory=list)


def draw(rng: random.Random) -> Sample:
    """A sound file in some scheme."""
    scheme = rng.choice(list(SCHEMES))
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    known = [row for row in LAYERS if row[0] == "unet" or not scheme.startswith("peft")]
    chosen = rng.sample(known, rng.randint(1, 6))
    # Something that tells the family by its name.
    anchor = ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (8, 12), 0)
    chosen = [anchor, *(row for row in chosen if row[1] != anchor[1])]
    sample = Sample(scheme, {})
    ranks, alphas = {}, {}
    for part, path, (rows, columns), kernel in chosen:
        rank = rng.randint(1, 4)
        shape = (kernel, kernel) if kernel else ()
        name = SCHEMES[scheme]
        sample.tensors[name(part, path, "down")] = numbers.standard_normal(
            (rank, columns, *shape), np.float32
        )
        sample.tensors[name(part, path, "up")] = numbers.standard_normal(
            (rows, rank, *([1] * len(shape))), np.float32
        )
        ranks[path], alphas[path] = rank, float(rng.choice([1, 2, 3, 6]))
        if "kohya" in scheme and rng.random() < 0.8:
            sample.tensors[f"{kohya(part, path)}.alpha"] = np.float32(alphas[path]).reshape(())
    if scheme.startswith("peft"):
        common = ranks[anchor[1]]
        sample.config = {
            "peft_type": "LORA",
            "r": common,
            "lora_alpha": alphas[anchor[1]],
            "use_rslora": rng.random() < 0.3,
            "rank_pattern": {rng.choice([p, f"^{p}"]): r for p, r in ranks.items() if r != common},
            "alpha_pattern": {
                rng.choice([p, f"^{p}"]): a for p, a in alphas.items() if a != alphas[anchor[1]]
            },
        }
    return sample


# -------------------------------------------------------------------------------- mutations


def mutate_letter(sample: Sample, rng: random.Random) -> None:
    """One letter of a name is another, one more or one less."""
    name = rng.choice(list(sample.tensors))
    at, letter = rng.randrange(len(name)), rng.choice(string.ascii_lowercase + string.digits + "._")
    new = rng.choice(
        [name[:at] + letter + name[at + 1 :], name[:at] + letter + name[at:], name[:at] + name[at + 1 :]]
    )
    if new in sample.tensors:
        return
    sample.tensors = {new if key == name else key: value for key, value in sample.tensors.items()}


def mutate_digit(sample: Sample, rng: random.Random) -> None:
    """All names of a layer get another number."""
    name = rng.choice(list(sample.tensors))
    found = list(re.finditer(r"\d+", name))
    spot = rng.choice(found) if found else None
    if spot is None:
        return
    start = name[: spot.start()]
    number = str(rng.choice([0, 1, 2, 3, 9, 11, 25]))
    end = re.sub(r"\.(alpha|lora_.*|down\.weight|up\.weight)$", "", name[spot.end() :])
    old_stem, new_stem = name[: spot.end()] + end, start + number + end
    if any(key.startswith(new_stem) for key in sample.tensors):
        return
    sample.tensors = {
        new_stem + key[len(old_stem) :] if key.startswith(old_stem) else key: value
        for key, value in sample.tensors.items()
    }


def mutate_missing(sample: Sample, rng: random.Random) -> None:
    """A tensor is not there."""
    del sample.tensors[rng.choice(list(sample.tensors))]


def mutate_stranger(sample: Sample, rng: random.Random) -> None:
    """A tensor of nobody's."""
    word = rng.choice(STRANGERS)
    sample.tensors[word] = np.ones((2, 2), np.float32)


def mutate_rank(sample: Sample, rng: random.Random) -> None:
    """A factor has one rank less, or none."""
    name = rng.choice(list(sample.tensors))
    value = sample.tensors[name]
    if value.ndim:
        sample.tensors[name] = value[: rng.choice([0, max(0, len(value) - 1)])]


def mutate_config(sample: Sample, rng: random.Random) -> None:
    """A configuration with another value, a key more, a key less, or that is no JSON."""
    if sample.config is None:
        return
    config = sample.config
    key = rng.choice(list(config))
    how = rng.randrange(6)
    if how == 0:
        config[key] = rng.choice([None, -1, 0, 3, "x", [], {}, 1e400, True])
    elif how == 1:
        del config[key]
    elif how == 2:
        config[rng.choice(REFUSED)] = rng.choice([True, ["x"], "all", "OFT"])
    elif how == 3:
        config["alpha_pattern"] = {rng.choice([".*attn2.*", "to_k", "attn[12].to_k", "(", "to_k|proj_in"]): 5}
    elif how == 4:
        config["lora_alpha"], config["use_rslora"] = rng.choice([1, 7, 0.5]), rng.random() < 0.5
    else:
        sample.text = json.dumps(config)[: rng.randrange(1, 40)]


MUTATIONS = [mutate_letter, mutate_digit, mutate_missing, mutate_stranger, mutate_rank, mutate_config]


# -------------------------------------------------------------------------------- what it means


def meaning(sample: Sample) -> dict[str, Array] | None:
    """Each layer's change in float64 by kohya's name; None where a part of the file has no certain meaning."""
    found: dict[tuple[str, str], dict[str, Array]] = {}
    for name, value in sample.tensors.items():
        known = MEANING[sample.scheme].get(name) or any_layer(sample.scheme, name)
        if known is None:
            return None
        part, path, side = known
        found.setdefault((part, path), {})[side] = value.astype(np.float64)
    changes = {}
    for (part, path), sides in found.items():
        if sides.keys() == {"alpha"}:
            continue
        if not {"down", "up"} <= sides.keys() or not all(side.size for side in sides.values()):
            return None
        up, down = (sides[side].reshape(sides[side].shape[0], -1) for side in ("up", "down"))
        rank = down.shape[0]
        if up.shape[1] != rank:
            return None
        scale: float | None = float(sides["alpha"]) / rank if "alpha" in sides else 1.0
        if sample.scheme.startswith("peft"):
            scale = scale_by(sample, path, rank)
        if scale is None:
            return None
        changes[kohya(part, path)] = scale * up @ down
    return changes or None


def any_layer(scheme: str, name: str) -> tuple[str, str, str] | None:
    """PEFT reads names of any number of blocks, and its patterns go by the path that the file has."""
    end = r"\.my\.run" if scheme == "peft, named" else ""
    layer = r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:attentions|resnets)\.\d+\."
    layer += r"(?:proj_in|conv\d+|time_emb_proj|transformer_blocks"
    layer += r"\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.2))"
    found = re.fullmatch(rf"base_model\.model\.({layer})\.lora_([AB]){end}\.weight", name)
    if found is None or not scheme.startswith("peft"):
        return None
    return "unet", found[1], "down" if found[2] == "A" else "up"


def scale_by(sample: Sample, path: str, rank: int) -> float | None:
    """alpha / r by PEFT's rules; None where PEFT itself would fail, or means something else."""
    config = sample.config
    if sample.text is not None or not isinstance(config, dict):
        return None
    usual = {"fan_in_fan_out": (False, None), "modules_to_save": (None, []), "bias": ("none", None)}
    usual |= {"layer_replication": (None, []), "peft_type": ("LORA",)}
    if any(key in config and config[key] not in allowed for key, allowed in usual.items()):
        return None
    values = []
    for key, pattern, default in (("r", "rank_pattern", 8), ("lora_alpha", "alpha_pattern", 8)):
        table = config.get(pattern) or {}
        if not isinstance(table, dict):
            return None
        try:
            hits = [value for one, value in table.items() if re.match(rf"(.*\.)?({one})$", path)]
        except re.error:
            return None
        value = hits[0] if hits else config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        values.append(value)
    own, alpha = values
    if own != rank:
        return None
    return alpha / (math.sqrt(own) if config.get("use_rslora") else own)


# -------------------------------------------------------------------------------- the trial


def write(sample: Sample, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "adapter_model.safetensors"
    write_tensors(path, {key: encode(value, "F32") for key, value in sample.tensors.items()})
    if sample.config is not None:
        text = sample.text if sample.text is not None else json.dumps(sample.config)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return path


def read_sum(path: Path) -> dict[str, Array]:
    """A plain network of kohya's names, read by numpy alone."""
    with open_tensors(path) as file:
        names = {key.split(".")[0] for key in file.tensors}
        found = {}
        for name in names:
            up, down = (file.read(f"{name}.lora_{side}.weight").astype(np.float64) for side in ("up", "down"))
            scale = float(file.read(f"{name}.alpha")) / down.shape[0]
            found[name] = scale * up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
    return found


def attempt(sample: Sample, folder: Path) -> tuple[str, dict[str, Array] | None, str]:
    """What lora-merge --networks makes of the file: ("read", changes, notes) or ("refused", None, message)."""
    path, output = write(sample, folder), folder / "sum.safetensors"
    errors = io.StringIO()
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())), redirect_stderr(errors):
        try:
            merge_networks([(str(path), 1.0)], wishes(str(output)))
        except LoraError as error:
            return "refused", None, str(error)
    return "read", read_sum(output), errors.getvalue()


def agree(found: dict[str, Array], wanted: dict[str, Array]) -> bool:
    """Layers whose change is zero may be told by one side only."""
    for name in found.keys() | wanted.keys():
        one, two = found.get(name), wanted.get(name)
        if one is None or two is None:
            value = one if two is None else two
            if value is None or np.any(value):
                return False
        elif one.shape != two.shape or not np.allclose(
            one, two, rtol=1e-5, atol=1e-5 * (1 + np.abs(two).max())
        ):
            return False
    return True


@pytest.mark.table
@pytest.mark.parametrize("group", range(GROUPS))
def test_never_a_wrong_number(group: int, tmp_path: Path) -> None:
    outcomes = {"read": 0, "refused": 0}
    for number in range(max(1, COUNT // GROUPS)):
        rng = random.Random(f"{group}-{number}")
        sample = draw(rng)
        before = copy.deepcopy(sample)
        if number % 4:
            mutation = rng.choice(MUTATIONS)
            mutation(sample, rng)
            sample.mutation = mutation.__name__
        if not sample.tensors:
            continue
        wanted = meaning(sample)
        outcome, found, told = attempt(sample, tmp_path / str(number))
        outcomes[outcome] += 1
        about = (group, number, sample.scheme, sample.mutation, sample.config, list(sample.tensors), told)
        if outcome == "refused":
            assert "adapter_" in told, about  # the file, or its configuration
            assert "\n" not in told, about
            # What other programs read is not refused, but that names which no table here knows may be.
            assert wanted is None or sample.mutation in ("mutate_config", "mutate_digit", "mutate_letter"), (
                about
            )
            continue
        assert found is not None
        if wanted is not None:
            assert agree(found, wanted) or same_values(found, wanted, sample), about
        else:
            # A spelling that this table has no row for: then what is read is the file's product, or it is told.
            assert agree(found, meaning(before) or {}) or _is_renamed(found, before) or "note: " in told, (
                about
            )
    assert outcomes["read"], outcomes
    assert COUNT < 200 or outcomes["refused"], outcomes


def same_values(found: dict[str, Array], wanted: dict[str, Array], sample: Sample) -> bool:
    """Whether the changes are the same under the names of another family, for which a mutated number speaks."""
    if sample.mutation != "mutate_digit" or len(found) != len(wanted):
        return False
    rest = list(found.values())
    for value in wanted.values():
        hit = next((i for i, one in enumerate(rest) if agree({"": one}, {"": value})), None)
        if hit is None:
            return False
        del rest[hit]
    return True


def _is_renamed(found: dict[str, Array], before: Sample) -> bool:
    """Whether each change is one of the file's, under whatever name."""
    wanted = list((meaning(before) or {}).values())
    return all(
        any(value.shape == one.shape and np.allclose(value, one, rtol=1e-5, atol=1e-4) for one in wanted)
        for value in found.values()
    )
