"""All rules, a file a group. A new group is a module with ``CHECKS`` and a line here."""

from __future__ import annotations

from lorapipe_dataset.check.findings import Check, Rule
from lorapipe_dataset.check.rules import balance, captions, copies, files, pictures, tags

OF_CAPTIONS: tuple[Check, ...] = (*captions.CHECKS, *tags.CHECKS)
OF_COPIES: tuple[Check, ...] = copies.CHECKS
CHECKS: tuple[Check, ...] = (
    *files.CHECKS,
    *OF_CAPTIONS,
    *pictures.CHECKS,
    *OF_COPIES,
    *balance.CHECKS,
)
RULES: dict[str, Rule] = {rule.id: rule for check in CHECKS for rule in check.rules}
