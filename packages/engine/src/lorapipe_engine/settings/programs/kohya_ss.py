"""Presets of kohya_ss, the GUI of sd-scripts: flat JSON, in which a number of 0 most often means "not given".

What each key means was read in the GUI's own code, of 2023 to 2026.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, is_nothing
from lorapipe_engine.command.options import fields_of
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS
from lorapipe_engine.settings.programs import kohya_ss_keys as keys

NAME = "kohya_ss"
_MARKS = ("LoRA_type", "max_resolution", "stop_text_encoder_training_pct", "lr_warmup", "model_list")
# Read together with others, below.
_SPECIAL = frozenset(
    {
        *("LoRA_type", "LyCORIS_preset", "additional_parameters", "epoch", "noise_offset_type"),
        *("max_train_epochs", "max_train_steps", "lr_warmup", "lr_warmup_steps", "lr_scheduler_num_cycles"),
        *("stop_text_encoder_training_pct", "stop_text_encoder_training", "unet_lr", "text_encoder_lr"),
        *("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale", "save_model_as"),
        *("multires_noise_iterations", "multires_noise_discount", "xformers", "use_wandb", "optimizer"),
        *("use_8bit_adam", "locon"),
    }
)
_ORIGINAL = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
_MULTIRES = ("multires_noise_iterations", "multires_noise_discount")


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    return [name for name in _MARKS if name in table]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a preset and what the user should know of it. Raises ConfigError."""
    _check_family(table, path)
    kind = _kind(table, path)
    notes = _Notes(table)
    entries = [
        Entry(keys.RENAMED.get(key, key), _value(key, value), key)
        for key, value in table.items()
        if _is_option(key) and not _is_left_out(key, value) and not _is_for_sdxl_only(key, table, notes)
    ]
    entries += [
        Entry("network_module", keys.TYPES[kind][0], "LoRA_type"),
        Entry("network_args", _arguments(table, kind, notes), "LoRA_type"),
        *_length(table, notes),
        *_rates(table),
        *_noise(table, notes),
        *_rest(table, notes),
    ]
    if table.get("locon"):
        notes.leave_out("locon", f"said by LoRA_type, which is taken as {kind}")
    return _with_more(entries, _more(table, path), notes), notes.lines()


class _Notes:
    """Keys that are left out although something is in them, by the reason, and single lines."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._reasons: dict[str, list[str]] = {}
        self._lines: list[str] = []
        for key, value in table.items():
            if not _is_off(value):
                if keys.is_of_other_family(key):
                    self.leave_out(key, "of FLUX.1, SD3 and the like, which are not trained here")
                elif key in keys.OWN:
                    self.leave_out(key, "the GUI's own, and nothing here")
                elif key in keys.OF_BASE:
                    self.leave_out(key, "found out by the base itself")

    def leave_out(self, key: str, reason: str) -> None:
        """Name a key that nothing is made of."""
        self._reasons.setdefault(reason, []).append(key)

    def say(self, line: str) -> None:
        """A line of its own."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """One line for each reason, and the single ones."""
        return [*(f"{', '.join(names)}: {why}" for why, names in self._reasons.items()), *self._lines]


def _check_family(table: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a preset of another family or another tab."""
    for key, value in table.items():
        chosen = key.endswith(keys.CHECKBOX) and key != "sdxl_checkbox" and not _is_off(value)
        if chosen or (key == "LoRA_type" and str(value).startswith("Flux1")):
            raise ConfigError(
                f"{path}: {key}: {str(value)!a} asks for a family that is not trained here; lora-train trains SD 1.x, "
                "2.x and SDXL"
            )
        if key in keys.OF_TABS:
            raise ConfigError(
                f"{path}: {key}: a preset of {NAME}'s tab for {keys.OF_TABS[key]}; save one in its LoRA tab"
            )


def _kind(table: Mapping[str, Any], path: Path) -> str:
    kind = table.get("LoRA_type")
    if kind is None and "network_dim" not in table:
        raise ConfigError(
            f"{path}: a preset of {NAME} without LoRA_type and network_dim, so one of full training; lora-train makes "
            "LoRA networks: load it in the GUI's LoRA tab and save it there"
        )
    if table.get("locon") and kind in (None, "", "Standard"):
        return "Kohya LoCon"
    kind = kind or "Standard"
    if not isinstance(kind, str) or kind not in keys.TYPES:
        raise ConfigError(
            f"{path}: LoRA_type: '{kind}' is no network of SD 1.x, 2.x or SDXL; known: {', '.join(keys.TYPES)}"
        )
    return kind


# ------------------------------------------------------------------------------------------- values


