"""What a network's metadata says of the data it was trained on, under the field's own names (without ``ss_``).

Folders of the command line and datasets of a file are told apart, as programs that read metadata expect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from lorapipe_engine.datasets.scan import Dataset, Folder
from lorapipe_engine.pictures.captions import caption_tags
from lorapipe_engine.settings import DataSettings


def dataset_record(data: DataSettings, dataset: Dataset) -> dict[str, Any]:
    """The entries of a run: counts, captions, and the folders or the datasets."""
    counts = {
        "num_train_images": 0 if dataset.pairs else dataset.count(is_reg=False),
        "slider": None if dataset.pairs is None else asdict(dataset.pairs),
        "num_reg_images": dataset.count(is_reg=True),
        "num_validation_images": len(dataset.validation),
        "validation_split": data.validation_split,
        "validation_seed": data.validation_seed,
        "tag_frequency": _tag_frequency(dataset, range(len(dataset.specs))),
    }
    if data.dataset_config is not None:
        datasets = [_dataset(dataset, number) for number in range(len(dataset.specs))]
        return {**counts, "datasets": datasets, "dataset_dirs": _dirs(dataset, None)}
    first = dataset.specs[0]
    return {
        **counts,
        **_sizes(dataset, 0),
        "total_batch_size": first.batch_size,
        "resolution": str(first.buckets.resolution),
        "color_aug": data.color_aug,
        "flip_aug": data.flip_aug,
        "random_crop": data.random_crop,
        "shuffle_caption": data.shuffle_caption,
        "keep_tokens": data.keep_tokens,
        "caption_dropout_rate": data.caption_dropout_rate,
        "caption_dropout_every_n_epochs": data.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": data.caption_tag_dropout_rate,
        "resize_interpolation": data.resize_interpolation,
        "dataset_dirs": _dirs(dataset, False),
        "reg_dataset_dirs": _dirs(dataset, True),
    }


def _sizes(dataset: Dataset, number: int) -> dict[str, Any]:
    """Batch size and buckets of a dataset."""
    spec = dataset.specs[number]
    rule = spec.buckets
    return {
        "batch_size_per_device": spec.batch_size,
        "enable_bucket": rule.enabled,
        "bucket_no_upscale": rule.no_upscale,
        "min_bucket_reso": rule.min_size,
        "max_bucket_reso": rule.max_size,
        "bucket_info": _bucket_info(dataset, number),
    }


def _bucket_info(dataset: Dataset, number: int) -> dict[str, Any]:
    """Pictures an epoch in each bucket, and how far their shapes are from its shape on the average."""
    rows = [picture for picture in dataset.pictures if picture.dataset == number]
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for row in rows:
        counts[row.placement.bucket] += row.repeats
        width, height = row.placement.bucket
        errors.append(abs(width / height - row.size[0] / row.size[1]))
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(sorted(counts.items()))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}


def _dataset(dataset: Dataset, number: int) -> dict[str, Any]:
    spec = dataset.specs[number]
    count: Counter[bool] = Counter()
    for row in dataset.pictures:
        if row.dataset == number:
            count[dataset.subset_of(row).is_reg] += row.repeats
    return {
        "is_dreambooth": True,
        **_sizes(dataset, number),
        "num_train_images": count[False],
        "num_reg_images": count[True],
        "resolution": list(spec.buckets.resolution),
        "tag_frequency": _tag_frequency(dataset, [number]),
        "subsets": [_subset(row) for row in dataset.folders if row.dataset == number],
    }


def _subset(row: Folder) -> dict[str, Any]:
    subset, captions = row.subset, row.subset.captions
    return {
        "img_count": row.pictures,
        "num_repeats": subset.repeats,
        "color_aug": subset.colour,
        "flip_aug": subset.flip,
        "random_crop": subset.random_crop,
        "shuffle_caption": captions.shuffle,
        "keep_tokens": captions.keep_tokens,
        "keep_tokens_separator": captions.keep_tokens_separator,
        "secondary_separator": captions.secondary_separator,
        "enable_wildcard": captions.wildcards,
        "caption_prefix": captions.prefix,
        "caption_suffix": captions.suffix,
        "resize_interpolation": subset.interpolation,
        "image_dir": subset.folder.name,
        "class_tokens": subset.class_tokens,
        "is_reg": subset.is_reg,
        **({"is_preserved": True} if subset.is_preserved else {}),
    }


def _dirs(dataset: Dataset, is_reg: bool | None) -> dict[str, dict[str, int]]:
    """Repeats and pictures by the name of the folder; ``is_reg`` None: of all."""
    return {
        row.subset.folder.name: {"n_repeats": row.subset.repeats, "img_count": row.pictures}
        for row in dataset.folders
        if is_reg is None or row.subset.is_reg == is_reg
    }


def _tag_frequency(dataset: Dataset, numbers: Collection[int]) -> dict[str, dict[str, int]]:
    by_folder: dict[str, Counter[str]] = {}
    for picture in dataset.pictures:
        # Words that a link brought from elsewhere are not published.
        if picture.dataset in numbers and not picture.private:
            rule = dataset.subset_of(picture).captions
            tags = (tag.lower() for tag in caption_tags(picture.caption, rule))
            by_folder.setdefault(picture.path.parent.name, Counter()).update(tags)
    return {folder: dict(counts) for folder, counts in by_folder.items()}
