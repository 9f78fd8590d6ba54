"""All rules, a file a group. A new group is a module with ``CHECKS`` and a line here."""

from __future__ import annotations

from lorapipe_dataset.check.findings import Check, Rule
from lorapipe_dataset.check.rules import balance, captions, copies, files, pictures, tags

CHECKS: tuple[Check, ...] = (
    *files.CHECKS,
    *captions.CHECKS,
    *tags.CHECKS,
    *pictures.CHECKS,
    *copies.CHECKS,
    *balance.CHECKS,
)
RULES: dict[str, Rule] = {rule.id: rule for check in CHECKS for rule in check.rules}
