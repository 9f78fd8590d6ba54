"""Writes the map of folders in docs/architecture.md anew, with what each folder says of itself.

python tools/architecture_map.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/architecture.md"
BLOCK = re.compile(r"(```map\n).*?(```)", re.DOTALL)
WIDTH = 30


def rooms() -> list[Path]:
    """Every folder of modules, in the order of a tree."""
    folders = {path.parent for path in ROOT.glob("packages/*/src/**/__init__.py")}
    return sorted(folders, key=lambda folder: folder.relative_to(ROOT).parts)


def first_sentence(folder: Path) -> str:
    """What the folder's ``__init__`` says in its first line."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    plain = re.sub(r":\w+:`~?\.?([^`]+)`", r"\1", text.split("\n", 1)[0])
    return plain.rstrip(".").replace("``", "")


def lines() -> list[str]:
    """The map: a line a folder, indented by its depth below ``src``."""
    rows = []
    for folder in rooms():
        parts = folder.parts[folder.parts.index("src") + 1 :]
        name = f"{'  ' * (len(parts) - 1)}{parts[-1]}/"
        rows.append(f"{name:<{WIDTH}} {first_sentence(folder)}")
    return rows


def main() -> None:
    """Write the page."""
    text = PAGE.read_text(encoding="utf-8")
    new = "\n".join(lines())
    PAGE.write_text(BLOCK.sub(lambda block: f"{block[1]}{new}\n{block[2]}", text), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
