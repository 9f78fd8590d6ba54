"""The import rules of the house, checked by import-linter.

    python tools/import_rules.py

Rules name folders, never single modules, so a new module is under them from its first day. Packages are found in
``packages/``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
ENGINE = "lorapipe_engine"
HEAVY = ("torch", "diffusers", "transformers", "pandas", f"{ENGINE}.nn", f"{ENGINE}.train")
# Folders of the engine that need torch; all others are light.
TRAINING = ("nn", "train", "cli", "sample_cli")
# A light tool may import torch inside a function, when the user asks for a card.
ON_REQUEST = ("lorapipe_resize.device -> torch",)
# From the top down: a layer imports only from those below it. Layers of one line do not import each other.
ENGINE_LAYERS = (
    "cli | sample_cli",
    "train",
    "doctor | advice",
    "nn | delta | datasets | sampling",
    "networks | settings | checkpoints",
    "pictures | models | changes",
    "files",
    "native | command",
    "errors",
)
TRAIN_LAYERS = (
    "queue",
    "session",
    "loop | memory | choose",
    "validation",
    "judging",
    "results",
    "sample",
    "plan",
    "schedules",
    "step",
    "data",
    "network | optimizers | processes",
    "meeting",
    "families",
    "objective",
    "base",
)


def packages() -> list[str]:
    """The import names of all packages, the engine first."""
    names = sorted(path.parent.name for path in ROOT.glob("packages/*/src/lorapipe_*/__init__.py"))
    return sorted(names, key=lambda name: name != ENGINE)


def light_modules() -> list[str]:
    """Folders and root modules that never import anything heavy."""
    root = next(ROOT.glob(f"packages/*/src/{ENGINE}"))
    names = sorted(path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py")
    engine = [f"{ENGINE}.{name}" for name in names if not name.startswith("_") and name not in TRAINING]
    return [*engine, *(name for name in packages() if name not in (ENGINE, "lorapipe_demo"))]


def configuration() -> str:
    """The rules as import-linter's TOML."""
    tools = [name for name in packages() if name not in (ENGINE, "lorapipe_demo")]
    return "\n".join(
        [
            "[tool.importlinter]",
            f"root_packages = {packages()}",
            "include_external_packages = true",
            *_contract("the engine's folders", "layers", containers=[ENGINE], layers=list(ENGINE_LAYERS)),
            *_contract(
                "training's folders", "layers", containers=[f"{ENGINE}.train"], layers=list(TRAIN_LAYERS)
            ),
            *_contract("tools never import each other", "independence", modules=tools),
            *_contract(
                "light code stays light",
                "forbidden",
                source_modules=light_modules(),
                forbidden_modules=list(HEAVY),
                ignore_imports=list(ON_REQUEST),
            ),
        ]
    )


def _contract(name: str, kind: str, **settings: list[str]) -> list[str]:
    rows = [f"{key} = {value}" for key, value in settings.items()]
    return ["[[tool.importlinter.contracts]]", f'name = "{name}"', f'type = "{kind}"', *rows]


def main() -> int:
    """Check the rules; 0 if all hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pyproject.toml")
        path.write_text(configuration(), encoding="utf-8")
        return int(lint_imports(config_filename=str(path)))


if __name__ == "__main__":
    sys.exit(main())
