"""What of a dataset is not trained: pictures that are left out, cut away by the crop, or masked as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorapipe_engine.datasets.scan import Dataset, Picture
from lorapipe_engine.errors import LoraError
from lorapipe_engine.pictures.layout import few_of, find_images, subfolders, survey_one
from lorapipe_engine.pictures.opening import open_picture
from lorapipe_engine.settings import DataSettings

MOST_CROPPED = 1 / 3  # of a picture; more is worth a line


def loss_notes(data: DataSettings, dataset: Dataset) -> list[str]:
    """A line for each way in which pictures are lost, none where none are."""
    return [*left_out(data, dataset), *_cropped(dataset), *_masked(dataset)]


def left_out(data: DataSettings, dataset: Dataset) -> list[str]:
    """A line for each subset that a file describes and that has pictures which are not trained. Of folders that are
    read by their names :func:`lorapipe_engine.pictures.layout.survey` says it."""
    notes = []
    for row in dataset.folders:
        if row.unlisted or row.missing:
            told = [f"{_pictures(row.unlisted)} without an entry"] if row.unlisted else []
            told += [f"{_pictures(row.missing)} of the file that are not there"] if row.missing else []
            notes.append(f"{row.subset.metadata}: left out: {', '.join(told)}")
        elif data.dataset_config is not None and row.subset.metadata is None:
            notes += [f"{row.subset.folder}: left out: {line}" for line in _beside(row.subset.folder)]
    return list(dict.fromkeys(notes))


def _beside(folder: Path) -> list[str]:
    """What lies in a subset's folder and is not trained."""
    things = [f"{inside.name} with {_pictures(count)}" for inside, count in _folders(folder)]
    inside = [f"{few_of(things)} (folders in a folder are not read)"] if things else []
    return [*inside, *survey_one(folder).passed_by()]


def _folders(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders in a folder that have pictures, and how many."""
    for folder in subfolders(root):
        try:
            count = len(find_images(folder, recursive=True))
        except LoraError:  # one that cannot be read has nothing to be trained
            continue
        if count:
            yield folder, count


def _cropped(dataset: Dataset) -> list[str]:
    rows = [row for row in dataset.pictures if row.placement.loss > MOST_CROPPED]
    if not rows:
        return []
    worst = max(rows, key=lambda row: row.placement.loss)
    verb = "is" if len(rows) == 1 else "are"
    return [
        f"{_pictures(len(rows))} {verb} cropped by more than a third, {worst.path.name} by "
        f"{worst.placement.loss:.0%}: crop them to what matters, or allow longer buckets (max_bucket_reso)"
    ]


def _masked(dataset: Dataset) -> list[str]:
    rows = [row for row in dataset.pictures if dataset.subset_of(row).is_masked and _is_blank(row, dataset)]
    if not rows:
        return []
    verb = "is" if len(rows) == 1 else "are"
    names = few_of([row.path.name for row in rows])
    return [f"{_pictures(len(rows))} {verb} masked as a whole, so nothing of them is trained: {names}"]


def _is_blank(picture: Picture, dataset: Dataset) -> bool:
    """Whether a picture's mask leaves nothing of it. What cannot be read is told when it is trained."""
    try:
        if picture.mask is not None:
            with open_picture(picture.mask) as mask:
                return _brightest(mask.convert("RGB").getchannel("R").getextrema()) == 0
        if not dataset.subset_of(picture).alpha_mask:
            return False
        with open_picture(picture.path) as image:
            if not (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
                return False
            return _brightest(image.convert("RGBA").getchannel("A").getextrema()) == 0
    except (OSError, SyntaxError, ValueError, LoraError):
        return False


def _brightest(extrema: object) -> object:
    return extrema[1] if isinstance(extrema, tuple) else extrema


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"
