"""From folders to pictures: their captions, their sizes (from headers alone) and their places in buckets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lorapipe_engine.command.progress import Progress, progress
from lorapipe_engine.datasets.folders import dataset_specs
from lorapipe_engine.datasets.listed import read_listed
from lorapipe_engine.datasets.pairs import ROWS_AN_EPOCH, Pairs, read_pairs
from lorapipe_engine.datasets.spec import DatasetSpec, Subset, dataset_of
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.links import LeadsOut, leads_out, within
from lorapipe_engine.pictures.buckets import FINEST_STEP, BucketRule, Placement, Size, place
from lorapipe_engine.pictures.caption_files import CaptionNames, caption_suffix
from lorapipe_engine.pictures.captions import read_caption
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.layout import find_images
from lorapipe_engine.settings import DataSettings


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to train: file, caption, repeats an epoch, place in its bucket, size in the file (w, h); the numbers
    of its dataset and of its subset among all; the file of its mask, if it has one. ``private``: the caption came by a
    link out of the dataset, so it is trained and left out of what is published."""

    path: Path
    caption: str
    repeats: int
    placement: Placement
    size: Size
    dataset: int = 0
    subset: int = 0
    mask: Path | None = None
    private: bool = False


@dataclass(frozen=True)
class Folder:
    """A subset as it was found: its pictures, those without a caption file, those whose file is empty, those whose
    caption came by a link out of the dataset, those of whose caption only the first line is trained, and the names of
    those that share one file of a caption with others.
    Where a file names the pictures: those of it that are ``missing`` in the folder, those of the folder that are
    ``unlisted`` in it, and in how many of its rows each key is ``unread``."""

    subset: Subset
    dataset: int
    pictures: int
    without_caption: int
    empty_captions: int = 0
    private_captions: int = 0
    missing: int = 0
    unlisted: int = 0
    cut_captions: int = 0
    shared: tuple[str, ...] = ()
    unread: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Dataset:
    """All pictures of a run, the folders they come from, and what was asked for. Several datasets count as one whose
    batches never mix them. ``validation`` are pictures that are not trained."""

    pictures: tuple[Picture, ...]
    folders: tuple[Folder, ...]
    specs: tuple[DatasetSpec, ...]
    validation: tuple[Picture, ...] = ()

    @property
    def buckets(self) -> list[tuple[int, Size]]:
        """The dataset and the bucket of each picture; pictures of one pair may share a batch."""
        return [(picture.dataset, picture.placement.bucket) for picture in self.pictures]

    @property
    def pairs(self) -> Pairs | None:
        """The pairs of prompts that a slider is trained from in the place of pictures."""
        return self.folders[0].subset.pairs

    @property
    def repeats(self) -> list[int]:
        """The repeats of each picture."""
        return [picture.repeats for picture in self.pictures]

    @property
    def batch_sizes(self) -> list[int]:
        """The batch size of each dataset."""
        return [spec.batch_size for spec in self.specs]

    def subset_of(self, picture: Picture) -> Subset:
        """How the folder of a picture is trained."""
        return self.folders[picture.subset].subset

    def count(self, *, is_reg: bool) -> int:
        """Pictures of an epoch, with repeats, that are trained for themselves or for regularisation."""
        return sum(row.repeats for row in self.pictures if self.subset_of(row).is_reg == is_reg)


@dataclass(frozen=True)
class _Source:
    """A subset with its pictures, and their captions where a file names both."""

    dataset: int
    subset: Subset
    paths: Sequence[Path]
    captions: Mapping[Path, str] | None = None
    missing: int = 0
    unlisted: int = 0
    unread: tuple[tuple[str, int], ...] = ()


def scan(data: DataSettings, seed: int = 0, finest: int = FINEST_STEP, processes: int = 1) -> Dataset:
    """Read folders, captions and sizes (headers only). ``seed`` chooses the validation pictures where none is given;
    sides of buckets are multiples of ``finest`` pixels at least; ``processes`` have a batch each of a slider's pairs.

    Raises InputError for a folder that is missing, has no ``N_concept`` level or no pictures, a broken picture, or a
    caption that is not UTF-8; ConfigError for options or a dataset file that are wrong.
    """
    if data.slider is not None:
        return pairs_dataset(data, data.slider, finest, processes)
    specs = tuple(spec.with_finest_step(finest) for spec in dataset_specs(data))
    for _, subset in _numbered(specs):
        caption_suffix(subset.caption_extension, "caption_extension")
    option = "in_json" if data.dataset_config is None else "metadata_file"
    sources = [_source(number, subset, option) for number, subset in _numbered(specs)]
    for source in sources:
        if not source.paths and (source.subset.is_reg or data.dataset_config):
            raise InputError(f"{source.subset.folder}: no pictures in it (png, jpg, jpeg, webp, bmp)")
    if not any(source.paths for source in sources if not source.subset.is_reg):
        raise InputError(f"{data.train_data_dir}: no pictures in its folders (png, jpg, jpeg, webp, bmp)")
    pictures: list[Picture] = []
    folders: list[Folder] = []
    with progress(total=sum(len(row.paths) for row in sources), label="scan", unit="picture") as bar:
        for source in sources:
            rule = specs[source.dataset].buckets
            root = _root_of(source.subset.folder, data)
            folder, rows = _scan_subset(source, root, rule, len(folders), bar)
            folders.append(folder)
            pictures += rows
    regular = [not row.subset.is_reg for row in folders]
    trained, kept = split_off(pictures, specs, [row for row in pictures if regular[row.subset]], seed)
    return Dataset(tuple(_balanced(trained, folders)), tuple(folders), specs, tuple(kept))


