"""The models that are known by a short name, and hub ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

DEFAULT = "swinv2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model on the hub: the commit that is downloaded, its folder there, and the threshold at which precision and
    recall are equal on the author's data (None where that is not known).
    """

    repository: str
    revision: str = "main"
    folder: str = ""
    balanced: float | None = None


def _wd(name: str, revision: str, balanced: float | None = None) -> HubModel:
    return HubModel(repository=f"SmilingWolf/wd-{name}", revision=revision, balanced=balanced)


# Commits as other programs pin them too, together with the files' hashes; where none is known it is "main", and the
# hub's cache then keeps the commit that was downloaded first.
HUB: Mapping[str, HubModel] = MappingProxyType(
    {
        "vit-v3": _wd("vit-tagger-v3", "7f6b584d0bd3f55c4531f14ba3d4761b2bccdc0f", 0.2547),
        "swinv2-v3": _wd("swinv2-tagger-v3", "627aef95638667ddcaa3ac8ae625e88ea5b02f51", 0.2653),
        "convnext-v3": _wd("convnext-tagger-v3", "d39e46de298d27340111b64965e20b8185c407e6", 0.2570),
        "vit-large-v3": _wd("vit-large-tagger-v3", "ae469aa2e4706a3af08d3673cf73a11d1add314c", 0.2606),
        "eva02-large-v3": _wd("eva02-large-tagger-v3", "b25b82a03f7282e41aa2f257a52c7583b710bd1c", 0.5296),
        "vit-v2": _wd("v1-4-vit-tagger-v2", "1f3f3e8ae769634e31e1ef696df11ec37493e4f2"),
        "swinv2-v2": _wd("v1-4-swinv2-tagger-v2", "cdb0c7fdc70646f0af29c6f80f8df564344a69b6"),
        "convnext-v2": _wd("v1-4-convnext-tagger-v2", "4b34d1b07bdd8e95494072648960b8a6adcbc0ff", 0.3685),
        "convnextv2-v2": _wd("v1-4-convnextv2-tagger-v2", "bf364499ea843a403cc2770072f31f5cfb2ffa58", 0.3710),
        "moat-v2": _wd("v1-4-moat-tagger-v2", "8452cddf280b952281b6e102411c50e981cb2908", 0.3771),
        "vit-v1": _wd("v1-4-vit-tagger", "213a7bd66d93407911b8217e806a95edc3593eed"),
        "convnext-v1": _wd("v1-4-convnext-tagger", "4036ca51f1c082b0e7c4496890bbf9eadad5764a"),
        "pixai": HubModel(
            repository="deepghs/pixai-tagger-v0.9-onnx", revision="d8cf666911a2c3d10d586d7823259192313c7eb7"
        ),
        "pixai-v1": HubModel(
            repository="Mexes/pixai-tagger-v1.0-onnx-fp32-fp16-int8",
            revision="0800778563144a0e6fdf41ddadd84aae3cb0dbcf",
        ),
        "cl": HubModel(
            repository="cella110n/cl_tagger",
            revision="0b6e9b4e145b1423bfd1715119074a24a301b471",
            folder="cl_tagger_1_02",
        ),
        "camie": HubModel(
            repository="Camais03/camie-tagger-v2", revision="7d40c1b85b86ab4f607b2caf26b1b50c99db743e"
        ),
        "cl-v2": HubModel(repository="cella110n/cl_tagger_v2", folder="v2_01a"),
        "animetimm": HubModel(repository="animetimm/caformer_b36.dbv4-full"),
        "z3d": HubModel(repository="toynya/Z3D-E621-Convnext"),
        "camie-v1": HubModel(
            repository="Camais03/camie-tagger", revision="9afb19b5e21e7916f599edda74eb373cac63ba24"
        ),
    }
)


def hub_model(word: str) -> HubModel | None:
    """The row of a short name, or one made for a hub id; None for anything else."""
    key = short_name(word)
    if key in HUB:
        return HUB[key]
    for row in HUB.values():
        if word in (row.repository, row.repository.rpartition("/")[2]):
            return row
    if not _HUB_ID.fullmatch(word):
        return None
    owner, name, *folders = word.split("/")
    pinned = {row.repository: row.revision for row in HUB.values()}
    repository = f"{owner}/{name}"
    return HubModel(repository=repository, folder="/".join(folders), revision=pinned.get(repository, "main"))


def short_name(word: str) -> str:
    """A short name in the table's form: "eva02", "wd14-moat" and "v1.4-vit" are understood. Without a version it is
    the newest that has it.
    """
    name = (
        word.strip().lower().replace("_", "-").replace("eva02-large", "eva02").replace("eva02", "eva02-large")
    )
    old = re.match(r"(wd14|wd-v1-4|wd-v1\.4|v1\.4|v1-4)-", name)
    name = re.sub(r"^(wd14|wd-v1-4|wd-v1\.4|v1\.4|v1-4|wd)-", "", name)
    if name in HUB and not old:
        return name
    if re.search(r"-v1[.-]4$", name):
        name, old = name[:-5], re.match("", "")
    for version in ("v2", "v1") if old else ("v3", "v2", "v1"):
        if f"{name}-{version}" in HUB:
            return f"{name}-{version}"
    return name


def unknown(word: str) -> str:
    """What is wrong with a word that names no model, and the nearest that does."""
    close = get_close_matches(word, [*HUB, *(name.rpartition("-v")[0] for name in HUB)], 1)
    hint = f", did you mean {close[0]}?" if close else f"; short names: {', '.join(HUB)}"
    return f"--model {word}: no such folder, and no hub id (owner/name) or short name either{hint}"
