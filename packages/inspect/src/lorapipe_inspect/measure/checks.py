"""The checks of ``check``: container, modules, metadata, values, hashes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.command.text import printable
from lorapipe_engine.delta import rules
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import TensorFile, WeightFile
from lorapipe_engine.models.families import recognise
from lorapipe_engine.networks.algorithms import find_algorithm, is_plain
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.read import module_label, why_strange
from lorapipe_inspect.inputs import Input
from lorapipe_inspect.measure.counts import BLOCK
from lorapipe_inspect.measure.findings import CLEAN, PROBLEM, Findings, examine
from lorapipe_inspect.text import counted

_OFFICIAL_SPELLINGS = ("None", "Dynamic", "")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """A file's findings, hash of its data part, and what to say of them: ``problems`` make the verdict."""

    findings: Findings
    container: str
    size: int
    data_hash: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """The object of ``--json``; "zeros" is that of the command ``zeros``."""
        network = self.findings.network
        zeros = self.findings.as_record()
        return {
            "path": self.findings.name,
            "file": self.findings.name,
            "container": self.container,
            "bytes": self.size,
            "family": zeros["family"],
            "algo": zeros["algo"],
            "parts": dict(network.parts) if network else {},
            "ranks": dict(sorted(network.ranks.items())) if network else {},
            "metadata": len(network.metadata) if network else 0,
            "data_sha256": self.data_hash,
            "autov3": self.data_hash[:12] if self.data_hash else None,
            "zeros": {key: value for key, value in zeros.items() if key not in ("file", "family", "algo")},
            "problems": list(self.problems),
            "notes": list(self.notes),
            "verdict": PROBLEM if self.problems else CLEAN,
        }


def check_file(one: Input, *, strict: bool = False) -> CheckResult:
    """Everything about one file; with ``strict`` notes count as problems. Raises InputError if it cannot be read."""
    with one.open() as file:
        findings = examine(file, one.name)
        digest = _data_hash(file) if isinstance(file, TensorFile) else None
        problems = findings.problems(strict=strict)
        notes: list[str] = []
        if findings.network is None:
            notes.append(f"{findings.kind}: only its values were checked")
            if recognise({key: info.shape for key, info in file.tensors.items()}).kind == "lora":
                problems.append("tensors named as a network's, of which none belongs to a known algorithm")
        else:
            problems += [*_strange(findings.network), *_incomplete(file, findings.network)]
            notes += _notes(findings, findings.network, digest)
        if digest is None:
            notes.append("a pickle, which other programs may refuse to load: save it as safetensors")
        return CheckResult(
            findings=findings,
            container="safetensors" if digest is not None else "pickle",
            size=sum(info.size for info in file.tensors.values()),
            data_hash=digest,
            problems=(*problems, *(notes if strict else ())),
            notes=() if strict else tuple(notes),
        )


def _data_hash(file: TensorFile) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.data_bytes, BLOCK):
        digest.update(file.data(start, min(file.data_bytes, start + BLOCK)))
    return digest.hexdigest()


def _strange(network: Network) -> Iterator[str]:
    if why := why_strange(network):
        yield printable(why.removeprefix(f"{network.path}: "))


def _incomplete(file: WeightFile, network: Network) -> Iterator[str]:
    """Modules that lack a factor, whose factors do not fit each other, or that nothing is known of."""
    pairs = [pair for rule in rules().values() for pair in rule.pairs]
    broken = []
    for module in network.modules.values():
        suffixes = set(module.keys)
        missing = [
            other
            for pair in pairs
            for one, other in (pair, pair[::-1])
            if one in suffixes and other not in suffixes
        ]
        if missing:
            broken.append(f"{printable(module.name)} lacks {missing[0]}")
        elif module.algorithm == "unknown" or find_algorithm(module.keys) is None:
            broken.append(f"{printable(module.name)} has the tensors of no algorithm, or of several")
        elif module.rank == 0:
            broken.append(f"{printable(module.name)} has rank 0")
        elif why := _why_broken(file, module):
            broken.append(f"{printable(module.name)}: {printable(why)}")
    if broken:
        more = f" and {len(broken) - 1:,} more" if len(broken) > 1 else ""
        yield f"{counted(len(broken), 'module')} cannot be used: {broken[0]}{more}"


def _why_broken(file: WeightFile, module: NetworkModule) -> str | None:
    """Why the tools that write would refuse a module; None where they would not."""
    try:
        check_whole(file, module)
    except InputError as error:
        return str(error).removeprefix(f"module {module_label(file, module)}: ")
    return None


def _notes(findings: Findings, network: Network, digest: str | None) -> Iterator[str]:
    if network.others:
        first = printable(network.others[0])
        strangers = counted(len(network.others), "tensor", "belong")
        yield f"{strangers} to no module, {first} for one: programs will skip them"
    if network.family is None and network.foreign is None and network.mixed is None:
        yield "the family of base models is not recognised from the names"
    if network.scale_unknown:
        yield "the strengths of its modules are neither in the file nor in an adapter_config.json beside it"
    if not network.metadata:
        yield "no metadata: programs must guess what the file is"
    yield from _metadata_notes(network)
    stored = network.metadata.get("sshs_model_hash")
    if stored is not None and digest is not None and stored != digest:
        yield "sshs_model_hash is not the hash of the data: the file was changed after its training"
    ranks = findings.deaths.ranks if findings.deaths else {}
    if ranks:
        yield f"{counted(sum(ranks.values()), 'dead rank')} in {counted(len(ranks), 'module')}"
    if findings.skipped:
        yield f"{counted(len(findings.skipped), 'tensor')} of 4 or 6 bit types, whose values were not looked at"


def _metadata_notes(network: Network) -> Iterator[str]:
    missing = sum(
        module.alpha is None and module.scale is None
        for module in network.modules.values()
        if is_plain(module.algorithm)
    )
    if missing:
        yield f"{counted(missing, 'module')} without alpha, which then is the rank"
    stored = network.metadata.get("ss_network_dim", "")
    if stored not in _OFFICIAL_SPELLINGS and network.ranks and stored not in map(str, network.ranks):
        yield f"ss_network_dim is {printable(stored)}, but no module has that rank"
    alphas = Counter(f"{module.alpha:g}" for module in network.modules.values() if module.alpha is not None)
    stored = network.metadata.get("ss_network_alpha", "")
    if stored not in _OFFICIAL_SPELLINGS and alphas and _plain(stored) not in alphas:
        yield f"ss_network_alpha is {printable(stored)}, but no module has that alpha"


def _plain(number: str) -> str:
    try:
        return f"{float(number):g}"
    except ValueError:
        return number
