"""Scores for a stream of pictures: decoding, preparing and inference side by side, memory bounded, order kept.

Decoders are threads (Pillow lets go of the interpreter's lock). Each takes a picture to one uint8 square for each
model, or finds its scores in the cache. Batches of squares go to one more thread that runs the networks, while the
next ones are decoded. Networks are loaded when the first picture needs them, so a run that the cache answers loads
none.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from lorapipe_engine.command.process.processors import processors
from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError
from lorapipe_tagger.models.adapters import Adapter
from lorapipe_tagger.models.labels import Labels, read_labels
from lorapipe_tagger.models.names import ModelFiles
from lorapipe_tagger.scoring.picture import (
    VERSION,
    PictureError,
    Pixels,
    Preparation,
    read_picture,
    without_pillow_limit,
)
from lorapipe_tagger.scoring.scores import Known, ScoreCache
from lorapipe_tagger.scoring.select import FLOOR
from lorapipe_tagger.scoring.session import Network, Scores
from lorapipe_tagger.settings import Resampling
from lorapipe_tagger.sources import Task

MAX_WORKERS = 16
GPU_BATCH = 8
_LONGEST_GROUP = 64
_GROUPS_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """How to go about it. ``batch`` None: 1 on a CPU, where larger ones gain nothing, 8 elsewhere."""

    batch: int | None
    workers: int
    max_pixels: int
    resampling: Resampling
    device: str
    int8: bool


@dataclass(frozen=True)
class Result:
    """A picture's scores, one vector (L,) for each model; or why there are none."""

    task: Task
    size: tuple[int, int] = (0, 0)
    transparent: bool = False
    scores: tuple[Scores, ...] = ()
    cached: bool = False
    error: str | None = None


@dataclass(frozen=True)
class _Decoded:
    """A picture on its way to the networks. ``digest`` is None without a cache."""

    task: Task
    size: tuple[int, int]
    transparent: bool
    pixels: tuple[Pixels, ...]
    digest: bytes | None


class Tagger:
    """A model: its labels at once, its network when it is needed."""

    def __init__(self, files: ModelFiles, work: Work) -> None:
        self.files = files
        self.labels: Labels = read_labels(files.labels)
        self._work = work
        self._lock = threading.Lock()
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        """The loaded network. Raises ConfigError or InputError."""
        with self._lock:
            if self._network is None:
                path = self.files.network
                if self._work.int8:
                    from lorapipe_tagger.scoring.quantize import quantized

                    path = quantized(path)
                self._network = Network(path, self.files.adapter, self._work.device, len(self.labels))
                say(f"lora-tag: {self.files.name} on {self._network.device}")
                if self.files.adapter.note:
                    say(f"lora-tag: note: {self.files.name}: {self.files.adapter.note}")
            return self._network

    @cached_property
    def preparation(self) -> Preparation:
        """What the network wants its pictures to be."""
        adapter = self.files.adapter
        return Preparation(
            size=self.network.input.size,
            padding=adapter.padding,
            geometry=adapter.geometry,
            resampling=self._work.resampling,
            channels=adapter.channels,
        )

    def cache_key(self, cache: ScoreCache) -> str:
        """What the cache knows this model and its preparation by."""
        adapter = self.files.adapter
        ways = (
            adapter.name,
            _prepared(adapter),
            self._work.resampling,
            VERSION,
            "int8" if self._work.int8 else "",
        )
        return "-".join([cache.digest(self.files.network).hex(), *map(str, ways)])


