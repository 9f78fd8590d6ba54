"""The report of ``check`` for people: what ``zeros`` says, with the other checks around it."""

from __future__ import annotations

from lorapipe_inspect.measure.checks import CheckResult
from lorapipe_inspect.measure.findings import CLEAN, PROBLEM
from lorapipe_inspect.tell.zeros import LABEL_WIDTH, heading, value_rows
from lorapipe_inspect.text import size_in_words, wrapped


def check_lines(result: CheckResult, *, most: int | None) -> list[str]:
    """Lines about one file; lists show ``most`` entries, None for all."""
    network = result.findings.network
    rows = [("container", [f"{result.container}, {size_in_words(result.size)} of tensors"])]
    if network is not None:
        parts = ", ".join(f"{number} in {part}" for part, number in network.parts.items())
        ranks = ", ".join(f"{rank} ({number})" for rank, number in sorted(network.ranks.items())) or "none"
        alphas = sorted({module.alpha for module in network.modules.values() if module.alpha is not None})
        shown = ", ".join(f"{alpha:g}" for alpha in alphas[:8]) + (", ..." if len(alphas) > 8 else "")
        rows += [
            ("modules", [parts]),
            ("ranks", [ranks]),
            ("alphas", [shown or "none stored"]),
            ("metadata", [f"{len(network.metadata)} entries"]),
        ]
    if result.data_hash:
        rows.append(("AutoV3", [result.data_hash[:12]]))
    rows += value_rows(result.findings, most)
    rows += [("problem", list(result.problems)), ("note", list(result.notes))]
    rows.append(("verdict", [PROBLEM if result.problems else CLEAN]))
    lines = [heading(result.findings)]
    for label, texts in rows:
        for text in texts:
            lines += wrapped(label, text, LABEL_WIDTH)
            label = "" if label not in ("problem", "note") else label
    return lines
