"""Whether every key of a configuration is said again: by an option that is printed, or in a note."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from lorapipe_engine.settings.refused import FOREIGN

# Words of network_args and the like by which a key of another program is printed.
SAID_BY = {
    "LyCORIS_preset": "preset",
    "conv_dims": "conv_block_dims",
    "conv_alphas": "conv_block_alphas",
    "use_cp": "use_tucker",
    "constrain": "constraint",
    "lycoris_algo": "algo",
    "lokr_factor": "factor",
    "dylora_unit": "unit",
    "prodigy_d_coef": "d_coef",
    "prodigy_d0": "d0",
    "unit": "block_size",
    # Parts of one prompt.
    **dict.fromkeys(("negative_prompts", "sample_width", "sample_height"), "sample_prompts"),
    **dict.fromkeys(("sample_cfg", "sample_seed", "sample_steps"), "sample_prompts"),
}
# They choose between other keys, and these are looked for.
CHOOSING = {
    *("noise_offset_type", "enable_preview", "enable_block_weights", "enable_base_weight"),
    *("log_prefix_mode", "run_name_mode", "train_mode", "fa"),
}
_WORD_LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")


def keys_of(table: Mapping[str, Any]) -> list[str]:
    """The keys of a table, and of the tables in it, that ask for something; not those of ``subsets``."""
    return [key for key, value in _leaves(table) if not is_off(key, value)]


def _leaves(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if key == "metadata":  # of a template: the table is named as a whole
            yield key, True
        elif isinstance(value, dict):
            yield from _leaves(value)
        elif key != "subsets":
            yield key, value


def is_off(key: str, value: Any) -> bool:
    """Whether a value asks for nothing: in any program, or by the table of sd-scripts' options."""
    if key in FOREIGN and value in FOREIGN[key].off:
        return True
    return value in (None, False, "", 0, "0", "0.0", "None", "none", "false") or value == []


def unsaid(keys: Iterable[str], printed: str, notes: str) -> list[str]:
    """The keys that stand nowhere in what ``--print-config`` printed, but for options with their defaults, and in no
    note."""
    said = set(re.findall(r"[A-Za-z_]\w*", "\n".join(row for row in notes.splitlines() if "note:" in row)))
    lines = printed.splitlines()
    for comment, line in itertools.pairwise(lines):
        if not comment.startswith("# ") or comment.endswith(("(default)", "(the base's own)")):
            continue
        said.add(line.lstrip("# ").partition(" =")[0])
        said |= set(re.findall(r"[A-Za-z_]\w*", comment.rpartition("(from ")[2]))
    for part in tomllib.loads(printed).values():
        for name in _WORD_LISTS:
            said |= {word.partition("=")[0] for word in part.get(name, [])}
    names = [key.replace("-", "_") for key in keys if key not in CHOOSING]
    return sorted({key for key in names if key not in said and SAID_BY.get(key) not in said})
