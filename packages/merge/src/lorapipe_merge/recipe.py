"""What a merged file says of itself: ``modelspec.*`` and one ``lora_merge.recipe``, from which it can be made again.

Equal inputs give equal metadata: the date is that of SOURCE_DATE_EPOCH or of the newest input, not of the clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lorapipe_engine import __version__
from lorapipe_engine.models.predictions import EPSILON
from lorapipe_engine.networks.metadata import ModelSpec

RECIPE_KEY = "lora_merge.recipe"
# True of the file that was merged, not of the result.
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", "modelspec.thumbnail")


@dataclass(frozen=True)
class Source:
    """An input: where it was, its sha256 in hexadecimal, its ratio (None for a base)."""

    path: Path
    sha256: str
    ratio: float | None = None

    def as_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"file": self.path.name, "sha256": self.sha256}
        return record if self.ratio is None else {**record, "ratio": self.ratio}


def recipe(mode: str, inputs: Mapping[str, Source | Sequence[Source]], **settings: Any) -> str:
    """The recipe as JSON: version, mode ("checkpoint", "networks", "models"), inputs by their part in it, settings.

    Settings that are None are left out.
    """
    record: dict[str, Any] = {"tool": "lora-merge", "version": __version__, "mode": mode}
    for name, sources in inputs.items():
        record[name] = (
            sources.as_record() if isinstance(sources, Source) else [source.as_record() for source in sources]
        )
    record |= {name: value for name, value in settings.items() if value is not None}
    return json.dumps(record, ensure_ascii=False)


def merged_metadata(
    old: Mapping[str, str],
    recipe_text: str,
    *,
    family: str | None,
    title: str,
    merged_from: Sequence[str],
    date: datetime,
    prediction: str | None = None,
) -> dict[str, str]:
    """The metadata of a merged checkpoint: those of the base, ``modelspec.*`` brought up to date, and the recipe.

    ``prediction``: what the model says that it predicts; epsilon where it says nothing.
    """
    new = {key: value for key, value in old.items() if key not in _STALE}
    if family is not None:
        spec = ModelSpec(
            family=family,
            adapter=False,
            title=title,
            date=date,
            prediction=prediction or EPSILON.name,
            merged_from=", ".join(merged_from),
        ).metadata()
        # What the base knows better (resolution, licence, author) stays as it says.
        fresh = ("sai_model_spec", "title", "date", "merged_from")
        keep = {key for key in spec if key.removeprefix("modelspec.") not in fresh and key in old}
        new |= {key: value for key, value in spec.items() if key not in keep}
    new[RECIPE_KEY] = recipe_text
    return new
