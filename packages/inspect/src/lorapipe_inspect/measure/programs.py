"""What the field's programs do with each module: apply it, pass it over, apply it wrongly, refuse the file.

Measured with the programs' own loaders, unmodified, on files of every scheme and algorithm, 2026-11: A1111 1.10.1,
Forge dfdcbab, ComfyUI 0.3.64, sd-scripts 48d368f, diffusers 0.42.1, PEFT 0.21.2, LyCORIS 4.1.3. See
docs/which-file-where.md.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from lorapipe_engine.command.text import counted
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.models.families import FAMILIES
from lorapipe_engine.networks.algorithms import is_plain
from lorapipe_engine.networks.describe import Network, NetworkModule, describe_network
from lorapipe_engine.networks.read import module_label, scale_of, why_unknown
from lorapipe_inspect.measure.spelling import (
    BARE,
    BARE_TEXT,
    COMFY,
    KOHYA,
    KOHYA_BARE_TEXT,
    KOHYA_OFT,
    KOHYA_OTHER,
    LDM,
    LYCORIS,
    MIXED,
    OLD_TEXT,
    OMI,
    OTHER,
    PEFT,
    PIPELINE,
    PROCESSOR,
    is_attention,
    is_text_attention,
    spelling_of,
)

YES, NO, PART, WRONG = "yes", "no", "in part", "wrong"
_FLAT = frozenset({KOHYA, KOHYA_OTHER, KOHYA_BARE_TEXT, LYCORIS, KOHYA_OFT})
FORGES_LIMIT = 12  # keys without a place, above which Forge refuses a file


@dataclass(frozen=True)
class Facts:
    """What decides who reads a file. ``schemes``: how many modules are spelled how; ``algorithms``: of its modules;
    ``dtypes``: number types of its factors; ``alphas``: of plain LoRA, by part.
    """

    family: str | None
    foreign: str | None
    schemes: Mapping[str, int]
    algorithms: tuple[str, ...]
    dora: bool
    tucker: bool
    conv: bool
    missing_alpha: int
    dtypes: tuple[str, ...]
    strangers: int
    modules: int

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def in_words(self) -> str:
        """The facts in a line."""
        family = FAMILIES[self.family].title if self.family else self.foreign or "family unknown"
        extras = [name for name, there in (("DoRA", self.dora), ("Tucker", self.tucker)) if there]
        # One word with every subcommand: LoRA with convolutions is "locon".
        algorithms = "+".join("locon" if name == "lora" and self.conv else name for name in self.algorithms)
        names = " and ".join(self.schemes)
        parts = [family, algorithms, *extras, f"names of {names}", ", ".join(self.dtypes)]
        if self.missing_alpha:
            parts.append(f"{counted(self.missing_alpha, 'module')} without alpha")
        return ", ".join(parts)


@dataclass
class Answer:
    """What a program does with a file: how many modules it applies as they are meant, ``dropped``: passes over in
    silence, ``wrong``: applies otherwise; or it refuses the file. ``mend``: the command that makes a file for it.
    """

    applied: int = 0
    dropped: int = 0
    wrong: int = 0
    refused: bool = False
    why: list[str] = field(default_factory=list)
    mend: str | None = None

    @property
    def reads(self) -> str:
        """In a word: "yes", "no", "in part", or "wrong" where all that is applied is so wrongly."""
        if self.refused or not (self.applied or self.wrong):
            return NO
        if not (self.dropped or self.wrong):
            return YES
        return PART if self.applied else WRONG

    def as_record(self) -> dict[str, Any]:
        return {"reads": self.reads, **asdict(self)}


@dataclass(frozen=True)
class _Case:
    """A module as a program meets it."""

    module: NetworkModule
    spelling: str
    file: WeightFile
    network: Network
    commonest: Mapping[str, float]
    unknown: str | None  # why no tool here knows what the network changes

    @property
    def shape(self) -> tuple[int, ...]:
        key = self.module.keys.get("lora_up.weight")
        return self.file.tensors[key].shape if key else ()

    @property
    def scale_elsewhere(self) -> bool:
        """Whether the strength is in a configuration, and is not 1."""
        module = self.module
        return module.alpha is None and scale_of(module) != 1.0

    @property
    def per_output(self) -> bool:
        """Whether DoRA's magnitudes go by outputs."""
        key = self.module.keys.get("dora_scale")
        if key is None:
            return False
        shape = self.file.tensors[key].shape
        return self.module.magnitude_per_output or not (len(shape) > 1 and shape[0] == 1)


