"""Folder mode: ``train_data_dir`` and ``reg_data_dir`` hold folders N_concept, each of which is a subset."""

from __future__ import annotations

from pathlib import Path

from lorapipe_engine.command.records import check_folder
from lorapipe_engine.datasets.file import read_dataset_file
from lorapipe_engine.datasets.spec import DatasetSpec, Subset, dataset_of, subset_of
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.layout import repeat_folders
from lorapipe_engine.settings import DataSettings


def dataset_specs(data: DataSettings) -> tuple[DatasetSpec, ...]:
    """The datasets that the options describe, from a dataset file or from folders.

    Raises ConfigError where no pictures are named or the file is wrong, InputError for folders that are not there.
    """
    check_masks(data)
    if data.dataset_config is not None:
        return read_dataset_file(data.dataset_config, data)
    if data.train_data_dir is None:
        raise ConfigError("train_data_dir: no folder given")
    if data.in_json is not None:
        return (dataset_of(data, (_listed_subset(data, data.train_data_dir, data.in_json),)),)
    subsets = _subsets(data, data.train_data_dir, is_reg=False)
    if data.reg_data_dir is not None:
        subsets += _reg_subsets(data, data.reg_data_dir)
    return (dataset_of(data, subsets),)


def check_masks(data: DataSettings) -> None:
    """Raise ConfigError for masks that would have no effect. In a dataset file each subset may name its own."""
    if data.conditioning_data_dir is not None:
        if not data.masked_loss:
            raise ConfigError("conditioning_data_dir: its masks are used by --masked_loss; give that too")
        check_folder(data.conditioning_data_dir)
    if data.masked_loss and not (data.conditioning_data_dir or data.alpha_mask or data.dataset_config):
        raise ConfigError("masked_loss: needs masks: give --conditioning_data_dir FOLDER, or --alpha_mask")


def _subsets(data: DataSettings, root: Path, *, is_reg: bool) -> tuple[Subset, ...]:
    return tuple(
        subset_of(
            data,
            row.path,
            repeats=row.repeats,
            class_tokens=row.concept,
            is_reg=is_reg,
            # Regularisation pictures show what stays as it is, all of it.
            masks=() if is_reg else _masks_of(data, row.path),
        )
        for row in repeat_folders(root)
    )


def _listed_subset(data: DataSettings, folder: Path, metadata: Path) -> Subset:
    """All of a folder whose pictures a file names."""
    check_folder(folder)
    if data.reg_data_dir is not None:
        raise ConfigError(
            "in_json: names the pictures that are trained; to have those of reg_data_dir too, give both in a "
            "dataset_config"
        )
    return subset_of(
        data,
        folder,
        repeats=data.dataset_repeats or 1,
        class_tokens=None,
        is_reg=False,
        masks=_masks_of(data, folder),
        metadata=metadata,
    )


def _masks_of(data: DataSettings, folder: Path) -> tuple[Path, ...]:
    """Where the masks of a folder lie: in one of the same name within conditioning_data_dir, then there itself."""
    root = data.conditioning_data_dir
    if root is None:
        return ()
    own = root / folder.name
    return (own, root) if own.is_dir() else (root,)


def _reg_subsets(data: DataSettings, root: Path) -> tuple[Subset, ...]:
    try:
        subsets = _subsets(data, root, is_reg=True)
    except InputError as error:
        raise InputError(f"reg_data_dir: {error}") from error
    trained = {path.resolve() for path in (row.path for row in repeat_folders(data.train_data_dir or root))}
    for subset in subsets:
        if subset.folder.resolve() in trained:
            raise ConfigError(
                f"reg_data_dir: {subset.folder} is trained as it is; regularisation pictures lie in a folder of "
                "their own"
            )
    return subsets
