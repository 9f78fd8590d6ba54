"""``lora-train --suggest``: a configuration for a dataset, a kind and a card, with the reason of every value.

Only what is worth saying is in it; everything else stays at its default. What the user gives is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorapipe_engine.command.options import fields_of
from lorapipe_engine.command.printed import toml_line
from lorapipe_engine.command.text import printable
from lorapipe_engine.datasets.kinds import KINDS, Kind
from lorapipe_engine.datasets.leading import leading_tag
from lorapipe_engine.datasets.scan import Dataset, scan
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.families import get_family, recognise
from lorapipe_engine.models.family import Family
from lorapipe_engine.pictures.captions import split_tags
from lorapipe_engine.sampling.bases import trained_size
from lorapipe_engine.settings import PARTS

# Values of a network for one rank, attention layers alone: UNet, text encoders. Counted from the families' layers; a
# value takes two bytes in a file. SDXL's text encoders are not trained unasked.
VALUES_OF_RANK = {"sd1": (423_936, 165_888), "sd2": (432_128, 423_936), "sdxl": (2_659_840, 0)}
MOST_FILES = 20
BATCHES = {"8": 1, "12": 2, "16": 4, "24": 6}
SENTENCE = 8  # words in a piece between commas


@dataclass(frozen=True)
class Suggestion:
    """A value for an option, and why."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """What suggestions are made from: the kind, the family if the base is known, the card, the pictures, which
    options the user gave, with their values, and the training size in pixels."""

    kind: Kind
    family: Family | None
    vram: str | None
    dataset: Dataset
    given: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def per_epoch(self) -> int:
        """Pictures shown in an epoch."""
        return sum(self.dataset.repeats)

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.dataset.pictures)

    @property
    def rank(self) -> int:
        """Rank of the network."""
        given = self.given.get("network_dim")
        return int(given) if given else self.family.rank if self.family else 64


def suggest(parts: Sequence[Any], origin: Mapping[str, str]) -> str:
    """The configuration as TOML with reasons, for options that were read. Raises ConfigError without a kind or
    pictures, and as :func:`.scan` does."""
    model, data, _, _, _, run = parts
    if run.kind is None:
        raise ConfigError("--suggest chooses by what is trained: give --kind character, style or concept")
    if data.train_data_dir is None and data.dataset_config is None:
        raise ConfigError("--suggest looks at the pictures: give their folder, as in --suggest dataset")
    family = family_of(model.pretrained_model_name_or_path)
    given = {
        field.name: getattr(part, field.name)
        for part in parts
        for field in fields_of(part.__class__)
        if origin.get(field.name, "default") != "default"
    }
    width, height = map(int, trained_size(model.pretrained_model_name_or_path).split("x"))
    size = data.resolution or (width, height)
    dataset = scan(replace(data, resolution=size), run.seed)
    case = Case(kind=KINDS[run.kind], family=family, vram=model.vram, dataset=dataset, given=given, size=size)
    return written(list(suggestions(case)), given, heading(case))


def family_of(base: str | None) -> Family | None:
    """The family of a base, by its tensors' names; None where no file or folder of it is here."""
    if base is None:
        return None
    place = resolve_base(base)
    if isinstance(place, str) or not place.is_file() or place.suffix != ".safetensors":
        return None
    with open_tensors(place) as file:
        name = recognise({key: tensor.shape for key, tensor in file.tensors.items()}).family
    return get_family(name) if name else None


# -------------------------------------------------------------------------------- what is suggested


def suggestions(case: Case) -> Iterator[Suggestion]:
    """All of them, in the order of the options."""
    for row in ROWS:
        yield from row(case)


def of_model(case: Case) -> Iterator[Suggestion]:
    if case.vram is not None:
        card = "this card's free memory" if case.vram == "auto" else f"a card of {case.vram} GiB"
        yield Suggestion(
            "vram", case.vram, f"the run fits itself to {card}, by options that are not in this file"
        )


