"""Pictures, buckets and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.config import option


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Pictures, buckets and captions."""

    train_data_dir: Path | None = option(None, "Folder with subfolders N_concept of pictures and captions.")
    resolution: tuple[int, int] = option((512, 512), "Training size: one number, or width,height.")
    train_batch_size: int = option(1, "Pictures a step.", min=1)
    enable_bucket: bool = option(True, "Keep each picture's shape, in buckets of about the wanted area.")
    min_bucket_reso: int = option(256, "Shortest side of a bucket.", min=8)
    max_bucket_reso: int = option(1536, "Longest side of a bucket.", min=8)
    bucket_reso_steps: int = option(64, "Bucket sides are multiples of this.", min=8)
    bucket_no_upscale: bool = option(False, "Never enlarge a picture.")
    caption_extension: str = option(".txt", "Suffix of caption files (.txt and .caption are tried after it).")
    caption_separator: str = option(",", "What stands between tags.")
    shuffle_caption: bool = option(False, "Shuffle the tags anew for every step.")
    keep_tokens: int = option(0, "Tags at the front that stay in place.", min=0)
    keep_tokens_separator: str = option("", "Tags before this mark stay in place.")
    caption_dropout_rate: float = option(0.0, "Share of steps trained with an empty caption.", min=0, max=1)
    caption_tag_dropout_rate: float = option(0.0, "Chance of each tag to be left out.", min=0, max=1)
    caption_prefix: str = option("", "Text put before every caption.")
    caption_suffix: str = option("", "Text put after every caption.")
    flip_aug: bool = option(False, "Train mirrored pictures too, half of the time.")
    cache_latents: bool = option(True, "Latents are always cached; accepted for sd-scripts' command lines.")
    cache_latents_to_disk: bool = option(False, "Keep the latents for later runs, in the cache folder.")
    cache_dir: Path | None = option(None, "Where cached latents lie. [default: the user's cache folder]")
    vae_batch_size: int = option(1, "Pictures encoded at once.", min=1)
    max_data_loader_n_workers: int = option(0, "Not needed (latents stay in memory); accepted.", min=0)
    persistent_data_loader_workers: bool = option(False, "Not needed; accepted.")
