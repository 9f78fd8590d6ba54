"""What the page is told: pictures, tags and findings as JSON, with paths from the folder on."""

from __future__ import annotations

from typing import Any

from lorapipe_dataset.check.edit.hints import Hints
from lorapipe_dataset.check.edit.shelf import Item, Shelf
from lorapipe_dataset.check.findings import SEVERITIES
from lorapipe_dataset.check.reports.page import rules_of
from lorapipe_dataset.check.reports.report import Report, concepts, summary


def picture_record(item: Item, shelf: Shelf, hints: Hints) -> dict[str, Any]:
    """A picture as it is. ``tags`` stand as in the caption's first line, the mark ``|||`` among them."""
    picture = item.picture
    record = {
        "id": item.id,
        "path": shelf.relative(item.home),
        "concept": picture.place.concept,
        "size": picture.size,
        "caption": item.text,
        "tags": picture.pieces,
        "version": item.version,
        "out": item.out,
        "image": f"thumb/{item.id}?v={item.image}",
        "link": f"picture/{item.id}?v={item.image}",
    }
    if picture.trouble or picture.outside:
        record["trouble"] = picture.trouble or "a link out of the dataset"
    if item.gone:
        record["gone"] = True
    if offered := hints.of(picture):
        record["hints"] = offered
    return record


def findings_record(report: Report, shelf: Shelf) -> dict[str, Any]:
    """What was found: the rules with their cases, of which pictures are named by their numbers."""
    rules = rules_of(report, {item.picture.path: item.id for item in shelf.present()})
    for rule in rules:
        for case in rule["cases"]:
            case["text"] = shelf.plain(case["text"])
            case["files"] = [shelf.relative(name) for name in case["files"]]
    return {
        "rules": rules,
        "summary": summary(report),
        "tags": report.tags,
        "concepts": concepts(report.dataset),
    }


def page_record(report: Report, shelf: Shelf, hints: Hints, more: dict[str, Any]) -> dict[str, Any]:
    """All that the page begins with; ``more`` is what it needs to edit."""
    return {
        "title": shelf.title,
        "severities": SEVERITIES,
        "buckets": report.buckets.as_record() | {"worst": []},
        "pictures": [picture_record(item, shelf, hints) for item in shelf.items],
        "skipped": [[rule.id, shelf.plain(why)] for rule, why in report.skipped],
        **findings_record(report, shelf),
        "edit": more,
    }
