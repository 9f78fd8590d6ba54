"""Parameters that the GUI of Akegarasu's lora-scripts exports, as TOML or JSON, and its templates.

The GUI makes sd-scripts' options of them before it trains; what it makes of each key was read in its own code. The
files that it saves when it trains are in sd-scripts' form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, flatten, is_nothing
from lorapipe_engine.command.documents import parse_toml
from lorapipe_engine.errors import ConfigError

NAME = "lora-scripts"
_TRAINED = ("sd-lora", "sdxl-lora", "lora-basic", "lora-master")
_TEMPLATE = ("metadata", "data")
# Fields of the network, with their names in network_args, by the network_module that shows them.
_LYCORIS = {
    "lycoris_algo": "algo",
    "conv_dim": "conv_dim",
    "conv_alpha": "conv_alpha",
    "dropout": "dropout",
    "lokr_factor": "factor",
    "train_norm": "train_norm",
}
_DYLORA = {"dylora_unit": "unit"}
_BLOCKS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")
_BASE_WEIGHTS = ("base_weights", "base_weights_multiplier")
_PRODIGY = {"prodigy_d_coef": "d_coef", "prodigy_d0": "d0"}
_PREVIEW = ("sample_prompts", "sample_sampler", "sample_every_n_epochs", "sample_every_n_steps")
# Parts of one prompt, with its words.
_PROMPT = {
    "positive_prompts": "",
    "negative_prompts": "--n",
    "sample_width": "--w",
    "sample_height": "--h",
    "sample_cfg": "--l",
    "sample_steps": "--s",
    "sample_seed": "--d",
}
_SWITCHES = ("enable_block_weights", "enable_base_weight", "enable_preview")
_CUSTOM = ("network_args_custom", "optimizer_args_custom")
_OWN = (
    "model_train_type",
    *_LYCORIS,
    *_DYLORA,
    *_BLOCKS,
    *_BASE_WEIGHTS,
    *_PRODIGY,
    *_PREVIEW,
    *_PROMPT,
    *_SWITCHES,
    *_CUSTOM,
    "randomly_choice_prompt",
    "prompt_file",
    "ui_custom_params",
)
_MARKS = ("model_train_type", "lycoris_algo", "ui_custom_params", *_DYLORA, *_PRODIGY, *_SWITCHES, *_CUSTOM)


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    if _is_template(table):
        return ["data"]
    return [name for name in _MARKS if name in table]


def _is_template(table: Mapping[str, Any]) -> bool:
    """Whether these are the two tables of a template; sections of options may be called so too."""
    is_pair = set(table) == set(_TEMPLATE) and all(isinstance(value, dict) for value in table.values())
    return is_pair and "name" in table["metadata"]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a file and what the user should know of it. Raises ConfigError."""
    notes = []
    if _is_template(table):
        notes.append("metadata: says what the template is called, and nothing of the training")
        table = table["data"]
    kind = table.get("model_train_type", _TRAINED[0])
    if kind not in _TRAINED:
        raise ConfigError(
            f"{path}: model_train_type: '{kind}' is not trained here, only {', '.join(_TRAINED[:2])}"
        )
    fields = _Fields(table)
    entries = _own_entries(fields, path)
    notes += fields.notes()
    rest = [entry for entry in flatten(table) if entry.key not in _OWN]
    names = {entry.name for entry in entries}
    return [*(entry for entry in rest if entry.name not in names), *entries], notes