def _is_off(value: Any) -> bool:
    """Whether nothing, a switch that is off, 0 or the word for nothing stands there."""
    return is_nothing(value) or value in ("None", "none") or _number(value) == 0


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _is_option(key: str) -> bool:
    """Whether a key is looked at by itself: as an option of the trainer, or as one that nobody knows."""
    is_argument = key in keys.ARGUMENTS or key in keys.OLD_ARGUMENTS
    is_own = key in keys.OWN or key in keys.OF_BASE or key in _SPECIAL
    return not (is_argument or is_own or keys.is_of_other_family(key))


def _is_left_out(key: str, value: Any) -> bool:
    """Whether the GUI does not hand the value on. False is its "not asked for" everywhere but of buckets."""
    if key == "enable_bucket":
        return value is None
    if value in ("None", "none") and key not in ("mixed_precision", "dynamo_backend"):
        return True
    return is_nothing(value) or (key in keys.ZERO_IS_NONE and _is_off(value))


def _is_for_sdxl_only(key: str, table: Mapping[str, Any], notes: _Notes) -> bool:
    if key not in keys.OF_SDXL or table.get("sdxl") is not False:
        return False
    notes.leave_out(key, "of SDXL alone, and sdxl is off")
    return True


def _value(key: str, value: Any) -> Any:
    if key in ("optimizer_args", "lr_scheduler_args") and isinstance(value, str):
        # As the GUI: quotation marks mean nothing, spaces part the words.
        return value.replace('"', "").split()
    return value


def _rest(table: Mapping[str, Any], notes: _Notes) -> list[Entry]:
    """Keys whose values are the GUI's own words."""
    entries = []
    optimizer = table.get("optimizer")
    if is_nothing(optimizer) and table.get("use_8bit_adam"):
        entries.append(Entry("optimizer_type", "AdamW8bit", "use_8bit_adam"))
    elif not is_nothing(optimizer):
        entries.append(Entry("optimizer_type", optimizer, "optimizer"))
        if table.get("use_8bit_adam"):
            notes.leave_out("use_8bit_adam", "not used, as optimizer is given")
    form = table.get("save_model_as")
    if not is_nothing(form) and form not in ("safetensors", "ckpt", "pt"):
        notes.say(f"save_model_as: '{form}' is for whole models; the network is saved as safetensors")
    elif not is_nothing(form):
        entries.append(Entry("save_model_as", form, "save_model_as"))
    attention = table.get("xformers")
    if not _is_off(attention):
        entries.append(Entry("sdpa" if attention == "sdpa" else "xformers", True, "xformers"))
    if table.get("use_wandb"):
        entries.append(Entry("log_with", "wandb", "use_wandb"))
    return entries


# ----------------------------------------------------------------------------- what keys mean together


def _arguments(table: Mapping[str, Any], kind: str, notes: _Notes) -> list[str]:
    """``network_args`` of the type; the arguments of other types are left out."""
    algo = keys.TYPES[kind][1]
    words, taken = [], keys.OF_TYPE[kind]
    if algo is not None:
        words = [f"algo={algo}", f"preset={table.get('LyCORIS_preset') or 'full'}"]
    elif not is_nothing(table.get("LyCORIS_preset")):
        notes.leave_out("LyCORIS_preset", f"not used by LoRA_type {kind}")
    spelt = keys.SPELT if algo is None else keys.SPELT_BY_LYCORIS
    # With LyCORIS convolutions are trained unless the number says otherwise, (IA)³ on the input.
    asked = {*(keys.CONV if algo is not None else ()), "train_on_input"}
    given = {key: value for key, value in table.items() if key in keys.ARGUMENTS}
    places = dict.fromkeys(given)
    for old, name in keys.OLD_ARGUMENTS.items():
        if _is_off(given.get(name)) and not _is_off(table.get(old)):
            given[name] = table[old]
            places[name] = old
    for name in sorted(given):
        value = given[name]
        if name not in taken:
            if not _is_off(value):
                notes.leave_out(places[name] or name, f"not used by LoRA_type {kind}")
        elif not _is_off(value) or (name in asked and value not in (None, "")):
            words.append(f"{spelt.get(name, name)}={_without_spaces(value)}")
    return words


def _without_spaces(value: Any) -> str:
    """A value of ``network_args``; the GUI parts words at spaces, and people write lists with them."""
    return "".join(str(value).split())


