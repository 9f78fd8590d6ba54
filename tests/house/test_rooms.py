"""The shape of the house: imports without circles, folders in one order, and the map in the docs equal to the tree."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES: list[str] = runpy.run_path(str(ROOT / "tools/import_rules.py"))["packages"]()
MAP = ROOT / "docs/architecture.md"
MOST_MODULES = 16  # of a folder; past that it wants rooms


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph[str]:
    """Every import between modules of ours, those for type checkers too."""
    imports = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=False)
    edges = ((one, two) for one in imports.modules for two in imports.find_modules_directly_imported_by(one))
    return nx.DiGraph(edges)


def test_files_do_not_import_each_other_in_circles(graph: nx.DiGraph[str]) -> None:
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def rooms() -> list[Path]:
    """Every folder of modules."""
    return sorted(
        {path.parent for path in ROOT.glob("packages/*/src/**/*.py") if "__pycache__" not in path.parts}
    )


def module_of(folder: Path) -> str:
    return ".".join(folder.relative_to(next(p for p in folder.parents if p.name == "src")).parts)


@pytest.mark.parametrize("folder", rooms(), ids=module_of)
def test_imports_go_one_way_between_the_rooms_of_a_folder(folder: Path, graph: nx.DiGraph[str]) -> None:
    """What a folder holds, files and folders alike, has an order in which each imports only from those behind it."""
    name = module_of(folder)

    def child(module: str) -> str | None:
        if module == name:
            return f"{name}.__init__"
        return ".".join(module.split(".")[: name.count(".") + 2]) if module.startswith(f"{name}.") else None

    between: nx.DiGraph[str] = nx.DiGraph()
    for one, two in graph.edges:
        if (start := child(one)) and (end := child(two)) and start != end:
            between.add_edge(start, end)
    circles = [sorted(circle) for circle in nx.strongly_connected_components(between) if len(circle) > 1]
    assert circles == []


@pytest.mark.parametrize("folder", rooms(), ids=module_of)
def test_no_folder_is_a_heap(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, sorted(modules)


def mapped() -> Iterator[str]:
    """The folders in the map of the architecture page: a line each, indented by their depth."""
    block = re.search(r"```map\n(.*?)```", MAP.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, "docs/architecture.md has no ```map block"
    parents: list[str] = []
    for line in block[1].splitlines():
        if found := re.match(r"( *)([\w-]+)/(?: |$)", line):
            depth = len(found[1]) // 2
            parents[depth:] = [found[2]]
            yield "/".join(parents)


def test_the_map_is_the_tree() -> None:
    tree = {"/".join(Path(module_of(folder).replace(".", "/")).parts) for folder in rooms()}
    assert sorted(mapped()) == sorted(tree)
