"""The report as one HTML page that needs nothing else: thumbnails, tags and findings to browse."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.findings import SEVERITIES
from lorapipe_dataset.check.pictures.dataset import Picture
from lorapipe_dataset.check.reports.report import Report, concepts, summary
from lorapipe_dataset.texts.vocabulary import canonical, shown

HERE = Path(__file__).parent
STYLE, SCRIPT, DATA = "/*STYLE*/", "/*SCRIPT*/", "/*DATA*/null"


@dataclass(frozen=True)
class Parts:
    """What a page is joined from: files beside this one."""

    frame: str
    styles: tuple[str, ...]
    scripts: tuple[str, ...]


EDITOR = Parts(
    "editor/editor.html",
    ("page.css", "editor/editor.css"),
    (
        "filters.js",
        *(
            f"editor/{name}.js"
            for name in ("model", "server", "grid", "words", "panel", "chips", "caption", "keys")
        ),
    ),
)
REPORT = Parts("page.html", ("page.css",), ("filters.js", "report.js"))


def page(report: Report) -> str:
    """The whole page. Its script works on a JSON object in it; nothing is loaded from anywhere."""
    return _joined(REPORT, _data(report))


def edit_page(data: dict[str, Any]) -> str:
    """The page of ``lora-check --edit``, of data that the server makes."""
    return _joined(EDITOR, data)


def _joined(parts: Parts, data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # A caption must not end the script.
    for letter, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(letter, escape)
    head, body = _read((parts.frame,)).split(STYLE)
    body, end = body.split(SCRIPT)
    script, rest = _read(parts.scripts).split(DATA)
    return f"{head}{_read(parts.styles)}{body}{script}{text}{rest}{end}"


def _read(names: tuple[str, ...]) -> str:
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names)


def _data(report: Report) -> dict[str, Any]:
    places = {picture.path: index for index, picture in enumerate(report.dataset.pictures)}
    words = {tag: index for index, (tag, _) in enumerate(report.tags)}
    return {
        "title": ", ".join(str(root) for root in report.roots),
        "summary": summary(report),
        "severities": SEVERITIES,
        "concepts": concepts(report.dataset),
        "tags": report.tags,
        "buckets": report.buckets.as_record(),
        "pictures": [_picture(picture, words) for picture in report.dataset.pictures],
        "rules": rules_of(report, places),
        "skipped": [[rule.id, why] for rule, why in report.skipped],
    }


def rules_of(report: Report, places: Mapping[Path, int]) -> list[dict[str, Any]]:
    """The rules with their cases, the gravest first; ``places``: the pictures' numbers on the page."""
    return [
        {
            "id": name,
            "severity": group[0].severity,
            "title": group[0].rule.title,
            "fix": group[0].rule.fix,
            "cases": [
                {
                    "text": finding.text,
                    "pictures": [places[path] for path in finding.paths if path in places],
                    "files": [str(path) for path in finding.paths if path not in places],
                }
                for finding in group
            ],
        }
        for name, group in report.by_rule.items()
    ]


def _picture(picture: Picture, words: dict[str, int]) -> dict[str, Any]:
    thumbnail = picture.look.thumbnail if picture.look else None
    tags = dict.fromkeys(shown(canonical(tag)) for tag in picture.tags)
    return {
        "path": str(picture.path),
        "link": picture.path.absolute().as_uri(),
        "concept": picture.place.concept,
        "size": picture.size,
        "caption": picture.caption,
        "tags": [words[tag] for tag in tags if tag in words],
        "image": f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}" if thumbnail else None,
    }