# What a program does with a module: ("ok" | "drop" | "wrong" | "refuse", why).
_Verdict = tuple[str, str]
_OK: _Verdict = ("ok", "")
_Judge = Callable[[_Case], _Verdict]


def facts_of(file: WeightFile) -> Facts:
    """The facts of an open network. Raises InputError for other files."""
    network = describe_network(file)
    modules = _changing(network)
    factors = {
        file.tensors[key].dtype for m in modules for suffix, key in m.keys.items() if suffix != "alpha"
    }
    return Facts(
        family=network.family,
        foreign=network.foreign,
        schemes=dict(Counter(spelling_of(module, network) for module in modules).most_common()),
        algorithms=tuple(sorted({module.algorithm for module in modules})),
        dora=any(module.dora for module in modules),
        tucker=any(module.tucker for module in modules),
        conv=any(module.kernel for module in modules),
        missing_alpha=sum(m.alpha is None for m in modules if m.rank is not None),
        dtypes=tuple(sorted(factors)),
        strangers=len(network.others),
        modules=len(modules),
    )


def examine(file: WeightFile, name: str) -> dict[str, Answer]:
    """What every program makes of an open network; ``name`` is what the commands call it. Raises InputError."""
    network = describe_network(file)
    commonest, unknown = _commonest_alphas(network), why_unknown(network)
    cases = [
        _Case(module, spelling_of(module, network), file, network, commonest, unknown)
        for module in _changing(network)
    ]
    answers = {}
    for program, judge in _JUDGES.items():
        answer = _answer(cases, judge)
        if network.foreign:
            answer = Answer(refused=True, why=[f"was not looked at for {network.foreign}"])
        elif program == "Forge" and _without_place(cases, judge) > FORGES_LIMIT:
            answer.refused = True
            answer.why.append(
                f"refuses a file with more than {FORGES_LIMIT} tensors that it has no place for"
            )
        if answer.reads != YES and not network.foreign:
            answer.mend = _mend(program, cases, answer, name)
        answers[program] = answer
    return answers


def _changing(network: Network) -> list[NetworkModule]:
    """The modules of more than an alpha that was left behind."""
    return [module for module in network.modules.values() if module.keys.keys() != {"alpha"}]


def _commonest_alphas(network: Network) -> dict[str, float]:
    alphas: dict[str, Counter[float]] = {}
    for module in network.modules.values():
        if is_plain(module.algorithm) and module.effective_alpha is not None:
            alphas.setdefault(module.part, Counter())[module.effective_alpha] += 1
    return {part: counts.most_common(1)[0][0] for part, counts in alphas.items()}


def _answer(cases: list[_Case], judge: _Judge) -> Answer:
    answer = Answer()
    reasons: Counter[tuple[str, str]] = Counter()
    for case in cases:
        verdict, why = judge(case)
        if verdict == "refuse":
            answer.refused = True
        answer.applied += verdict == "ok"
        answer.dropped += verdict in ("drop", "refuse")
        answer.wrong += verdict == "wrong"
        if why:
            reasons[verdict, why] += 1
    words = {
        "drop": "passes over",
        "wrong": "applies wrongly",
        "refuse": "refuses the file for",
        "ok": "reads",
    }
    for (verdict, why), count in reasons.most_common():
        answer.why.append(f"{words[verdict]} {count}: {why}")
    if answer.refused:
        answer.applied = answer.wrong = 0
        answer.dropped = len(cases)
    return answer


def _without_place(cases: list[_Case], judge: _Judge) -> int:
    return sum(len(case.module.keys) for case in cases if judge(case)[0] == "drop")


# -------------------------------------------------------------------------------- the programs


def _names_of(*spellings: str) -> Callable[[_Case], _Verdict | None]:
    """The verdict on a module whose names the program does not know; None for one that it knows."""

    def judge(case: _Case) -> _Verdict | None:
        return None if case.spelling in spellings else ("drop", f"names of {case.spelling}")

    return judge