def of_pictures(case: Case) -> Iterator[Suggestion]:
    width, height = case.size
    known = f"what {'the base' if case.family else 'SD 1.x'} was trained at"
    known += "" if case.family else " (SD 2.x 768, SDXL 1024)"
    yield Suggestion(
        "resolution", (width, height), f"{known}; more costs time by the area, and shows more detail"
    )
    small = sum(picture.size[0] * picture.size[1] < width * height for picture in case.dataset.pictures)
    if small:
        yield Suggestion(
            "bucket_no_upscale",
            True,
            f"{small} of {case.count} pictures are smaller; enlarged ones teach blur",
        )
    room = batch_room(case)
    batch = max(1, min(room, case.count // 4))
    why = "as much as the card takes" if batch == room else f"a quarter of {case.count} pictures at most"
    yield Suggestion("train_batch_size", batch, why)


def of_captions(case: Case) -> Iterator[Suggestion]:
    texts = [picture.caption for picture in case.dataset.pictures if picture.caption]
    if not texts:
        return
    sentences = sum(max(len(tag.split()) for tag in split_tags(text) or [""]) >= SENTENCE for text in texts)
    if 2 * sentences > len(texts):
        yield Suggestion("shuffle_caption", False, "captions are sentences, whose parts belong together")
        return
    yield Suggestion("shuffle_caption", True, "tags have no order that should be learned")
    tag = leading_tag(texts)
    if case.kind.name == "style":
        yield Suggestion("keep_tokens", 0, "a style has no word of its own; it is always there")
    elif tag is not None:
        yield Suggestion("keep_tokens", 1, f"all captions begin with {tag}, which calls it later")
    else:
        yield Suggestion(
            "keep_tokens",
            0,
            "captions begin with different tags; lora-clean --trigger WORD puts one in front of all",
        )


def of_network(case: Case) -> Iterator[Suggestion]:
    rank = case.rank
    yield Suggestion("network_dim", rank, f"{file_size(case)}; half of it is often enough")
    if case.kind.name == "style":
        yield Suggestion(
            "network_alpha", rank, "the whole strength: a style is everywhere, and a low alpha brakes it"
        )
        half = max(1, rank // 2)
        yield Suggestion(
            "network_args",
            (f"conv_dim={half}", f"conv_alpha={half}"),
            "convolutions hold strokes and textures; at half the rank they add little to the file",
        )
    else:
        yield Suggestion(
            "network_alpha",
            max(1, rank // 4),
            "a quarter of the rank: a character is learned fast, and burns fast",
        )


def of_optimizer(case: Case) -> Iterator[Suggestion]:
    name = str(case.given.get("optimizer_type", "AdamW")).lower()
    if name.startswith(("prodigy", "dadapt")):
        yield Suggestion("learning_rate", 1.0, "a factor of the rate that this optimizer estimates")
        yield Suggestion("lr_scheduler", "constant", "the optimizer's estimate is the curve")
        return
    if "optimizer_type" in case.given and not name.startswith("adamw"):
        return
    yield Suggestion("unet_lr", 1e-4, "AdamW's usual rate; the first thing to lower if the network burns")
    yield from of_text_encoders(case.family)
    if case.kind.name == "style":
        yield Suggestion("lr_scheduler", "cosine_warm_restarts", "a long run learns again after each restart")
        yield Suggestion(
            "lr_scheduler_args",
            ("cycles=4", f"cycle_warmup={max(1, steps(case) // 40)}", "down_factor=0.5"),
            "four cycles, each with a ramp, and never below half of the rate's peak",
        )
    else:
        yield Suggestion("lr_scheduler", "cosine", "falls to nothing, so the last epochs settle")


def of_text_encoders(family: Family | None) -> Iterator[Suggestion]:
    if family is None:
        return  # what is decided for the base when it is read suits it better
    if len(family.text_parts) > 1:
        yield Suggestion(
            "network_train_unet_only", True, "SDXL's text encoders know the words, and burn first"
        )
    else:
        yield Suggestion(
            "text_encoder_lr", (5e-5,), "half: the encoder has a third of the values and burns first"
        )


def of_loss(case: Case) -> Iterator[Suggestion]:
    if not case.given.get("v_parameterization"):
        yield Suggestion(
            "min_snr_gamma", 5.0, "steps of little noise count less: smoother, better on small sets"
        )


def of_run(case: Case) -> Iterator[Suggestion]:
    kind, number = case.kind, epochs(case)
    low, high = kind.total_range
    yield Suggestion(
        "max_train_epochs",
        number,
        f"{case.per_epoch} pictures an epoch, {case.per_epoch * number:,} in all; a {kind.name} takes {low:,} to "
        f"{high:,}",
    )
    every = max(1, -(-number // MOST_FILES))
    yield Suggestion(
        "save_every_n_epochs", every, f"{-(-number // every)} files to choose from, by a grid of all of them"
    )
    yield Suggestion("kind", kind.name, "what the run's length is judged by")


ROWS: tuple[Callable[[Case], Iterator[Suggestion]], ...] = (
    of_model,
    of_pictures,
    of_captions,
    of_network,
    of_optimizer,
    of_loss,
    of_run,
)


def batch_room(case: Case) -> int:
    """Pictures that a step has room for: half as many of SDXL's size."""
    room = BATCHES.get(case.vram or "", 2)
    return max(1, room // 2) if case.family is not None and case.family.resolution > 768 else room


def epochs(case: Case) -> int:
    """How many epochs show as many pictures as the kind takes."""
    return max(1, round(case.kind.total / case.per_epoch))


def steps(case: Case) -> int:
    """Updates of the whole run, nearly."""
    batch = int(case.given.get("train_batch_size") or max(1, min(batch_room(case), case.count // 4)))
    return max(1, epochs(case) * case.per_epoch // batch)


def file_size(case: Case) -> str:
    """The file of a network at the suggested rank, in words."""
    if case.family is not None and case.family.name not in VALUES_OF_RANK:
        return "the family's own rank"
    values = sum(VALUES_OF_RANK[case.family.name if case.family else "sd1"])
    more = ", more with convolutions" if case.kind.name == "style" else ""
    base = "" if case.family else " for SD 1.x"
    return f"files of {values * 2 * case.rank / 2**20:.0f} MiB in half precision{base}{more}"


def heading(case: Case) -> list[str]:
    """What the file is, and what is to be looked at before it is used."""
    kind = case.kind
    lines = [f"Suggested for a {kind.name} of {case.count} pictures. What is not here stays at its default."]
    low, high = kind.epoch_range
    if not low <= case.per_epoch <= high:
        lines.append(
            f"{case.per_epoch} pictures an epoch; {low} to {high} are good: lora-repeats --kind {kind.name} finds "
            "the repeats."
        )
    if kind.pictures and not kind.pictures[0] <= case.count <= kind.pictures[1]:
        few = case.count < kind.pictures[0]
        effect = "few are learned by heart soon" if few else "many need a longer run at the same rate"
        lines.append(
            f"{kind.pictures[0]} to {kind.pictures[1]} pictures are usual for a {kind.name}; {effect}."
        )
    if case.family is None:
        lines.append("Which base it is shows only with --base FILE; SD 1.x is taken here.")
    return lines


# -------------------------------------------------------------------------------- as TOML


def written(rows: Sequence[Suggestion], given: Mapping[str, Any], lines: Sequence[str]) -> str:
    """The suggestions and what the user gave, as a file that ``--config_file`` reads."""
    wanted = {row.name: row for row in rows}
    for name, value in given.items():
        row = wanted.get(name)
        why = f": {row.reason}" if row is not None and row.value == value else ""
        wanted[name] = Suggestion(name, value, f"as you gave it{why}")
    text = [f"# {printable(line)}" for line in lines]
    for part in PARTS:
        own = [field for field in fields_of(part) if field.name in wanted]
        if own:
            text += ["", f"[{part.__name__.removesuffix('Settings').lower()}]"]
        for field in own:
            row = wanted[field.name]
            text += [f"# {printable(row.reason)}", toml_line(field, row.value)]
    return "\n".join(text)
