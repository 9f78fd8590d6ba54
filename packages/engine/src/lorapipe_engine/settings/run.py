"""Length, results and records of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from lorapipe_engine.command.options import option
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings.early_stop import ByFigures, read_early_stop_by

SAVE_PRECISIONS = ("float", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Length, results and records of the run."""

    output_dir: Path = option(Path("output"), "Folder for the results.")
    output_name: str = option("last", "Name of the results, without suffix.")
    save_precision: str | None = option(
        None,
        "Precision of saved files. [default: bf16 where trained in bf16, else fp16]",
        choices=SAVE_PRECISIONS,
    )
    save_every_n_epochs: int | None = option(1, "Save after every N epochs.", min=1)
    save_every_n_steps: int | None = option(None, "Save after every N steps.", min=1)
    save_last_n_epochs: int | None = option(None, "Keep only the last N epoch files.", min=1)
    save_last_n_steps: int | None = option(None, "Keep only step files of the last N steps.", min=1)
    save_model_as: str = option(
        "safetensors",
        "Format of saved files; ckpt and pt are pickles, without metadata.",
        choices=("safetensors", "ckpt", "pt"),
    )
    save_state: bool = option(False, "Keep a state beside every saved network, to go on from with --resume.")
    save_state_on_train_end: bool = option(False, "Keep the state of the end, as OUTPUT_NAME-end.state.")
    save_last_n_epochs_state: int | None = option(
        None, "Keep only the states of the last N epochs. [default: save_last_n_epochs]", min=1
    )
    save_last_n_steps_state: int | None = option(
        None, "Keep only states of the last N steps. [default: save_last_n_steps]", min=1
    )
    kind: str | None = option(
        None,
        "What is trained: the run's length is judged by it, and --suggest chooses by it.",
        choices=("character", "style", "concept"),
    )
    max_train_epochs: int | None = option(None, "Length in epochs; goes before max_train_steps.", min=1)
    max_train_steps: int = option(1600, "Length in optimizer steps.", min=1)
    resume: Path | None = option(
        None,
        "Go on from this state, if wanted for longer or at other rates. [default: OUTPUT_DIR/OUTPUT_NAME.state, if a "
        "run was stopped]",
    )
    state_interval: float = option(
        120.0, "Seconds between states, from which the same command goes on after a crash.", min=0
    )
    seed: int = option(42, "Seed of every random draw.", min=0)
    sample_prompts: str | None = option(
        None,
        "File of prompts to draw during training (.txt, .toml, .json), or prompts themselves, a line each.",
    )
    sample_every_n_epochs: int | None = option(None, "Draw samples after every N epochs.", min=1)
    sample_every_n_steps: int | None = option(None, "Draw samples after every N steps.", min=1)
    sample_at_first: bool = option(False, "Draw samples before the first step.")
    sample_ema: bool = option(False, "Draw them with the average of ema_decay or ema_width.")
    sample_sampler: str | None = option(None, "Sampler of the samples. [default: ddim; flow models: euler]")
    choose: bool = option(
        False,
        "After training, draw the saved epochs with lora-sample, lay them out with lora-grid, and name the best.",
    )
    validate_every_n_epochs: int | None = option(
        None,
        "Measure the validation loss after every N epochs. [default: 1, without validate_every_n_steps]",
        min=1,
    )
    validate_every_n_steps: int | None = option(None, "Measure it after every N steps.", min=1)
    max_validation_steps: int | None = option(None, "Measure it on so many batches. [default: all]", min=1)
    early_stop: int | None = option(
        None,
        "End when nothing was better for N measurements; the best network is OUTPUT_NAME-best.",
        min=1,
    )
    early_stop_by: tuple[str, ...] = option(
        (),
        "What it goes by: loss (of validation), or figures: cells are drawn after each saved epoch and judged as by "
        "lora-grid --best, whose options follow, as by=, encoder=, held_out=. [default: loss]",
    )
    logging_dir: Path | None = option(None, "TensorBoard folder. [default: OUTPUT_DIR/logs]")
    log_prefix: str = option("", "Put before the log folder's name.")
    log_with: str = option(
        "tensorboard", "Where the curves go besides metrics.jsonl.", choices=("tensorboard", "wandb", "all")
    )
    wandb_run_name: str | None = option(None, "Name of the run in Weights & Biases. [default: output_name]")
    wandb_api_key: str | None = option(
        None,
        "Key for it; better in the environment, as WANDB_API_KEY. [default: that, or as `wandb login` left it]",
        secret=True,
    )
    log_tracker_name: str | None = option(None, "Its project. [default: lorapipe]")
    trace_steps: tuple[int, ...] = option(
        (), "Steps (from 0) of which everything is written to a file, as 0,1,5.", min=0
    )
    trace_dir: Path | None = option(None, "Where traces go. [default: OUTPUT_DIR/trace]")
    training_comment: str | None = option(None, "Comment for the metadata.")
    no_metadata: bool = option(False, "Keep only the few metadata that programs need.")
    metadata_title: str | None = option(None, "Title in the metadata.")
    metadata_author: str | None = option(None, "Author in the metadata.")
    metadata_description: str | None = option(None, "Description in the metadata.")
    metadata_license: str | None = option(None, "Licence in the metadata.")
    metadata_tags: str | None = option(None, "Tags in the metadata.")
    metadata_trigger_phrase: str | None = option(None, "Trigger words in the metadata.")
    metadata_usage_hint: str | None = option(None, "How to use it, in the metadata.")
    metadata_thumbnail: Path | None = option(None, "Small picture put into the metadata.")
    metadata_merged_from: str | None = option(None, "What it was merged from, in the metadata.")
    metadata_preprocessor: str | None = option(None, "Preprocessor, in the metadata.")
    metadata_is_negative_embedding: str | None = option(None, "As its name says, in the metadata.")
    overwrite: bool = option(False, "Replace results of an earlier run with the same name.", alias="force")

    @property
    def by_figures(self) -> ByFigures | None:
        """The figures that say where the run ends, None where none do. Raises ConfigError for what means nothing."""
        asked = read_early_stop_by(self.early_stop_by)
        return asked if self.early_stop is not None else None

    @property
    def logs(self) -> Path:
        """The TensorBoard folder."""
        return self.logging_dir or self.output_dir / "logs"

    @property
    def logs_inside(self) -> Path:
        """The folder that the user named, below which no link is followed for curves."""
        return self.logging_dir or self.output_dir

    @property
    def traces(self) -> Path:
        """The folder of traces."""
        return self.trace_dir or self.output_dir / "trace"

    def __post_init__(self) -> None:
        name = self.output_name
        if not name or Path(name).name != name or not name.isprintable():
            raise ConfigError(f"output_name: {name!a} is not a plain file name; folders go in output_dir")
        prefix = self.log_prefix
        if Path(f"{prefix}x").name != f"{prefix}x" or not prefix.isprintable():
            raise ConfigError(
                f"log_prefix: {prefix!a} cannot begin a plain folder name; folders go in logging_dir"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            # They go into the metadata, and into lines of JSON.
            if isinstance(value, str) and not _is_utf8(value):
                raise ConfigError(f"{field.name}: {value[:40]!a} is not plain text (UTF-8)")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