def pairs_dataset(data: DataSettings, path: Path, finest: int, processes: int = 1) -> Dataset:
    """Pairs of prompts as a dataset, each in the place of a picture of the training size; an epoch is about a hundred
    batches of all ``processes`` together unless ``dataset_repeats`` says otherwise. Raises as :func:`read_pairs` does.
    """
    pairs = read_pairs(path)
    count = len(pairs.rows)
    repeats = data.dataset_repeats or -(-ROWS_AN_EPOCH * data.train_batch_size * processes // count)
    subset = Subset(folder=path, repeats=repeats, pairs=pairs)
    spec = dataset_of(data, (subset,)).with_finest_step(finest)
    size = data.size
    if any(side % finest for side in size):
        raise ConfigError(
            f"resolution: {size[0]}x{size[1]} is no multiple of {finest}, as this base needs it"
        )
    row = Picture(path, "", repeats, Placement(size, size, (0, 0)), size, private=True)
    return Dataset((row,) * count, (Folder(subset, 0, count, 0),), (spec,))


def _numbered(specs: Sequence[DatasetSpec]) -> Iterator[tuple[int, Subset]]:
    for number, spec in enumerate(specs):
        for subset in spec.subsets:
            yield number, subset


def _root_of(folder: Path, data: DataSettings) -> Path:
    """The folder that the user named, which captions of ``folder`` must not leave by links."""
    named = (data.train_data_dir, data.reg_data_dir) if data.dataset_config is None else ()
    return next((root for root in named if root is not None and root in folder.parents), folder)


def _source(number: int, subset: Subset, option: str) -> _Source:
    """The pictures of a subset: all of its folder, or those that its file names."""
    if subset.metadata is None:
        return _Source(number, subset, find_images(subset.folder))
    listed = read_listed(subset.metadata, subset.folder, subset.captions.separator, option)
    captions, unread = listed.captions, tuple(listed.unread.items())
    unlisted = len(find_images(subset.folder, recursive=True)) - len(captions)
    return _Source(number, subset, list(captions), captions, listed.missing, unlisted, unread)


def _scan_subset(
    source: _Source, root: Path, rule: BucketRule, number: int, bar: Progress
) -> tuple[Folder, list[Picture]]:
    subset, paths = source.subset, source.paths
    rows: list[Picture] = []
    bare = empty = cut = 0
    owners: dict[str, list[str]] = {}
    is_linked = leads_out(subset.folder, root) is not None
    is_private = subset.metadata is not None and _is_linked_file(subset.metadata, subset.folder)
    # One listing of the folder is far quicker than asking for each file that might be there.
    captions = CaptionNames.in_folder(subset.folder, subset.caption_extension)
    masks = _masks(subset.masks, paths) if subset.masks else {}
    for path in paths:
        if source.captions is None:
            named = captions.read_for(path.name)
            beside = None if named is None else path.with_name(named)
            text, private = _caption_text(beside, root, is_linked)
            if beside is not None and captions.shares_stem(path.name):
                owners.setdefault(beside.name, []).append(path.name)
        else:
            text, private = source.captions[path], is_private
        if text and "\n" in text and not subset.captions.wildcards:
            text = text.partition("\n")[0]
            cut += 1
        bare += text is None
        empty += text == ""
        size = image_size(path)
        rows.append(
            Picture(
                path,
                (subset.class_tokens or "") if text is None else text,
                subset.repeats,
                _place(path, size, rule),
                size,
                source.dataset,
                number,
                masks.get(path.stem) and check_mask(masks[path.stem], path, size),
                private,
            )
        )
        bar.update()
    private_count = sum(row.private for row in rows)
    shared = tuple(name for names in owners.values() if len(names) > 1 for name in names)
    folder = Folder(
        subset,
        source.dataset,
        len(paths),
        bare,
        empty,
        private_count,
        source.missing,
        source.unlisted,
        cut,
        shared,
        source.unread,
    )
    return folder, rows


def _is_linked_file(metadata: Path, folder: Path) -> bool:
    """Whether a file of captions is somebody else's, by a link in a folder of pictures or in its own place."""
    return leads_out(metadata, folder if folder in metadata.parents else metadata.parent) is not None


def _masks(folders: Sequence[Path], pictures: Sequence[Path]) -> dict[str, Path]:
    """Masks by the pictures' names without suffix, of the first folder that has one. Raises InputError where pictures
    have none."""
    masks = {path.stem: path for folder in reversed(folders) for path in find_images(folder)}
    bare = [path for path in pictures if path.stem not in masks]
    if bare:
        more = f" (and {len(bare) - 1} more pictures without one)" if len(bare) > 1 else ""
        place = ", nor ".join(f"{folder / bare[0].stem}.png" for folder in folders)
        raise InputError(f"{bare[0]}: has no mask {place}{more}")
    return masks


def check_mask(mask: Path, picture: Path, size: Size) -> Path:
    """The mask, if it has the shape of a picture of ``size``; else InputError. It may be larger or smaller."""
    width, height = image_size(mask)
    # Sides of a scaled mask are rounded, each by half a pixel at most.
    if abs(width * size[1] - height * size[0]) > max(size):
        raise InputError(
            f"{mask}: a mask of {width}x{height} for {picture.name} of {size[0]}x{size[1]}; both must have one shape"
        )
    return mask


def _caption_text(beside: Path | None, root: Path, is_linked: bool) -> tuple[str | None, bool]:
    """A caption with all its lines, None where there is none, and whether it came by a link out of ``root``."""
    if beside is None:
        return None, False
    try:
        return read_caption(beside, every_line=True, read=within(root)), is_linked
    except LeadsOut:
        return read_caption(beside, every_line=True), True


def _place(path: Path, size: Size, rule: BucketRule) -> Placement:
    try:
        return _placed(size, rule)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error


# Pictures of one size share one value: large sets have few sizes.
_placed = lru_cache(maxsize=4096)(place)


def split_off(
    pictures: Sequence[Picture], specs: Sequence[DatasetSpec], able: Sequence[Picture], seed: int
) -> tuple[list[Picture], list[Picture]]:
    """The pictures to train, and those to measure with, chosen from ``able``: of each dataset the share that it asks
    for, each once. A file that is measured with in one dataset is trained in none.
    """
    if not any(spec.validation_split for spec in specs):
        return list(pictures), []
    held: set[Path] = set()
    kept = []
    for number, spec in enumerate(specs):
        rows = [row for row in able if row.dataset == number]
        order = list(range(len(rows)))
        random.Random(f"{seed if spec.validation_seed is None else spec.validation_seed}/validation").shuffle(
            order
        )
        count = min(round(len(rows) * spec.validation_split), len(rows) - 1)
        chosen = sorted(order[len(rows) - count :])
        kept += [replace(rows[index], repeats=1) for index in chosen]
        held |= {rows[index].path.resolve() for index in chosen}
    return [row for row in pictures if row.path.resolve() not in held], kept


def _balanced(pictures: Sequence[Picture], folders: Sequence[Folder]) -> Iterator[Picture]:
    """The pictures with the repeats of regularisation ones set so that each dataset has as many of them as of others.

    They come in turn: first all of them with their own repeats, until there are enough, then one more of each.
    """
    needed: dict[int, int] = {}
    for row in pictures:
        if not folders[row.subset].subset.is_reg:
            needed[row.dataset] = needed.get(row.dataset, 0) + row.repeats
    given: dict[int, int] = {}
    for dataset, wanted in needed.items():
        spare = [
            index
            for index, row in enumerate(pictures)
            if row.dataset == dataset and folders[row.subset].subset.is_reg
        ]
        given |= _in_turn(spare, [pictures[index].repeats for index in spare], wanted)
    for index, row in enumerate(pictures):
        if not folders[row.subset].subset.is_reg:
            yield row
        elif given.get(index):
            yield replace(row, repeats=given[index])


def _in_turn(indices: Sequence[int], repeats: Sequence[int], wanted: int) -> dict[int, int]:
    """How often each comes, so that all together come ``wanted`` times (a little more where repeats do not fit)."""
    given: dict[int, int] = {}
    total = 0
    for index, count in zip(indices, repeats, strict=True):
        if total >= wanted:
            return given
        given[index] = count
        total += count
    rounds, more = divmod(max(0, wanted - total), max(1, len(indices)))
    for number, index in enumerate(indices):
        given[index] += rounds + (number < more)
    return given
