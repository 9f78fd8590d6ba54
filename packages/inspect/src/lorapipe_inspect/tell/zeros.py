"""The report of ``zeros`` for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lorapipe_engine.command.text import printable
from lorapipe_inspect.measure.findings import CLEAN, FLUSHED_LIMIT, PROBLEM, Findings
from lorapipe_inspect.text import counted, listed, percent, wrapped

LABEL_WIDTH = 15


def report(findings: Findings, *, strict: bool, most: int | None) -> list[str]:
    """Lines about one file; lists show ``most`` entries, None for all."""
    problems = findings.problems(strict=strict)
    verdict = f"{PROBLEM}: {'; '.join(problems)}" if problems else CLEAN
    lines = [heading(findings)]
    for label, texts in [*value_rows(findings, most), ("verdict", [verdict])]:
        for text in texts:
            lines += wrapped(label, text, LABEL_WIDTH)
            label = ""
    return lines


def value_rows(findings: Findings, most: int | None) -> list[tuple[str, list[str]]]:
    """Labels, and the paragraphs behind them."""
    return [
        ("guide count", list(_guide_count(findings))),
        ("dead modules", list(_dead_modules(findings, most))),
        ("dead ranks", list(_dead_ranks(findings, most))),
        *((dtype, [text]) for dtype, text in _dtypes(findings)),
        ("NaN, infinite", list(_nonfinite(findings, most))),
    ]


def heading(findings: Findings) -> str:
    """What the file is, in a line."""
    tensors = counted(len(findings.dtypes), "tensor")
    dtypes = ", ".join(dict.fromkeys(findings.dtypes.values())) or "empty"
    if findings.network is None:
        return f"{printable(findings.name)}: {findings.kind}, {tensors}, {dtypes}"
    network = findings.network
    known = network.family is not None or network.foreign is not None
    family = network.title if known else "unknown family"
    kinds = " ".join([network.algorithm, *network.variants])
    modules = counted(len(network.modules), "module")
    return f"{printable(findings.name)}: {family}, {kinds}, {modules}, {tensors}, {dtypes}"


def _guide_count(findings: Findings) -> Iterator[str]:
    lines, looked_at = findings.guide_lines, findings.looked_at
    if not looked_at:
        yield "0: the guide's tool looks at no tensor of this file (it knows lora_up, lora_down, lora_A, lora_B, oft_)"
        return
    yield f"{len(lines)} of {counted(len(looked_at), 'tensor')} hold an exact zero"
    dead = [name for name in lines if findings.counts[name].all_zero]
    if dead:
        yield f"{len(dead)} {'is' if len(dead) == 1 else 'are'} all zero: {_whose(findings, dead)}"
    single = [name for name in lines if not findings.counts[name].all_zero]
    if single:
        zeros = sum(findings.counts[name].zero_in_float32 for name in single)
        share = zeros / sum(findings.counts[name].size for name in single)
        harm = "which is harmless" if share <= FLUSHED_LIMIT else "which is much"
        yield (
            f"{len(single)} {'has' if len(single) == 1 else 'have'} zeros among other values, {zeros:,} together: "
            + (
                f"{'; '.join(_why_single(findings, single))}. That is {percent(share)} of their values, {harm}"
            )
        )


def _whose(findings: Findings, names: Sequence[str]) -> str:
    """All-zero tensors by the modules they belong to."""
    deaths, network = findings.deaths, findings.network
    if deaths is None or network is None:
        return "see below"
    owners = {key: module.name for module in network.modules.values() for key in module.keys.values()}
    groups = (
        ("expected", set(deaths.expected)),
        ("unexpected", set(deaths.unexpected)),
    )
    phrases = []
    for word, modules in groups:
        mine = [name for name in names if owners.get(name) in modules]
        if mine:
            sides = dict.fromkeys(_side(name) for name in mine)
            dead = {owners[name] for name in mine}
            phrases.append(f"{' and '.join(sides)} of {_modules_in_words(sorted(dead))} ({word})")
    rest = sum(owners.get(name) not in groups[0][1] | groups[1][1] for name in names)
    if rest:
        phrases.append(f"{rest} of modules that still change something")
    return ", ".join(phrases)


def _side(name: str) -> str:
    match = re.search(r"lora_up|lora_down|lora_A|lora_B|oft_\w+", name)
    return match[0] if match else name


def _modules_in_words(names: Sequence[str]) -> str:
    layers = [re.search(r"encoder[._]layers[._](\d+)[._]", name) for name in names]
    numbers = sorted({int(layer[1]) for layer in layers if layer})
    text = counted(len(names), "module")
    if all(layers) and len(numbers) == 1:
        return f"{text} of text layer {numbers[0]}"
    return f"{text} of {len(numbers)} text layers" if all(layers) else text


def _why_single(findings: Findings, names: Sequence[str]) -> list[str]:
    modules = tuple(f"{module}." for module in (findings.deaths.ranks if findings.deaths else ()))
    whole = [name for name in names if name.startswith(modules)] if modules else []
    dtypes = {findings.dtypes[name] for name in names if name not in whole}
    reasons = []
    if whole:
        reasons.append(f"{counted(len(whole), 'tensor')} through dead ranks")
    if "F16" in dtypes:
        reasons.append("fp16 rounds magnitudes up to 2^-25 (0.00000003) to zero")
    if any(dtype.startswith("F8") for dtype in dtypes):
        reasons.append("8-bit types have few small numbers")
    if dtypes & {"BF16", "F32", "F64"}:
        reasons.append("bf16 and fp32 hardly ever round to zero, so values were rounded earlier or set")
    return reasons


def _dead_modules(findings: Findings, most: int | None) -> Iterator[str]:
    deaths = findings.deaths
    if deaths is None:
        yield f"not judged: {findings.kind}"
        return
    yield f"{len(deaths.expected)} expected, {len(deaths.unexpected)} unexpected"
    yield deaths.rule
    yield from (f"note: {note}" for note in deaths.notes)
    if deaths.unexpected:
        yield from (f"unexpected: {name}" for name in listed(deaths.unexpected, most))


def _dead_ranks(findings: Findings, most: int | None) -> Iterator[str]:
    ranks = findings.deaths.ranks if findings.deaths else {}
    if not ranks:
        yield "none"
        return
    yield f"{sum(ranks.values())} in {counted(len(ranks), 'module')}: a smaller rank does the same"
    yield from listed([f"{count} in {name}" for name, count in ranks.items()], most)


def _dtypes(findings: Findings) -> Iterator[tuple[str, str]]:
    for dtype, totals in findings.by_dtype.items():
        flushed = findings.flushed_by_dtype[dtype]
        zeros = f"{percent(totals.share('zero'))} zero"
        if totals.share("zero") != flushed:
            zeros += f" ({percent(flushed)} without all-zero tensors)"
        yield dtype, f"{totals.total:,} values: {zeros}, {percent(totals.share('subnormal'))} subnormal"
    if findings.skipped:
        yield "not counted", counted(len(findings.skipped), "tensor") + " of 4 or 6 bit types"


def _nonfinite(findings: Findings, most: int | None) -> Iterator[str]:
    elements = findings.elements
    if not elements.nan and not elements.inf:
        yield "none"
        return
    yield f"{elements.nan} NaN, {elements.inf} infinite"
    places = [f"{place.value} at {printable(place.tensor)}{list(place.index)}" for place in findings.places]
    yield from listed(places, most, total=elements.nan + elements.inf)
