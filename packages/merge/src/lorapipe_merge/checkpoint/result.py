"""The result planned and written: what becomes of each tensor, where it stands, and the work of making it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from lorapipe_engine.checkpoints.opened import Base, index_files, is_layer, renamed_index
from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import ConfigError, InputError, OutputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES
from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, build_header
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.dates import date_of_inputs
from lorapipe_engine.files.writing.openfolder import is_link_path
from lorapipe_merge.checkpoint.report import Moved, Report
from lorapipe_merge.checkpoint.stream import cast_tensor, merge_tensor
from lorapipe_merge.checkpoint.verify import verify_file
from lorapipe_merge.matching import Applied, Contribution, Match
from lorapipe_merge.output import Buffers, Target, copy_tensor, run_jobs, thread_count
from lorapipe_merge.recipe import Source, merged_metadata, recipe

PRECISIONS: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_WRITABLE = frozenset({"F16", "BF16", "F32", "F64"})
_UNKNOWN_HASH = "0" * 64


@dataclass(frozen=True)
class FilePlan:
    """One file of the result. ``places``: type, shape and place of every tensor."""

    number: int
    path: Path
    places: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the data part."""
        return max((info.end for info in self.places.values()), default=0)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        return build_header({key: (i.dtype, i.shape) for key, i in self.places.items()}, metadata)[0]


@dataclass(frozen=True)
class Result:
    """A merge that is ready to be done."""

    base: Base
    networks: Sequence[Applied]
    output: Path
    files: Sequence[FilePlan]
    changes: Mapping[tuple[int, str], Sequence[Contribution]]
    blocks: str | None
    precision: str
    metadata: bool

    @property
    def size(self) -> int:
        """Bytes that the result takes, about; a folder's other files are small but for the VAE."""
        return sum(len(file.header(self.metadata_of(file.number, None))) + file.size for file in self.files)

    def metadata_of(self, number: int, base_hashes: Sequence[str] | None) -> dict[str, str]:
        """The metadata of a file; hashes of the base that are not known yet have a stand-in of their length."""
        old = self.base.files[number].weights.metadata
        if not self.metadata:
            return dict(old)
        hashes = base_hashes or [_UNKNOWN_HASH] * len(self.base.files)
        paths = [file.weights.path for file in self.base.files]
        sources = [Source(path, digest) for path, digest in zip(paths, hashes, strict=True)]
        text = recipe(
            "checkpoint",
            {
                "base": sources[0] if len(sources) == 1 else sources,
                "networks": [Source(Path(n.name), n.sha256, n.ratio) for n in self.networks],
            },
            blocks=self.blocks,
            precision=self.precision,
            base_dtype=self._base_dtype(),
        )
        return merged_metadata(
            old,
            text,
            family=None if self.base.folder else self.base.family,
            title=self.output.stem,
            merged_from=[self.base.path.name, *(Path(n.name).name for n in self.networks)],
            date=date_of_inputs([*paths, *(Path(n.name) for n in self.networks)]),
            prediction=self.base.prediction,
        )

    def _base_dtype(self) -> str | None:
        """The type of all layers that are changed, where they have one in common; what ``--undo`` goes back to."""
        dtypes = {self.base.info(*place).dtype for place in self.changes}
        return dtypes.pop() if len(dtypes) == 1 else None


def plan_result(
    base: Base,
    networks: Sequence[Applied],
    match: Match,
    output: Path,
    blocks: str | None,
    precision: str,
    *,
    metadata: bool,
) -> Result:
    """Decide the type and the place of every tensor. Raises ConfigError for types that cannot be written."""
    files = []
    for number, file in enumerate(base.files):
        kinds = {}
        for key, info in file.weights.tensors.items():
            changed = (number, key) in match.changes
            dtype = info.dtype
            if (
                info.dtype in FLOAT_DTYPES
                and precision != "keep"
                and (changed or is_layer(file, key, base.family))
            ):
                dtype = PRECISIONS[precision]
            if changed and dtype not in _WRITABLE:
                raise ConfigError(
                    f"{file.weights.path}: {key} is of type {dtype}, which is not written; give --save-precision fp16"
                )
            kinds[key] = (dtype, info.shape)
        path = output / file.output if base.folder else output
        files.append(FilePlan(number, path, build_header(kinds)[1]))
    return Result(base, networks, output, files, match.changes, blocks, precision, metadata)


# -------------------------------------------------------------------------------- writing