class _Fields:
    """The fields of the GUI; those that were used, and why others are not."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table
        self._unused: dict[str, list[str]] = {}

    def is_on(self, name: str) -> bool:
        """Whether a switch is on; some versions write it as a text."""
        return str(self.table.get(name, "")).lower() in ("true", "1", "yes")

    def given(self, name: str) -> bool:
        """Whether something stands in a field."""
        return not is_nothing(self.table.get(name))

    def leave_out(self, names: tuple[str, ...] | list[str], reason: str) -> None:
        """Name the fields in which something stands."""
        given = [name for name in names if self.given(name)]
        if given:
            self._unused.setdefault(reason, []).extend(given)

    def notes(self) -> list[str]:
        """A line for each reason."""
        return [f"{', '.join(names)}: {reason}" for reason, names in self._unused.items()]


def _own_entries(fields: _Fields, path: Path) -> list[Entry]:
    entries = [
        Entry("network_args", _network_words(fields), "network_args_custom"),
        *_optimizer(fields),
        *_base_weights(fields),
        *_preview(fields),
    ]
    fields.leave_out(["model_train_type"], "found out by the base itself")
    text = fields.table.get("ui_custom_params")
    if is_nothing(text):
        return entries
    own = [
        Entry(row.name, row.value, "ui_custom_params")
        for row in flatten(parse_toml(str(text), f"{path}: ui_custom_params"))
    ]
    names = {row.name for row in own}
    return [*(entry for entry in entries if entry.name not in names), *own]


def _lines(value: Any) -> list[str]:
    rows = value if isinstance(value, list) else str("" if is_nothing(value) else value).splitlines()
    return [str(row).strip() for row in rows if str(row).strip()]


def _network_words(fields: _Fields) -> list[str]:
    table, module = fields.table, str(fields.table.get("network_module", "networks.lora"))
    is_lycoris = module == "lycoris.kohya"
    names = {**(_LYCORIS if is_lycoris else {}), **(_DYLORA if module == "networks.dylora" else {})}
    if is_lycoris and table.get("lycoris_algo") != "lokr":
        names.pop("lokr_factor")
    words = [f"{name}={table[key]}" for key, name in names.items() if fields.given(key)]
    fields.leave_out([key for key in (*_LYCORIS, *_DYLORA) if key not in names], f"not used by {module}")
    if fields.is_on("enable_block_weights"):
        words += [f"{key}={table[key]}" for key in _BLOCKS if fields.given(key) and table[key] != 0]
    else:
        fields.leave_out(_BLOCKS, "not used, as enable_block_weights is off")
    return [*_lines(table.get("network_args")), *words, *_lines(table.get("network_args_custom"))]


def _optimizer(fields: _Fields) -> list[Entry]:
    """The arguments that the GUI adds for an optimizer, and for D-Adaptation the rates."""
    table = fields.table
    kind = str(table.get("optimizer_type", "")).lower()
    words, entries = [], []
    if kind in ("dadaptation", "dadaptadam"):
        words += ["decouple=True", "weight_decay=0.01"]
    if kind.startswith("dada"):
        entries = [Entry(name, 1.0, name) for name in ("learning_rate", "unet_lr", "text_encoder_lr")]
        fields.leave_out([entry.name for entry in entries], "taken as 1, as the GUI does for D-Adaptation")
    if kind == "prodigy":
        words += ["decouple=True", "weight_decay=0.01", "use_bias_correction=True"]
        words += [f"{name}={table[key]}" for key, name in _PRODIGY.items() if fields.given(key)]
        if str(table.get("lr_warmup_steps", 0)) not in ("0", "0.0", ""):
            words.append("safeguard_warmup=True")
    else:
        fields.leave_out(list(_PRODIGY), "of Prodigy alone")
    words = [*_lines(table.get("optimizer_args")), *words, *_lines(table.get("optimizer_args_custom"))]
    # A user's own word counts, of two of one name the last.
    last = {word.partition("=")[0].strip(): word for word in words}
    return [*entries, Entry("optimizer_args", list(last.values()), "optimizer_args_custom")]


def _base_weights(fields: _Fields) -> list[Entry]:
    if not fields.is_on("enable_base_weight"):
        fields.leave_out(_BASE_WEIGHTS, "not used, as enable_base_weight is off")
        return []
    return [Entry(name, _lines(fields.table.get(name)), name) for name in _BASE_WEIGHTS]


def _preview(fields: _Fields) -> list[Entry]:
    """Prompts and when they are drawn; a file of an older version has them as one text."""
    table = fields.table
    if not fields.is_on("enable_preview"):
        fields.leave_out((*_PREVIEW, *_PROMPT, "prompt_file"), "not used, as enable_preview is off")
        return []
    entries = [Entry(name, table[name], name) for name in _PREVIEW if fields.given(name)]
    if fields.given("prompt_file"):
        fields.leave_out([*_PROMPT, "sample_prompts"], "not used, as prompt_file is given")
        entries = [entry for entry in entries if entry.name != "sample_prompts"]
        entries.append(Entry("sample_prompts", table["prompt_file"], "prompt_file"))
    elif fields.given("positive_prompts") and not fields.given("sample_prompts"):
        parts = [f"{mark} {table[name]}".strip() for name, mark in _PROMPT.items() if fields.given(name)]
        entries.append(Entry("sample_prompts", " ".join(parts), "positive_prompts"))
    else:
        fields.leave_out(list(_PROMPT), "not used, as sample_prompts is given")
    if fields.is_on("randomly_choice_prompt"):
        fields.leave_out(
            ["randomly_choice_prompt"], "no caption is drawn as the prompt here, the given one is"
        )
    return entries