_WEB_UI_NAMES = _names_of(KOHYA, KOHYA_OTHER, KOHYA_OFT)
_COMFY_NAMES = _names_of(KOHYA, KOHYA_OTHER, LYCORIS, COMFY, PIPELINE, PROCESSOR, BARE)
_SCRIPTS_NAMES = _names_of(KOHYA)
_LYCORIS_NAMES = _names_of(KOHYA, KOHYA_OTHER, LYCORIS)
_DIFFUSERS_NAMES = _names_of(
    *(KOHYA, KOHYA_OTHER, KOHYA_BARE_TEXT, PIPELINE, MIXED, PROCESSOR, OLD_TEXT, BARE_TEXT)
)


def _a1111(case: _Case) -> _Verdict:
    unknown = _WEB_UI_NAMES(case)
    if unknown or case.module.algorithm == "unknown":
        return unknown or ("drop", "an unknown algorithm")
    lost = ("add_embedding_", "up_blocks_0_upsamplers_0_conv")
    if case.network.family == "sdxl" and case.module.path.removeprefix("lora_unet_").startswith(lost):
        return "drop", "layers that have no such name in its SDXL"
    if case.module.algorithm in ("glora", "ia3") and case.module.kernel:
        return "refuse", f"{case.module.algorithm} on a convolution"
    return _magnitudes(case, "takes DoRA by inputs alone")


def _comfy(case: _Case) -> _Verdict:
    unknown = _COMFY_NAMES(case)
    if unknown:
        return unknown
    module = case.module
    if case.spelling not in _FLAT and is_attention(module) and case.spelling in (PIPELINE, BARE):
        return "drop", "attention under diffusers' names of today"
    if case.spelling == BARE and module.part != "unet":
        return "drop", "a text encoder that is not named"
    if module.algorithm in ("ia3", "unknown"):
        return "drop", f"algorithm {module.algorithm}"
    if module.algorithm == "lokr" and module.tucker:
        return "wrong", "LoKr with a Tucker core"
    if module.algorithm in ("oft", "boft") and ("rescale" in module.keys or module.alpha):
        return "wrong", "OFT with a constraint or a rescale"
    if case.spelling not in _FLAT and case.scale_elsewhere:
        return "wrong", "strengths that are not in alphas"
    return _magnitudes(case, "divides DoRA by outputs by another norm")


def _forge(case: _Case) -> _Verdict:
    if case.module.algorithm in ("oft", "boft"):
        return "drop", "OFT"
    if case.module.algorithm == "lokr" and case.module.tucker:
        return "refuse", "LoKr with a Tucker core"
    return _comfy(case)


def _magnitudes(case: _Case, why: str) -> _Verdict:
    return ("wrong", why) if case.module.dora and case.per_output else _OK


def _sd_scripts(case: _Case) -> _Verdict:
    module = case.module
    if case.spelling == KOHYA_OFT:
        return _OK
    unknown = _SCRIPTS_NAMES(case)
    if unknown:
        return unknown
    if module.algorithm != "lora" or "diff_b" in module.keys:
        return "drop", f"algorithm {module.algorithm} (LyCORIS' module reads it)"
    if module.tucker:
        return "refuse", "Tucker cores"
    if _is_folded_projection(case):
        return "refuse", "convolutions where SD 2.x has linear layers"
    return ("wrong", "drops DoRA's magnitudes") if module.dora else _OK


def _is_folded_projection(case: _Case) -> bool:
    is_projection = case.module.name.endswith(("_proj_in", "_proj_out", ".proj_in", ".proj_out"))
    return case.network.family == "sd2" and is_projection and len(case.shape) == 4