def _length(table: Mapping[str, Any], notes: _Notes) -> list[Entry]:
    """Steps where they are given, else epochs; a warm-up in per cent of the run, or in steps; as many cycles as epochs
    where their number is left empty."""
    entries = []
    length = next(
        (key for key in ("max_train_epochs", "max_train_steps", "epoch") if not _is_off(table.get(key))), None
    )
    if length is not None:
        name = "max_train_steps" if length == "max_train_steps" else "max_train_epochs"
        entries.append(Entry(name, table[length], length))
    for key in ("max_train_steps", "epoch"):
        if length not in (None, key) and not _is_off(table.get(key)):
            notes.leave_out(key, f"not used, as {length} is given")
    if not _is_off(table.get("lr_warmup_steps")):
        entries.append(Entry("lr_warmup_steps", table["lr_warmup_steps"], "lr_warmup_steps"))
        if not _is_off(table.get("lr_warmup")):
            notes.leave_out("lr_warmup", "not used, as lr_warmup_steps is given")
    elif not is_nothing(table.get("lr_warmup")):
        entries.append(Entry("lr_warmup_steps", f"{table['lr_warmup']}%", "lr_warmup"))
    cycles = table.get("lr_scheduler_num_cycles")
    if (
        cycles == ""
        and table.get("lr_scheduler") == "cosine_with_restarts"
        and not _is_off(table.get("epoch"))
    ):
        entries.append(Entry("lr_scheduler_num_cycles", table["epoch"], "epoch"))
    elif not is_nothing(cycles):
        entries.append(Entry("lr_scheduler_num_cycles", cycles, "lr_scheduler_num_cycles"))
    return entries


def _rates(table: Mapping[str, Any]) -> list[Entry]:
    """The rates of the parts: 0 or nothing of one of them leaves it out, of both means learning_rate for both."""
    entries = []
    names = [name for name in ("unet_lr", "text_encoder_lr") if name in table]
    if any(not _is_off(table[name]) for name in names):
        entries = [Entry(name, 0 if _is_off(table[name]) else table[name], name) for name in names]
    # Both are the same slider, in per cent: one is written by "save", one by "train".
    for name in ("stop_text_encoder_training", "stop_text_encoder_training_pct"):
        share = table.get(name)
        if not _is_off(share):
            value = share if _number(share) == -1 else f"{share}%"
            entries.append(Entry("stop_text_encoder_training", value, name))
    return entries


def _noise(table: Mapping[str, Any], notes: _Notes) -> list[Entry]:
    """One of two kinds of noise: the other's numbers stay in the preset and are not used."""
    kind = table.get("noise_offset_type")
    both = (*_MULTIRES, *_ORIGINAL)
    names = {"Multires": _MULTIRES, "Original": _ORIGINAL}.get(str(kind), both)
    asked = [name for name in names if not _is_off(table.get(name))]
    for first, group in (("multires_noise_iterations", _MULTIRES), ("noise_offset", _ORIGINAL)):
        if first not in asked:
            asked = [name for name in asked if name not in group]
    for name in both:
        if name not in asked and not _is_off(table.get(name)):
            why = f"noise_offset_type is {kind}" if name not in names else "there is none of this noise"
            notes.leave_out(name, f"not used, as {why}")
    return [Entry(name, table[name], name) for name in asked]


# -------------------------------------------------------------------------------------- more words


def _with_more(entries: list[Entry], more: list[Entry], notes: _Notes) -> list[Entry]:
    """The preset's options with those behind it, which count instead of the preset's, as on the command line."""
    names = {entry.name for entry in more}
    replaced = [entry for entry in entries if entry.name in names and entry.value not in ([], "")]
    kept = [entry for entry in entries if entry.name not in names]
    if "max_train_steps" in names and "max_train_epochs" not in names:
        # The GUI makes steps of its epochs, which these go before.
        replaced += [entry for entry in kept if entry.key == "epoch"]
        kept = [entry for entry in kept if entry.key != "epoch"]
    if replaced:
        shown = ", ".join(dict.fromkeys(f"{entry.name} ({_shown(entry.value)})" for entry in replaced))
        notes.say(f"additional_parameters: count instead of the preset's {shown}")
    return [*kept, *more]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _more(table: Mapping[str, Any], path: Path) -> list[Entry]:
    """The words that a user put behind the GUI's own, as a command line; of an option given twice the last."""
    key = "additional_parameters"
    text = table.get(key)
    if is_nothing(text):
        return []
    try:
        words = shlex.split(str(text))
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: cannot be split into words ({error})") from None
    entries: dict[str, Entry] = {}
    while words:
        name, sign, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"{path}: {key}: '{name}' belongs to no option; options begin with --")
        values = [value] if sign else []
        while not sign and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        given = (values[0] if len(values) == 1 else values) if values else True
        whole = _whole_name(name.removeprefix("--").replace("-", "_"))
        entries[whole] = Entry(whole, given, key)
    return list(entries.values())


def _whole_name(name: str) -> str:
    """The option's name, which may be cut short."""
    known = [field.name for part in PARTS for field in fields_of(part)]
    begun = [row for row in known if row.startswith(name)]
    return begun[0] if name not in known and len(begun) == 1 else name