def _prepared(adapter: Adapter) -> str:
    """What a change of the adapter would do to the scores, in short: scores of before are then not taken."""
    facts = (
        adapter.channels,
        adapter.mean,
        adapter.std,
        adapter.size,
        adapter.padding,
        adapter.geometry,
        adapter.logits,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def default_workers() -> int:
    """One decoder for each core that this process may use, 16 at most."""
    return min(processors(), MAX_WORKERS)


class Pipeline:
    """Runs pictures through models."""

    def __init__(self, taggers: Sequence[Tagger], work: Work, cache: ScoreCache | None) -> None:
        self._taggers = taggers
        self._work = work
        self._cache = cache
        self._keys = [tagger.cache_key(cache) for tagger in taggers] if cache else []

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The results in the tasks' order, as they come.

        A picture that cannot be read has an error in its result; what is wrong with a model is raised.
        """
        quiet = (QUIET.get(),)  # threads do not have it of themselves
        decoders = ThreadPoolExecutor(self._work.workers, "decode", QUIET.set, quiet)
        runner = ThreadPoolExecutor(1, "infer", QUIET.set, quiet)
        try:
            with without_pillow_limit():
                yield from self._stream(iter(tasks), decoders, runner)
        finally:
            decoders.shutdown(cancel_futures=True)
            runner.shutdown(cancel_futures=True)
            if self._cache:
                self._cache.flush()

    def _stream(
        self, tasks: Iterator[Task], decoders: ThreadPoolExecutor, runner: ThreadPoolExecutor
    ) -> Iterator[Result]:
        ahead = 2 * self._work.workers + (self._work.batch or GPU_BATCH)
        waiting = deque(decoders.submit(self._read, task) for task in islice(tasks, ahead))
        groups: deque[Future[list[Result]]] = deque()
        group: list[Result | _Decoded] = []
        while waiting:
            group.append(waiting.popleft().result())
            waiting.extend(decoders.submit(self._read, task) for task in islice(tasks, 1))
            if waiting and not self._is_full(group):
                continue
            groups.append(runner.submit(self._infer, group))
            group = []
            while len(groups) > (_GROUPS_AHEAD if waiting else 0) or (groups and groups[0].done()):
                yield from groups.popleft().result()

    def _is_full(self, group: Sequence[Result | _Decoded]) -> bool:
        decoded = sum(isinstance(one, _Decoded) for one in group)
        return decoded >= self._batch() if decoded else len(group) >= _LONGEST_GROUP

    def _batch(self) -> int:
        if self._work.batch:
            return self._work.batch
        networks = [tagger.network for tagger in self._taggers]
        fixed = max(network.input.batch or 1 for network in networks)
        return fixed if all(network.device == "cpu" for network in networks) else max(fixed, GPU_BATCH)

    def _read(self, task: Task) -> Result | _Decoded:
        try:
            digest = self._digest(task.path)
            known = self._known(digest) if digest else None
            if known:
                scores = tuple(one.scores for one in known)
                return Result(task, known[0].size, known[0].transparent, scores, cached=True)
            wanted = [tagger.preparation for tagger in self._taggers]
            different = list(dict.fromkeys(wanted))
            picture = read_picture(task.path, different, max_pixels=self._work.max_pixels)
            pixels = tuple(picture.pixels[different.index(preparation)] for preparation in wanted)
            return _Decoded(task, picture.size, picture.transparent, pixels, digest)
        except PictureError as error:
            return Result(task, error=str(error))

    def _digest(self, path: Path) -> bytes | None:
        """The picture's hash, if there is a cache."""
        try:
            return self._cache.digest(path) if self._cache else None
        except InputError as error:
            raise PictureError(str(error).removeprefix(f"{path}: ")) from error

    def _known(self, digest: bytes) -> list[Known] | None:
        if self._cache is None:
            return None
        entries = []
        for key, tagger in zip(self._keys, self._taggers, strict=True):
            known = self._cache.get(key, digest)
            if known is None or len(known.scores) != len(tagger.labels):
                return None
            entries.append(known)
        return entries

    def _infer(self, group: Sequence[Result | _Decoded]) -> list[Result]:
        decoded = [one for one in group if isinstance(one, _Decoded)]
        columns = []
        for at, tagger in enumerate(self._taggers if decoded else ()):
            scores = tagger.network.scores([one.pixels[at] for one in decoded])
            scores[scores < FLOOR] = 0
            columns.append(scores)
        rows = iter(zip(*columns, strict=True))
        results = []
        for one in group:
            if isinstance(one, Result):
                results.append(one)
                continue
            scores_of_all = tuple(next(rows))
            results.append(Result(one.task, one.size, one.transparent, scores_of_all))
            if self._cache and one.digest:
                for key, scores in zip(self._keys, scores_of_all, strict=True):
                    self._cache.put(key, one.digest, Known(one.size, one.transparent, scores))
        return results