def _diffusers(case: _Case) -> _Verdict:
    module = case.module
    if case.spelling in (LYCORIS, COMFY, OMI, LDM, KOHYA_OFT):
        return "refuse", f"names of {case.spelling}"
    unknown = _DIFFUSERS_NAMES(case)
    if unknown:
        return unknown
    if module.algorithm != "lora" or module.tucker or "diff_b" in module.keys:
        what = "Tucker cores" if is_plain(module.algorithm) and module.tucker else module.algorithm
        return "refuse", f"algorithm {what}"
    if case.spelling == MIXED and any(".lora_A." in key for key in case.file.tensors):
        return "drop", "attention named otherwise than the other layers"
    if case.spelling not in _FLAT:
        return _OK
    if case.network.family == "sdxl" and module.path.startswith("lora_unet_add_embedding"):
        return "drop", "the embedding of sizes"
    if _is_folded_projection(case):
        return "refuse", "convolutions where SD 2.x has linear layers"
    if module.dora:
        return "wrong", "drops DoRA's magnitudes"
    takes_commonest = is_attention(module) or is_text_attention(module) or module.part == "te1"
    if takes_commonest and module.effective_alpha != case.commonest.get(module.part):
        return "wrong", "takes the commonest alpha of the part"
    return _OK


def _peft(case: _Case) -> _Verdict:
    if case.spelling != PEFT:
        return "drop", f"names of {case.spelling}"
    if case.network.scale_unknown:
        return "wrong", "no adapter_config.json beside it"
    return _OK


def _lycoris(case: _Case) -> _Verdict:
    unknown = _LYCORIS_NAMES(case)
    if unknown:
        return unknown
    return ("drop", "an unknown algorithm") if case.module.algorithm == "unknown" else _OK


def _ours(case: _Case) -> _Verdict:
    if case.network.scale_unknown:
        return "refuse", "no adapter_config.json beside it"
    if case.unknown:
        return "refuse", case.unknown.removeprefix(f"{case.network.path}: ")
    if case.module.algorithm == "unknown" or case.spelling == OTHER:
        return "refuse", "tensors of no known algorithm or model"
    if case.module.alpha is not None and not math.isfinite(case.module.alpha):
        return "refuse", f"an alpha of {case.module.alpha}"
    try:
        check_whole(case.file, case.module)
    except InputError as error:
        return "refuse", str(error).removeprefix(f"module {module_label(case.file, case.module)}: ")
    return _OK


_JUDGES: Mapping[str, _Judge] = MappingProxyType(
    {
        "A1111": _a1111,
        "Forge": _forge,
        "ComfyUI": _comfy,
        "sd-scripts": _sd_scripts,
        "diffusers": _diffusers,
        "PEFT": _peft,
        "LyCORIS": _lycoris,
        "lora-merge": _ours,
    }
)

# -------------------------------------------------------------------------------- the mend


def _mend(program: str, cases: list[_Case], answer: Answer, name: str) -> str | None:
    """The command whose result the program reads whole; into a checkpoint where no file would do."""
    file = shlex.quote(name)
    if any(case.network.scale_unknown for case in cases):
        return "put PEFT's adapter_config.json beside the file"
    if program == "lora-merge" or any(case.unknown for case in cases):
        return None
    kinds = {case.module.algorithm for case in cases}
    if kinds & {"ia3", "glora", "oft", "boft", "norm", "unknown"} and program not in ("LyCORIS",):
        return f"lora-merge BASE {file} -o merged.safetensors"
    dora = any(case.module.dora for case in cases)
    by_output = any(case.per_output for case in cases)
    plain = (
        " --to-lora" if kinds & {"loha", "lokr", "full"} and program in ("sd-scripts", "diffusers") else ""
    )
    if program in ("diffusers", "PEFT"):
        if dora and not all(case.per_output for case in cases if case.module.dora):
            return f"lora-merge BASE {file} -o merged.safetensors"
        if program == "PEFT":
            return f"lora-convert {file} --to peft -o folder"
        alone = answer.why and all("commonest alpha" in why for why in answer.why)
        target = "kohya --one-alpha" if alone else f"diffusers{plain}"
        return f"lora-convert {file} --to {target} -o converted.safetensors"
    if (dora and (by_output or program == "sd-scripts")) and program != "LyCORIS":
        return f"lora-merge BASE {file} -o merged.safetensors"
    tucker = any(case.module.algorithm == "lokr" and case.module.tucker for case in cases)
    target = "comfy" if tucker and program in ("ComfyUI", "Forge") else "kohya"
    return f"lora-convert {file} --to {target}{plain} -o converted.safetensors"