def write_result(result: Result, report: Report, *, force: bool, verify: bool, allow: bool) -> None:
    """Do the merge: every file in full, or none. Raises OutputError, and ProblemFound where checks fail."""
    if not result.base.folder:
        _write_file(result, result.files[0], report, force=force, verify=verify, allow=allow)
        return
    try:
        # A new one under a name that nobody can guess: nothing that is there is cleared away or written to.
        work = Path(mkdtemp(prefix=".lorapipe-", suffix=".tmp", dir=result.output.parent))
    except OSError as error:
        raise OutputError(f"{result.output}: cannot be written: {error.strerror}") from error
    try:
        _copy_rest(result.base.path, work, {file.path.relative_to(result.output) for file in result.files})
        for file in result.files:
            inside = FilePlan(file.number, work / file.path.relative_to(result.output), file.places)
            inside.path.parent.mkdir(parents=True, exist_ok=True)
            _write_file(result, inside, report, force=True, verify=verify, allow=allow)
        if result.output.exists():
            result.output.rmdir()  # it is empty
        _open_to_others(work)
        work.rename(result.output)
    except OSError as error:
        raise OutputError(f"{result.output}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """Give a temporary folder, which is the user's alone, the rights that any new folder has."""
    probe = folder / "probe"
    probe.mkdir()
    folder.chmod(stat.S_IMODE(probe.stat().st_mode))
    probe.rmdir()


def _copy_rest(source: Path, target: Path, written: set[Path]) -> None:
    """Everything of a diffusers folder but the weights that are merged: configurations, tokenizers, the VAE.

    Raises InputError for a link out of the folder: what it leads to may not be meant for who gets the result.
    """
    merged = {path.parts[0] for path in written}

    def skip(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).relative_to(source)
        for name in names:
            check_link(Path(folder, name), source)
        weights = {
            n for n in names if Path(n).suffix in (".safetensors", ".bin", ".msgpack", ".onnx", ".ckpt")
        }
        if here == Path():
            # Single-file checkpoints that lie beside the folders are other models.
            return weights
        return weights if here.parts[0] in merged else set()

    shutil.copytree(source, target, ignore=skip, dirs_exist_ok=True)
    for index in index_files(source):
        (target / index.relative_to(source)).write_text(renamed_index(index), encoding="utf-8")


def check_link(path: Path, source: Path) -> None:
    """Raise InputError for a link to a folder, or out of the model's folder; but the hub's cache is made of links to
    the ``blobs`` beside its ``snapshots``."""
    if not is_link_path(path):
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: is neither a file nor a folder, and cannot be copied")
        return
    root = source.resolve()
    roots = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    real = path.resolve()
    if not path.is_file() or not any(real.is_relative_to(place) for place in roots):
        raise InputError(f"{path}: is a link out of the model's folder; put the file itself in its place")


def _write_file(
    result: Result, plan: FilePlan, report: Report, *, force: bool, verify: bool, allow: bool
) -> None:
    header = plan.header(result.metadata_of(plan.number, None))
    total = len(header) + plan.size
    replaces = os.path.lexists(plan.path)
    with atomic_write(plan.path, force=force, size=total, wait=False) as file:
        hashes: list[str] = []
        with Target(file, total, replaces=replaces) as target, progress(plan.size, "merging", "B") as bar:

            def done(moved: Moved) -> None:
                report.add(moved)
                bar.update(moved.bytes)

            run_jobs(_jobs(result, plan, target, len(header), hashes, allow), thread_count(), done)
            if hashes:
                header = plan.header(result.metadata_of(plan.number, hashes))
            target.write_at(header, 0)
        if verify:
            file.flush()
            verify_file(result.base, plan.number, result.changes, Path(str(file.name)), report)


def _jobs(
    result: Result, plan: FilePlan, target: Target, start: int, hashes: list[str], allow: bool
) -> Iterator[Callable[[], Moved]]:
    """The work, a tensor at a time. The base's hash is taken beside it, since its file is read anyway."""
    source = result.base.files[plan.number].weights
    buffers = Buffers()
    if result.metadata:

        def take_hashes() -> Moved:
            hashes.extend(known_sha256(file.weights.path) for file in result.base.files)
            return Moved(0)

        yield take_hashes
    for key, place in plan.places.items():
        changes = result.changes.get((plan.number, key))
        yield _job(source, key, place, changes, target, start + place.start, buffers, allow)


def _job(
    source: WeightFile,
    key: str,
    place: TensorInfo,
    changes: Sequence[Contribution] | None,
    target: Target,
    offset: int,
    buffers: Buffers,
    allow: bool,
) -> Callable[[], Moved]:
    def work() -> Moved:
        if changes:
            return merge_tensor(source, key, place.dtype, changes, target, offset, buffers, allow=allow)
        if place.dtype != source.tensors[key].dtype:
            cast_tensor(source, key, place.dtype, target, offset, buffers, allow=allow)
        else:
            copy_tensor(source, key, target, offset, buffers)
        return Moved(place.size)

    return work
