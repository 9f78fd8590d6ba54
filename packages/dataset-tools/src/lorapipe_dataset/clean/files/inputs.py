"""What is to be cleaned: caption files in folders, single ones, or records that have a caption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorapipe_dataset.clean.captions.rules import NO_FACTS, Facts
from lorapipe_dataset.clean.captions.words import CATEGORIES
from lorapipe_dataset.clean.files.pairing import PICTURES, pair, picture_stem, split_suffix
from lorapipe_dataset.clean.files.posts import Pictures, post_caption, read_matches
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.sidecars import (
    DOCUMENT_FORMATS,
    PICTURE_FORMAT,
    POST_FORMATS,
    TEXT_FORMATS,
    sniff_document,
)
from lorapipe_dataset.sidecars.documents import NamedPictures, document_rows
from lorapipe_dataset.sidecars.embedded import read_embedded
from lorapipe_dataset.sidecars.post import Post
from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.command.records import Record, find_files, find_names, read_records
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.links import check_inside
from lorapipe_engine.pictures.caption_files import CaptionFinder
from lorapipe_engine.pictures.captions import decode_caption
from lorapipe_engine.pictures.layout import few_of, notes_of

DOCUMENTS = (".json", ".jsonl", ".csv")


@dataclass(slots=True)
class Job:
    """A caption to clean: its ``file`` (it need not exist yet), and its ``picture`` where one is known.

    ``given`` is the caption that came with a record or a sidecar, ``root`` the folder that was asked for.
    ``origin``: another file that the caption is read from; ``reader`` makes a post of a text that is no plain caption.
    ``second``: its picture has another caption that is read before it, so it is cleaned and goes no further.
    ``others``: pictures that read this caption too.
    ``error``: what stands in the way. Paths are texts: path objects would take as long as all the rest.
    """

    file: str
    root: Path | None = None
    picture: str | None = None
    record: Record | None = None
    given: str | None = None
    facts: Facts = NO_FACTS
    origin: str | None = None
    reader: Callable[[str], Post] | None = None
    error: str | None = None
    second: bool = False
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return os.path.basename(self.file)  # noqa: PTH119


@dataclass(frozen=True)
class Document:
    """A file of many captions, to be cleaned as one."""

    path: Path
    kind: str


def gather(options: Options, stdin: BinaryIO | None = None) -> Iterator[Job | Document]:
    """The work that the command line names, as it comes. Raises InputError where there is none, or a word of the
    command line names nothing.
    """
    places: dict[str, str] = {}
    seen: set[str] = set()
    for one in _gather(options, stdin):
        if len(options.inputs) > 1 and isinstance(one, Job) and one.given is None and one.error is None:
            place = os.path.normcase(os.path.abspath(one.origin or one.file))  # noqa: PTH100 - links are not to be followed
            if place in seen:
                continue  # a folder, and a file in it
            seen.add(place)
        if isinstance(one, Job) and _is_brought(one, options):
            source = one.picture or one.origin or one.file
            other = places.setdefault(os.path.normcase(one.file), source)
            if other != source:
                one.error = (
                    f"{source}: its caption would have the place of {other}'s, {one.file}; "
                    "rename one, or give another -o"
                )
        yield one


def _is_brought(job: Job, options: Options) -> bool:
    """Whether a caption comes to its file from elsewhere. One of a record goes on to the next tool in any case."""
    if job.error is not None or (job.record is not None and options.output is None):
        return False
    return job.given is not None or job.origin is not None


def _gather(options: Options, stdin: BinaryIO | None) -> Iterator[Job | Document]:
    words = set(options.inputs)
    finder = CaptionFinder(options.extensions[0])
    nothing = True
    for record in read_records(options.inputs, stdin):
        nothing = False
        if record.path.is_dir():
            yield from _in_folder(record.path, options)
        elif str(record.path) in words and not record.path.exists():
            raise InputError(f"{record.path}: no such file or folder")
        elif record.path.suffix.lower() in DOCUMENTS and "caption" not in record.data:
            yield from _of_file(record.path, options)
        else:
            yield _of_record(record, options, finder)
    if nothing and not options.inputs:
        raise InputError("nothing to work on: the list on standard input is empty")


def _of_file(path: Path, options: Options) -> Iterator[Job | Document]:
    """A JSON file: a document of many captions, or a sidecar."""
    try:
        kind = options.source if options.source in DOCUMENT_FORMATS else None
        kind = kind or (None if options.source in POST_FORMATS else sniff_document(path))
    except InputError as error:
        yield Job(str(path), error=str(error))
        return
    if kind is not None and options.target in ("txt", "caption"):
        yield from _of_document(path, kind, options)
    elif kind is not None:
        yield Document(path, kind)
    else:
        yield from _of_sidecars([path], path.parent, options)


def _of_document(path: Path, kind: str, options: Options) -> Iterator[Job]:
    """The captions of a document, each to be a file of its own."""
    try:
        data, _ = read_stamped(path)
        rows = document_rows(decode_caption(data or b"", path, options.encoding), kind)
    except InputError as error:
        text = str(error)
        yield Job(str(path), error=text if text.startswith(str(path)) else f"{path}: {text}")
        return
    pictures = NamedPictures(path)
    for name, caption in rows:
        picture = str(pictures.path_of(name))
        file = f"{picture_stem(picture)}{options.extensions[0]}"
        yield _aimed(Job(file, path.parent, picture, given=caption), options)


def _of_sidecars(sidecars: Sequence[Path], root: Path, options: Options) -> Iterator[Job]:
    folders: dict[Path, Pictures] = {}
    strangers = 0
    for sidecar in sidecars:
        folder = sidecar.parent
        if folder not in folders:
            folders[folder] = Pictures(find_files(folder, PICTURES))
        for match in read_matches(sidecar, folders[folder], root):
            if match.post is None:
                yield Job(str(sidecar), root, error=match.error)
            elif match.picture is None and folders[folder].paths:
                strangers += 1
            else:
                whole = match.picture or sidecar.with_name(sidecar.stem)
                alone = match.picture is None and whole.suffix.lower() not in PICTURES
                file = f"{whole if alone else whole.with_suffix('')}{options.extensions[0]}"
                given, facts = post_caption(match.post, options)
                picture = None if match.picture is None else str(match.picture)
                yield _aimed(Job(file, root, picture, given=given, facts=facts), options)
    if strangers:
        say(f"lora-clean: {strangers} posts have no picture here")


def _aimed(job: Job, options: Options) -> Job:
    """The job with the file that ``--to`` asks for."""
    if options.target not in ("txt", "caption"):
        return job
    suffix = f".{options.target}"
    place = Path(job.file)
    if options.output is not None:
        place = options.output / _inside(place, job.root)
    file = str(place.with_suffix(suffix))
    if file != job.file:
        if job.origin is None and job.given is None:
            job.origin = job.file
        job.file = file
    return job


def _inside(place: Path, root: Path | None) -> Path:
    """The place below the output that a file has below ``root``; its bare name where it lies elsewhere."""
    whole = Path(os.path.abspath(place))  # noqa: PTH100 - links are not to be followed
    home = None if root is None else Path(os.path.abspath(root))  # noqa: PTH100
    return whole.relative_to(home) if home is not None and whole.is_relative_to(home) else Path(place.name)


def _of_record(record: Record, options: Options, finder: CaptionFinder) -> Job:
    path, caption = record.path, record.data.get("caption")
    is_text = path.suffix.lower() in options.extensions
    job = Job(str(path), record=record, reader=TEXT_FORMATS.get(options.source or ""))
    job.picture = None if is_text else job.file
    if not is_text and not (options.no_txt and caption is not None):
        job.file = find_caption_file(job.file, options.extensions, finder)
    if options.source == PICTURE_FORMAT and not is_text and caption is None and path.exists():
        caption = _with_embedded(job, path).given
    if job.reader is not None and caption is None:
        _take_sidecar(job, path, is_text, options)
    if job.error is not None:
        pass
    elif "error" in record.data:
        job.error = str(record.data["error"])
    elif caption is not None and not isinstance(caption, str):
        job.error = "its record's caption is not a text"
    elif caption is None and not path.exists() and not Path(job.file).exists():
        job.error = "no such file"
    elif not is_text and caption is None and path.suffix.lower() not in PICTURES:
        job.error = "neither a picture nor a caption file"
    else:
        job.given = caption
        job.facts = record_facts(record.data)
    return _aimed(job, options)


def _take_sidecar(job: Job, path: Path, is_text: bool, options: Options) -> None:
    """Read ``a.png.txt`` where there is one, and write ``a.txt``, as trainers read it."""
    sidecars = [path] if is_text else [Path(f"{path}{extension}") for extension in options.extensions]
    sidecar = next((one for one in sidecars if one.is_file()), path)
    picture = sidecar.with_suffix("")
    if sidecar.suffix and picture.suffix.lower() in PICTURES and picture.is_file():
        job.picture, job.origin = str(picture), str(sidecar)
        job.file = str(picture.with_suffix(options.extensions[0]))


def find_caption_file(picture: str, extensions: Sequence[str], finder: CaptionFinder) -> str:
    """The caption file of a picture; where there is none, the one it would have."""
    stem = picture_stem(picture)
    if stem == picture:  # a picture that a record names without its suffix
        return next((file for one in extensions if Path(file := stem + one).is_file()), stem + extensions[0])
    beside = finder.of(Path(picture))
    if beside is not None and beside.suffix.lower() in extensions:
        return str(beside)
    return stem + extensions[0]


def record_facts(data: Mapping[str, Any]) -> Facts:
    """Categories and probabilities that a tagger put into its record."""
    categories: dict[str, str] = {}
    scores: dict[str, float] = {}
    for category in CATEGORIES:
        scored = data.get(category)
        if category == "rating" or not isinstance(scored, Mapping):
            continue
        for name, score in scored.items():
            key = " ".join(str(name).replace("_", " ").casefold().split())
            categories.setdefault(key, category)
            if isinstance(score, int | float):
                scores.setdefault(key, float(score))
    return Facts(categories, scores) if categories else NO_FACTS


# -------------------------------------------------------------------------------- folders


def _of_files(folder: Path, options: Options) -> Iterator[Job | Document]:
    """The sidecars or documents of a folder."""
    suffixes = [{"metadata": ".jsonl", "csv": ".csv"}.get(options.source or "", ".json")]
    files = find_files(folder, suffixes, recursive=options.recursive)
    if not files:
        raise InputError(f"{folder}: has no {suffixes[0]} files")
    if options.source in DOCUMENT_FORMATS:
        for path in files:
            yield from _of_file(path, options)
    else:
        yield from _of_sidecars(files, folder, options)


def _in_folder(folder: Path, options: Options) -> Iterator[Job | Document]:
    """The caption files of a folder. Where it has pictures, only those with a picture: other texts are no captions."""
    if options.source in (*POST_FORMATS, *DOCUMENT_FORMATS):
        yield from _of_files(folder, options)
        return
    if options.source == PICTURE_FORMAT:
        yield from _of_pictures(folder, options)
        return
    wanted = PICTURES.union(options.extensions)
    by_folder: dict[str, list[str]] = {}
    for path in find_names(folder, wanted, recursive=options.recursive):
        by_folder.setdefault(os.path.dirname(path), []).append(path)  # noqa: PTH120
    jobs = [job for paths in by_folder.values() for job in _in_one(paths, folder, options)]
    if not jobs:
        hint = "" if options.recursive else "; -r looks into its folders"
        raise InputError(f"{folder}: has no captions ({', '.join(options.extensions)}){hint}")
    yield from jobs
    for line in notes_of(folder, recursive=options.recursive, alone="left alone"):
        say(f"lora-clean: note: {folder}: {line}")


def _of_pictures(folder: Path, options: Options) -> Iterator[Job]:
    """The captions that lie in pictures."""
    pictures = find_names(folder, PICTURES, recursive=options.recursive)
    if not pictures:
        raise InputError(f"{folder}: has no pictures")
    without = 0
    finder = CaptionFinder(options.extensions[0])
    for picture in pictures:
        file = find_caption_file(picture, options.extensions, finder)
        job = _with_embedded(Job(file, folder, picture), Path(picture))
        if job.given is None and job.error is None:
            without += 1
        else:
            yield _aimed(job, options)
    if without:
        say(f"lora-clean: {without} pictures have no caption in them")


def _with_embedded(job: Job, picture: Path) -> Job:
    try:
        if picture.is_symlink():
            check_inside(picture, job.root or picture.parent)
        job.given = read_embedded(picture, job.root)
    except InputError as error:
        job.error = str(error)
    return job


def _in_one(paths: Sequence[str], root: Path, options: Options) -> Iterator[Job]:
    paired = pair(paths, options.extensions)
    reader = TEXT_FORMATS.get(options.source or "")
    sidecars = {text.stem for text in paired.texts} if reader is not None else set()
    for text in paired.texts:
        path, owner = text.path, text.owner
        name = None if owner is None else os.path.basename(owner)  # noqa: PTH119
        if name is not None and text.stem != name and name in sidecars:
            continue  # a.txt is made of a.png.txt
        second = text.second and reader is None
        if second and options.target in ("txt", "caption") and options.output is not None:
            continue  # its place is the other's
        job = Job(path, root, owner, reader=reader, second=second, others=text.others)
        if reader is not None and owner is not None and text.stem == name:
            # A sidecar a.png.txt; trainers read a.txt.
            job.origin, job.file = path, split_suffix(owner)[0] + options.extensions[0]
        yield _aimed(job, options)
    place = Path(paths[0]).parent
    if paired.seconds and reader is None:
        names = few_of(paired.seconds)
        say(f"lora-clean: note: {place}: captions beside another that is read in their place: {names}")
    if paired.alone:
        say(f"lora-clean: {place}: {paired.alone} text files without a picture are left alone")
    for picture, stem in paired.bare if options.create else ():
        yield _aimed(Job(stem + options.extensions[0], root, picture), options)
    if paired.bare and not options.create:
        names = few_of([os.path.basename(picture) for picture, _ in paired.bare])  # noqa: PTH119
        count = f"{len(paired.bare)} picture{'s' * (len(paired.bare) != 1)}"
        say(f"lora-clean: note: {place}: {count} without a caption: {names} (lora-tag writes one)")


def counterpart(job: Job, other: Path, extensions: Sequence[str]) -> Path | None:
    """The caption of the same picture in another folder: at the same place below it, or of the same name in it."""
    file = Path(job.file)
    inside = file.relative_to(job.root) if job.root is not None else file.name
    for place in dict.fromkeys((other / inside, other / file.name)):
        for extension in dict.fromkeys((place.suffix, *extensions)):
            path = place.with_suffix(extension)
            if path.is_file() and not _same(path, file):
                return path
    return None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
