"""Files: what cannot be read, what belongs to nothing, what is in the wrong place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorapipe_dataset.check.findings import Check, Finding, Rule
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset, Picture
from lorapipe_engine.pictures.captions import CAPTION_SUFFIXES
from lorapipe_engine.pictures.layout import MASK_MARK, strange_kind

UNREADABLE = Rule(
    "unreadable",
    "error",
    "Pictures that cannot be read",
    "get them again, or take them out (--fix moves them away)",
    fixable=True,
)
TOO_LARGE = Rule(
    "too-large", "error", "Pictures too large to open", "scale them down to a few thousand pixels a side"
)
OTHER_FORMAT = Rule(
    "other-format",
    "warning",
    "Pictures in formats that are not trained",
    "convert them to PNG, or take them out",
)
UNREAD_FOLDER = Rule("unread-folder", "error", "Folders that cannot be read", "mend their permissions")
ORPHAN_CAPTION = Rule(
    "orphan-caption", "warning", "Captions without a picture", "remove them (--fix does)", fixable=True
)
ORPHAN_CACHE = Rule(
    "orphan-cache",
    "warning",
    "Cached latents (.npz) without a picture",
    "remove them (--fix does)",
    fixable=True,
)
ORPHAN_MASK = Rule(
    "orphan-mask", "warning", "Masks without a picture", "remove them (--fix does)", fixable=True
)
MASK_TRAINED = Rule(
    "mask-trained",
    "warning",
    "Masks among the pictures: lora-train leaves them out, sd-scripts trains them",
    "move them into a folder of their own outside the dataset, for --conditioning_data_dir",
)
STEM_CLASH = Rule(
    "stem-clash",
    "error",
    "Pictures that share one caption, because only their suffix differs",
    "rename one of them and give it a caption of its own (--fix does, with a copy of the caption)",
    fixable=True,
)
CASE_CLASH = Rule(
    "case-clash",
    "warning",
    "Names that are one on Windows and macOS",
    "rename one of them (--fix does)",
    fixable=True,
)
ODD_NAME = Rule("odd-name", "info", "Names with control characters or line ends", "rename them")
NOT_TRAINED = Rule(
    "not-trained",
    "warning",
    "Pictures outside the folders N_concept: they are not trained",
    "move them into one, or rename their folder",
)
NOTHING_TRAINED = Rule(
    "nothing-trained",
    "error",
    "No picture here is trained",
    "rename a folder to N_concept, as 10_mayu (10 is how often its pictures come in an epoch), or run lora-repeats",
)
NO_REPEATS = Rule(
    "no-repeats",
    "warning",
    "Folders without a number: lora-train wants N_concept",
    "lora-repeats DIR -o DATASET/, or --rename",
)


def find_broken(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Pictures that the trainer will stop at."""
    for picture in dataset.pictures:
        look = picture.look
        problem = (look.problem if look else None) or picture.problem
        if problem is None:
            continue
        large = (look is not None and look.too_large) or "more pixels" in problem
        rule = TOO_LARGE if large else UNREADABLE
        text = problem + (f" ({picture.size[0]}x{picture.size[1]})" if large and picture.size else "")
        yield Finding(rule, text, (picture.path,))
    for text in dataset.unread:
        yield Finding(UNREAD_FOLDER, text)


def find_orphans(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Files that belong to no picture, and pictures in other formats."""
    stems: dict[Path, list[str]] = {}
    for picture in dataset.pictures:
        stems.setdefault(picture.path.parent, []).append(picture.path.stem)
    extension = f".{options.caption_extension.lstrip('.')}"
    kinds = {path: kind for path in dataset.others if (kind := strange_kind(path))}
    formats = {path.with_suffix("") for path in kinds}
    for path in dataset.others:
        suffix = path.suffix.lower()
        if path in kinds:
            yield Finding(OTHER_FORMAT, kinds[path].removeprefix(".").upper(), (path,))
        elif suffix in (*CAPTION_SUFFIXES, extension.lower()):
            # Pictures of another format have captions too.
            if path.with_suffix("") not in formats and path.with_suffix("") not in dataset.others:
                yield Finding(ORPHAN_CAPTION, "no picture of this name", (path,))
        elif suffix == ".npz" and not any(path.stem.startswith(stem) for stem in stems.get(path.parent, ())):
            yield Finding(ORPHAN_CACHE, "no picture of this name", (path,))
    yield from _mask_findings(dataset, stems)


def _mask_findings(dataset: Dataset, stems: dict[Path, list[str]]) -> Iterator[Finding]:
    trained = {place.path for place in dataset.places if place.trained}
    for path in dataset.masks:
        beside = path.stem.endswith(MASK_MARK)
        folder, stem = (
            (path.parent, path.stem.removesuffix(MASK_MARK)) if beside else (path.parent.parent, path.stem)
        )
        if stem not in stems.get(folder, ()):
            yield Finding(ORPHAN_MASK, "no picture of this name", (path,))
        elif beside and path.parent in trained:
            yield Finding(MASK_TRAINED, f"mask of {stem}", (path,))


def find_clashes(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Pictures whose names are too alike."""
    stems: dict[Path, list[Picture]] = {}
    folded: dict[tuple[Path, str], list[Picture]] = {}
    for picture in dataset.pictures:
        if picture.caption_path is None or picture.caption_path.stem != picture.path.name:
            # A picture with a caption a.png.txt shares none.
            stems.setdefault(picture.path.with_suffix(""), []).append(picture)
        folded.setdefault((picture.path.parent, picture.path.stem.casefold()), []).append(picture)
        if not picture.path.name.isprintable():
            yield Finding(ODD_NAME, "control characters in the name", (picture.path,))
    for group in stems.values():
        if len(group) > 1:
            yield Finding(STEM_CLASH, f"{len(group)} pictures of one name", tuple(p.path for p in group))
    for group in folded.values():
        if len({picture.path.stem for picture in group}) > 1:
            yield Finding(CASE_CLASH, "differ in capital letters only", tuple(p.path for p in group))


def find_misplaced(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Pictures that training does not find."""
    if not dataset.trained:
        yield Finding(NOTHING_TRAINED, "; ".join(dataset.left_out) or "there is no picture")
    for place in dataset.places:
        paths = tuple(picture.path for picture in dataset.pictures if picture.place == place)
        if not place.trained:
            if paths:
                reason = dataset.untrained.get(place.path, f"in {place.path}")
                yield Finding(NOT_TRAINED, f"{len(paths)} picture{'s' * (len(paths) != 1)} {reason}", paths)
        elif place.repeats is None and paths and not place.inner:
            name = place.path.resolve().name
            yield Finding(
                NO_REPEATS,
                f"{place.path}: rename it to 10_{name}, or build a dataset",
                (),
                {"folder": str(place.path)},
            )


CHECKS = (
    Check((UNREADABLE, TOO_LARGE, UNREAD_FOLDER), find_broken),
    Check((OTHER_FORMAT, ORPHAN_CAPTION, ORPHAN_CACHE, ORPHAN_MASK, MASK_TRAINED), find_orphans),
    Check((STEM_CLASH, CASE_CLASH, ODD_NAME), find_clashes),
    Check((NOTHING_TRAINED, NOT_TRAINED, NO_REPEATS), find_misplaced),
)
