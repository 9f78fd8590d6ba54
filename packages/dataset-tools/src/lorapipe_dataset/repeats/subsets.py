"""The dataset as sd-scripts' TOML: the folders stay where they are, the file says how often each comes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lorapipe_dataset.repeats.plan import Row
from lorapipe_dataset.repeats.tree import check_text
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.links import LeadsOut, within
from lorapipe_engine.pictures.caption_files import CaptionFinder
from lorapipe_engine.pictures.captions import read_caption
from lorapipe_engine.pictures.layout import find_images
from lorapipe_engine.settings import DataSettings


def dataset_toml(rows: Sequence[Row], data: DataSettings, extension: str) -> str:
    """The text of the file. Raises ConfigError where folders cannot say what the plan says."""
    owners: dict[Path, str] = {}
    blocks = []
    for row in rows:
        for folder in row.concept.folders:
            other = owners.setdefault(folder.resolve(), row.concept.name)
            if other != row.concept.name:
                raise ConfigError(f"{folder}: holds two concepts ({other}, {row.concept.name}); {_TREE}")
            _check_whole(row, folder)
            blocks.append(_subset(row, folder))
        _check_captions(row, extension)
    head = [
        "[general]",
        f"caption_extension = {_quoted(extension)}",
        "",
        "[[datasets]]",
        f"resolution = [{data.size[0]}, {data.size[1]}]",
        f"batch_size = {data.train_batch_size}",
        f"enable_bucket = {str(data.enable_bucket).lower()}",
        f"min_bucket_reso = {data.min_bucket_reso}",
        f"max_bucket_reso = {data.max_bucket_reso}",
        f"bucket_reso_steps = {data.bucket_reso_steps}",
        f"bucket_no_upscale = {str(data.bucket_no_upscale).lower()}",
        "",
    ]
    return "\n".join(head + blocks)


_TREE = "a TOML names whole folders, so build a tree with -o FOLDER/"


def _subset(row: Row, folder: Path) -> str:
    return "\n".join(
        [
            "[[datasets.subsets]]",
            f"image_dir = {_quoted(str(folder.resolve()))}",
            f"class_tokens = {_quoted(row.concept.name)}",
            f"num_repeats = {row.repeats}",
            "",
        ]
    )


def _check_whole(row: Row, folder: Path) -> None:
    listed = {picture.path.name for picture in row.concept.pictures if picture.path.parent == folder}
    others = [path.name for path in find_images(folder) if path.name not in listed]
    if others:
        raise ConfigError(f"{folder}: {len(others)} of its pictures are not in the list; {_TREE}")


def _check_captions(row: Row, extension: str) -> None:
    finder = CaptionFinder(extension)
    for picture in row.concept.pictures:
        beside = finder.of(picture.path)
        if picture.caption is None:
            if beside is not None:
                with suppress(LeadsOut):
                    check_text(beside, picture.home)
            continue
        if beside is None or read_caption(beside, read=within(picture.home)) != picture.caption.strip():
            raise ConfigError(f"{picture.path}: its new caption is in no file; {_TREE}")


def _quoted(text: str) -> str:
    # JSON leaves DEL as it is, TOML does not take it.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
