"""Which picture a metadata file means by a name. Every tool asks here, so all find the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorapipe_engine.pictures.caption_files import one_form


class PictureNames:
    """Pictures by their names, which may be paths from a folder: with the suffix, else without it. A name whose accents
    are written in the other form counts where no picture has exactly that name.
    """

    def __init__(self, pictures: Mapping[str, Path]) -> None:
        self._by_name = dict(pictures)
        self._by_stem: dict[str, Path] = {}
        self._by_form: dict[str, Path] = {}
        for name, path in pictures.items():
            stem = name.removesuffix(path.suffix)
            self._by_stem[stem] = path
            for text in (name, stem):
                self._by_form.setdefault(one_form(text), path)

    def of(self, name: str) -> Path | None:
        """The picture of a name; None where there is none."""
        return self._by_name.get(name) or self._by_stem.get(name) or self._by_form.get(one_form(name))
