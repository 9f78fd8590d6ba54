"""Compiles the engine's one small piece of C where there is a compiler; without one the engine is all Python.

python packages/engine/hatch_build.py    compile it in place, for who works on the sources without installing
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

FOLDER = Path("src/lorapipe_engine/native")
LIBRARY = FOLDER / "halves.so"


def compile_halves(root: Path) -> bool:
    """Make ``halves.so`` beside its source; False, with a line that says why, where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None or os.name == "nt":
        sys.stderr.write("no C compiler: 16-bit numbers are converted by numpy, which is slower\n")
        return False
    unfinished = root / FOLDER / "halves.part.so"
    words = ["-O3", "-shared", "-fPIC", "-o", str(unfinished), str(root / FOLDER / "halves.c")]
    done = subprocess.run([compiler, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr[-500:]
        sys.stderr.write(f"{compiler} failed, so 16-bit numbers are converted by numpy: {reason}\n")
        return False
    unfinished.replace(root / LIBRARY)
    return True


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # started by hand
    pass
else:

    class CompileHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
        """Puts the library into the wheel, which then is one for this system."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Called before a wheel, or an editable installation, is built."""
            del version
            if compile_halves(Path(self.root)):
                platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{platform}"
                build_data["artifacts"].append(str(LIBRARY))


if __name__ == "__main__":
    sys.exit(0 if compile_halves(Path(__file__).parent) else 1)
