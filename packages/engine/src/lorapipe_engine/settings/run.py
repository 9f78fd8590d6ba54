"""Length, results and records of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from lorapipe_engine.command.options import option
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings.early_stop import ByFigures, read_early_stop_by

SAVE_PRECISIONS = ("float", "fp16", "bf16", "fp32")  # float is what sd-scripts calls fp32


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Length, results and records of the run."""

    output_dir: Path = option(
        Path("output"),
        "Where networks, states, samples and curves are written.",
        heading="Results and states",
    )
    output_name: str = option("last", "Name of the results, without suffix.")
    save_precision: str | None = option(
        None,
        "Number type of the saved files; float and fp32 are one. [default: bf16 where trained in bf16, else fp16]",
        choices=SAVE_PRECISIONS,
        taken_as={"fp32": "float", "float32": "float", "float16": "fp16", "bfloat16": "bf16"},
    )
    save_every_n_epochs: int | None = option(
        1, "Save a network after every N epochs; 0 saves the end alone.", min=1, zero_is_off=True
    )
    save_n_epoch_ratio: int | None = option(
        None,
        "Save at least N networks over the run, after every so many epochs; goes before save_every_n_epochs.",
        min=1,
        zero_is_off=True,
    )
    save_every_n_steps: int | None = option(
        None, "Save a network after every N steps.", min=1, zero_is_off=True
    )
    save_last_n_epochs: int | None = option(
        None, "Keep only the last N epoch files.", min=1, zero_is_off=True
    )
    save_last_n_steps: int | None = option(
        None, "Keep only step files of the last N steps.", min=1, zero_is_off=True
    )
    save_model_as: str = option(
        "safetensors",
        "Format of saved files; ckpt and pt are pickles, without metadata.",
        choices=("safetensors", "ckpt", "pt"),
    )
    save_state: bool = option(False, "Keep a state beside every saved network, to go on from with --resume.")
    save_state_on_train_end: bool = option(False, "Keep the state of the end, as OUTPUT_NAME-end.state.")
    save_last_n_epochs_state: int | None = option(
        None,
        "Keep only the states of the last N epochs. [default: save_last_n_epochs]",
        min=1,
        zero_is_off=True,
    )
    save_last_n_steps_state: int | None = option(
        None,
        "Keep only states of the last N steps. [default: save_last_n_steps]",
        min=1,
        zero_is_off=True,
    )
    kind: str | None = option(
        None,
        "What is trained: the run's length is judged by it, and --suggest chooses by it.",
        choices=("character", "style", "concept"),
        heading="Length of the run",
    )
    max_train_epochs: int | None = option(
        None,
        "How long to train, in rounds over all pictures with their repeats; goes before max_train_steps.",
        min=1,
        zero_is_off=True,
    )
    max_train_steps: int = option(
        1600, "How long to train, in optimizer steps; 0 where max_train_epochs is given.", min=0
    )
    resume: Path | None = option(
        None,
        "Go on from this state, if wanted for longer or at other rates. [default: OUTPUT_DIR/OUTPUT_NAME.state, if a "
        "run was stopped]",
    )
    state_interval: float = option(
        120.0, "Seconds between states, from which the same command goes on after a crash.", min=0
    )
    # -1 is a drawn seed elsewhere.
    seed: int = option(42, "Seed of every random draw.", min=0, max=(1 << 63) - 1, taken_as={"-1": 42})
    sample_prompts: str | None = option(
        None,
        "File of prompts to draw during training (.txt, .toml, .json), or prompts themselves, a line each.",
        heading="Samples during training",
    )
    sample_every_n_epochs: int | None = option(
        None, "Draw samples after every N epochs.", min=1, zero_is_off=True
    )
    sample_every_n_steps: int | None = option(
        None, "Draw samples after every N steps.", min=1, zero_is_off=True
    )
    sample_at_first: bool = option(False, "Draw samples before the first step.")
    sample_ema: bool = option(False, "Draw samples with the average of ema_decay or ema_width.")
    sample_sampler: str | None = option(
        None, "How samples are drawn from noise. [default: ddim; flow models: euler]"
    )
    choose: bool = option(
        False,
        "After training, draw the saved epochs with lora-sample, lay them out with lora-grid, and name the best.",
        heading="Which epoch to take",
    )
    choose_encoder: str | None = option(
        None,
        "Compare them by this model of yours too, and choose by it: an ONNX file (as lora-grid --encoder takes it), "
        "demo, dino=FILE, clip=FILE or ccip=FOLDER; it needs choose_held_out.",
    )
    choose_held_out: Path | None = option(
        None, "Folder of pictures of the concept that are not trained on, which choose_encoder compares with."
    )
    validate_every_n_epochs: int | None = option(
        None,
        "Measure the validation loss after every N epochs. [default: 1, without validate_every_n_steps]",
        min=1,
        zero_is_off=True,
        heading="Validation: when",
    )
    validate_every_n_steps: int | None = option(
        None, "Measure the validation loss after every N steps.", min=1, zero_is_off=True
    )
    max_validation_steps: int | None = option(
        None, "Measure the validation loss on so many batches. [default: all]", min=1, zero_is_off=True
    )
    early_stop: int | None = option(
        None,
        "End when nothing was better for N measurements; the best network is OUTPUT_NAME-best.",
        min=1,
    )
    early_stop_by: tuple[str, ...] = option(
        (),
        "What early_stop goes by: loss (of validation), or figures: cells are drawn after each saved epoch and judged "
        "as by lora-grid --best, whose options follow, as by=, encoder=, held_out=. [default: loss]",
    )
    logging_dir: Path | None = option(
        None, "Folder of the curves, for TensorBoard. [default: OUTPUT_DIR/logs]", heading="Curves and logs"
    )
    log_prefix: str = option("", "Text in front of the name of the run's folder of curves.")
    log_with: str = option(
        "tensorboard", "Where the curves go besides metrics.jsonl.", choices=("tensorboard", "wandb", "all")
    )
    wandb_run_name: str | None = option(None, "What Weights & Biases calls the run. [default: output_name]")
    wandb_api_key: str | None = option(
        None,
        "Your key for Weights & Biases; better in the environment, as WANDB_API_KEY. [default: that, or as "
        "`wandb login` left it]",
        secret=True,
    )
    log_tracker_name: str | None = option(
        None, "Project in Weights & Biases that the run belongs to. [default: lorapipe]"
    )
    trace_steps: tuple[int, ...] = option(
        (), "Steps (from 0) of which everything is written to a file, as 0,1,5.", min=0
    )
    trace_dir: Path | None = option(None, "Folder for what trace_steps writes. [default: OUTPUT_DIR/trace]")
    training_comment: str | None = option(
        None, "A remark of yours that is kept in the file.", heading="Metadata of the file"
    )
    no_metadata: bool = option(False, "Keep only the few metadata that programs need.")
    metadata_title: str | None = option(None, "What programs and sites call the network.")
    metadata_author: str | None = option(None, "Who made the network.")
    metadata_description: str | None = option(None, "What the network is for, in a sentence or two.")
    metadata_license: str | None = option(None, "Under which terms others may use the network.")
    metadata_tags: str | None = option(None, "Words by which sites find the network, with commas.")
    metadata_trigger_phrase: str | None = option(
        None, "Words of a prompt that call the concept; --choose takes them for the trigger too."
    )
    metadata_usage_hint: str | None = option(None, "How to use the network, as the strength to take.")
    metadata_thumbnail: Path | None = option(
        None, "Small picture that programs show for the network, put into the file."
    )
    metadata_merged_from: str | None = option(None, "Names of what the network was merged from.")
    metadata_preprocessor: str | None = option(
        None, "What prepares pictures for the network, as for a control network."
    )
    metadata_is_negative_embedding: str | None = option(
        None, "Whether it is meant for negative prompts, as some embeddings are (true or false)."
    )
    overwrite: bool = option(
        False,
        "Replace results of an earlier run with the same name.",
        alias="force",
        heading="Results and states",
    )

    @property
    def by_figures(self) -> ByFigures | None:
        """The figures that say where the run ends, None where none do. Raises ConfigError for what means nothing."""
        asked = read_early_stop_by(self.early_stop_by)
        return asked if self.early_stop is not None else None

    @property
    def saves_epochs(self) -> bool:
        """Whether networks are saved after epochs too, not at the end alone."""
        return bool(self.save_every_n_epochs or self.save_n_epoch_ratio)

    def with_rhythm(self, epochs: int) -> RunSettings:
        """The settings with the epochs between two networks, where save_n_epoch_ratio says how many networks a run of
        so many ``epochs`` saves. Formula: sd-scripts' train_network.py."""
        if self.save_n_epoch_ratio is None:
            return self
        return replace(self, save_every_n_epochs=max(1, epochs // self.save_n_epoch_ratio))

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
        if not self.max_train_steps and self.max_train_epochs is None:
            raise ConfigError("max_train_steps: 0 is no length; give max_train_epochs or steps")
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
