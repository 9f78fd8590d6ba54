"""What holds for the whole repository."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
HEAVY = ("torch", "diffusers", "transformers", "pandas", "onnxruntime", "PIL", "huggingface_hub")
HELP_TAKES = 4.0  # times what importing click takes
RULES = runpy.run_path(str(ROOT / "tools/import_rules.py"))


def project(folder: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def scripts() -> list[tuple[str, str]]:
    return [row for folder in PACKAGES for row in dict(project(folder).get("scripts", {})).items()]  # type: ignore[call-overload]


def test_one_version() -> None:
    versions = {str(project(folder)["version"]) for folder in PACKAGES}
    assert len(versions) == 1
    version = versions.pop()
    for folder in PACKAGES:
        module = next((folder / "src").glob("lorapipe_*/__init__.py"))
        assert f'__version__ = "{version}"' in module.read_text(), module
        for need in project(folder).get("dependencies", []):  # type: ignore[attr-defined]
            if need.startswith("lorapipe-"):
                assert need.split("[")[0].split("==")[0] == "lorapipe-engine"
                assert need.endswith(f"=={version}"), need
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def light_modules() -> list[str]:
    """Every module in a light folder of the engine or in its rooms, and those that light tools start with."""
    found = [target.split(":")[0] for _, target in scripts()]
    for name in RULES["light_modules"]():
        if name.startswith("lorapipe_engine."):
            place = ROOT / "packages/engine/src" / name.replace(".", "/")
            inside = (path.relative_to(place).with_suffix("") for path in place.rglob("[!_]*.py"))
            found += [name, *(".".join((name, *path.parts)) for path in inside)]
    found += [
        f"lorapipe_inspect.commands.{path.stem}"
        for path in ROOT.glob("packages/inspect/src/*/commands/[!_]*.py")
    ]
    return sorted(set(found))


# Imports modules in turn, each as the first of ours, and prints which of them brought in what is heavy.
IMPORT_EACH = """
import sys
from importlib import import_module

heavy = set(sys.argv[1].split())
for module in sys.argv[2:]:
    for name in [name for name in sys.modules if name.startswith("lorapipe_")]:
        del sys.modules[name]
    import_module(module)
    for name in sorted(heavy & sys.modules.keys()):
        heavy.remove(name)
        print(module, name)
"""


def imports_of(modules: list[str]) -> list[str]:
    """Who is the first to import something heavy, and what; one process, for a start is most of an import."""
    words = [sys.executable, "-c", IMPORT_EACH, " ".join(HEAVY), *modules]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_light_modules_import_nothing_heavy() -> None:
    modules = light_modules()
    assert len(modules) > 150
    assert imports_of(modules) == []


def test_what_is_heavy_is_seen() -> None:
    """Also where another module was imported before."""
    pytest.importorskip("lorapipe_demo")
    heavy, light = "lorapipe_demo.painting.drawing", "lorapipe_engine.errors"
    assert imports_of([light, heavy, light, heavy]) == [f"{heavy} PIL"]


def cpu_seconds(code: str, compiled: Path) -> float:
    """The processor's time for a program, which other work on the machine hardly changes.

    Its modules' bytecode is in ``compiled``, as an installer would have left it, whatever the environment says.
    """
    import resource  # not on Windows

    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the bytecode of commands that are started again and again."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), scripts())
def test_commands_answer_help_with_examples_at_once(name: str, target: str, compiled: Path) -> None:
    """In a few times what ``import click`` takes beside it: 0.3 s on a quiet machine are some seven of them.

    The least of several starts of each, in turns: other work only adds to them.
    """
    module, function = target.split(":")
    code = f"import sys; sys.argv = ['{name}', '--help']; from {module} import {function} as main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Examples" in done.stdout
    if os.name == "nt":
        return  # no times of children there
    cpu_seconds(code, compiled)  # the first start compiles what is new
    starts = [(cpu_seconds(code, compiled), cpu_seconds("import click", compiled)) for _ in range(7)]
    helps, imports = zip(*starts, strict=True)
    assert min(helps) < HELP_TAKES * min(imports), starts


def test_no_file_is_too_long() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    long = [name for name in tracked.stdout.split() if len((ROOT / name).read_text().splitlines()) > 500]
    assert long == []


def calls_of_pillow(tree: ast.AST) -> list[int]:
    """Lines that open a picture by Pillow, under whatever name, or count its frames."""
    modules, lines = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "PIL":
            modules |= {alias.asname or alias.name for alias in node.names}
            lines += [node.lineno for alias in node.names if alias.name in ("open", "Parser", "ImageFile")]
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "PIL" for alias in node.names if alias.name.split(".")[0] == "PIL"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("open", "n_frames"):
            root = node.value.value if isinstance(node.value, ast.Attribute) else node.value
            if node.attr == "n_frames" or (isinstance(root, ast.Name) and root.id in modules):
                lines.append(node.lineno)
    return lines


def test_one_place_opens_pictures() -> None:
    assert calls_of_pillow(ast.parse("from PIL import Image as I\nI.open(path)")) == [2]
    assert calls_of_pillow(ast.parse("import PIL.Image\nPIL.Image.open(path)\nPath(path).open()")) == [2]
    assert calls_of_pillow(ast.parse("from PIL.Image import open as see")) == [1]
    found = [
        f"{path.relative_to(ROOT)}, line {line}"
        for path in ROOT.glob("packages/*/src/**/*.py")
        if path.parts[-2:] != ("pictures", "opening.py")
        if "PIL" in (text := path.read_text(encoding="utf-8"))
        for line in calls_of_pillow(ast.parse(text))
    ]
    assert found == []


# What click.echo may print itself: text for programs, and text of the house that no stranger has a part in.
EXACT = ("json.dumps", "encode(", "value_text", "print_config", "plot_rates")


def test_text_for_people_goes_through_one_function() -> None:
    found = []
    for path in ROOT.glob("packages/*/src/**/*.py"):
        if ("command" in path.parts and "lorapipe_engine" in path.parts) or "lorapipe_demo" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        if not re.search(r"echo|print|repr|ascii", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "click.echo",
                "click.secho",
                "print",
            ):
                words = ast.unparse(node)
                if not any(part in words for part in EXACT):
                    found.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {words}")
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Call)
                and re.match(r"(repr|ascii)\(.*\)\[1:-1\]", ast.unparse(node))
            ):
                found.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {ast.unparse(node)}")
    assert found == []


def names_given(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The variables and parameters that a module names, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def test_a_result_is_called_what_it_is() -> None:
    """No name says that something came out of a search in place of what it is."""
    assert [*names_given(ast.parse("def look(found):\n    if rows := look(1):\n        return rows"))] == [
        ("found", 1),
        ("rows", 2),
    ]
    vague = [
        f"{path.relative_to(ROOT)}, line {line}"
        for path in (*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("tools/**/*.py"))
        if "found" in (text := path.read_text(encoding="utf-8"))
        for name, line in names_given(ast.parse(text))
        if name == "found"
    ]
    assert vague == []


def test_pins_are_exact() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_docs_are_linked_and_their_pictures_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "name", ["bench/make_weights.py", "bench/tag_files.py", "demo_world/export.py", "pages_output.py"]
)
def test_a_script_that_takes_words_shows_its_help(name: str, tmp_path: Path) -> None:
    """``--help`` is no name of a file to it."""
    script = [sys.executable, str(ROOT / "tools" / name), "--help"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])
    assert Path(name).name in done.stdout
