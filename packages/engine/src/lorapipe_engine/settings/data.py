"""Pictures, buckets and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.options import option


class BaseSize(tuple[int, int]):
    """A training size (width, height) that the base has and nobody gave: the value of ``resolution`` then."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Pictures, buckets and captions."""

    train_data_dir: Path | None = option(
        None, "Folder with subfolders N_concept of pictures and captions.", heading="Pictures"
    )
    reg_data_dir: Path | None = option(
        None,
        "Folder with subfolders N_concept of regularisation pictures, of what is not to change; seldom of use.",
    )
    dataset_config: Path | None = option(
        None, "TOML or JSON file of datasets and their subsets, in place of these folders."
    )
    slider: Path | None = option(
        None, "TOML file of pairs of prompts: train a slider from them alone, without pictures."
    )
    in_json: Path | None = option(
        None,
        "JSON file of captions and tags of train_data_dir's pictures, in place of folders N_concept and text files.",
        alias="metadata_file",
    )
    dataset_repeats: int | None = option(
        None,
        "How often each picture comes in an epoch where no folder's name or dataset_config says it.",
        min=1,
    )
    resolution: tuple[int, int] | None = option(
        None,
        "Training size: one number, or width,height. [default: the base's own: 512, 768 or 1024; demo: 64]",
        heading="Sizes and buckets",
    )
    train_batch_size: int = option(1, "Pictures that are trained at once, in one step.", min=1)
    enable_bucket: bool = option(True, "Keep each picture's shape, in buckets of about the wanted area.")
    min_bucket_reso: int = option(256, "Least width and height of a bucket, in pixels.", min=8)
    max_bucket_reso: int = option(1536, "Most width and height of a bucket, in pixels.", min=8)
    bucket_reso_steps: int = option(
        64, "Bucket sides are multiples of this (of 8 at the finest, SDXL 32).", min=1
    )
    bucket_no_upscale: bool = option(False, "Never enlarge a picture.")
    resize_interpolation: str | None = option(
        None,
        "How pictures are brought to their bucket's size. [default: an area filter to shrink, lanczos to enlarge]",
        choices=("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"),
    )
    caption_extension: str = option(
        ".txt", "Suffix of caption files (.txt and .caption are tried after it).", heading="Captions"
    )
    caption_separator: str = option(",", "Sign between the tags of a caption, as it is read.")
    shuffle_caption: bool = option(False, "Shuffle the tags anew for every step.")
    keep_tokens: int = option(
        0, "Tags at the front that shuffling and tag dropout leave in place: 1 for a trigger.", min=0
    )
    keep_tokens_separator: str = option("", "Mark in captions, as |||: the tags before it stay in place.")
    caption_dropout_rate: float = option(0.0, "Share of steps trained with an empty caption.", min=0, max=1)
    caption_dropout_every_n_epochs: int = option(
        0, "Train every N-th epoch with empty captions alone; 0 never.", min=0
    )
    caption_tag_dropout_rate: float = option(0.0, "Chance of each tag to be left out.", min=0, max=1)
    caption_prefix: str = option("", "Text put before every caption.")
    caption_suffix: str = option("", "Text put after every caption.")
    secondary_separator: str = option("", "Tags joined by this are shuffled and dropped as one.")
    enable_wildcard: bool = option(False, "Take one of the caption's lines, and one of each {a|b} in it.")
    token_warmup_min: int = option(
        1, "Tags that a caption begins with where token_warmup_step is set.", min=0
    )
    token_warmup_step: float = option(
        0.0, "Let captions grow to all their tags over so many steps, or this share of the run.", min=0
    )
    weighted_captions: bool = option(False, "Read (tag:1.2) and [tag] in captions as weights.")
    flip_aug: bool = option(
        False, "Train mirrored pictures too, half of the time.", heading="Changes to pictures, and masks"
    )
    color_aug: bool = option(False, "Shift hue or brightness a little, of a third of the pictures.")
    random_crop: bool = option(False, "Cut what does not fit the bucket at random instead of evenly.")
    masked_loss: bool = option(False, "Train only what masks show (conditioning_data_dir or alpha_mask).")
    conditioning_data_dir: Path | None = option(
        None, "Folder of masks, named as their pictures: white is trained, black is not."
    )
    alpha_mask: bool = option(False, "Take the pictures' own transparency as mask.")
    validation_split: float = option(
        0.0,
        "Share of the pictures that is never trained but measured with.",
        min=0,
        max=0.9,
        heading="Validation: pictures",
    )
    validation_seed: int | None = option(
        None, "Seed by which the pictures of validation_split are drawn. [default: seed]", min=0
    )
    cache_latents_to_disk: bool = option(
        False, "Keep the latents for later runs, in the cache folder.", heading="Caches"
    )
    cache_text_encoder_outputs: bool = option(
        False, "Encode every caption before the first step; the text encoders then need no memory."
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, "Keep what the text encoders say for later runs, in the cache folder."
    )
    text_cache_variants: int = option(
        8, "Cached forms of a caption that varies (shuffle, tag dropout, wildcards), taken in turn.", min=1
    )
    cache_dir: Path | None = option(
        None, "Folder in which latents and text are kept for later runs. [default: the user's cache folder]"
    )
    vae_batch_size: int = option(
        1, "Pictures that the VAE encodes at once, before the first step.", min=1, taken_as={"0": 1}
    )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that are trained at; 512 x 512 where neither the user nor the base says it."""
        return self.resolution or (512, 512)
