"""Everything a developer runs, with nothing prepared but Python 3.11 or newer.

    python tools/dev.py demo    make .venv, install, train a LoRA on the demo base and draw a grid with it
    python tools/dev.py test    the same set-up, then format, lint, types, import rules and tests
    python tools/dev.py test --quick    tests alone, without those that need torch or take long

Words after the command go to the demo (`--full`: draw for longer) or to pytest. A second run takes no set-up
time.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.sha256"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# The engine first: the others need it.
PACKAGES = sorted(
    ROOT.glob("packages/*/pyproject.toml"), key=lambda path: (path.parent.name != "engine", path)
)
# Extras that the tests need.
EXTRAS = {"engine": "[train]", "dataset-tools": "[edit]"}
SOURCES = [f"packages/{path.parent.name}/src" for path in PACKAGES]


def main() -> int:
    words = sys.argv[1:]
    if sys.version_info < (3, 11):
        print(f"tools/dev.py needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    if not words or words[0] not in ("demo", "test"):
        print(__doc__)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        set_up()
        return demo(words[1:]) if words[0] == "demo" else test(words[1:])
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return error.returncode or 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def set_up() -> None:
    """Make .venv and install into it, unless what is wanted is installed already."""
    wanted = fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    began = time.monotonic()
    print("setting up .venv (a few minutes, once)", flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    names = [path.parent.name for path in PACKAGES]
    ours = [f"./packages/{name}{EXTRAS.get(name, '')}" for name in names]
    editable = [word for path in ours for word in ("-e", path)]
    run([*pip, *editable, "-r", "requirements-dev.txt", "-c", "constraints.txt"])
    STAMP.write_text(wanted)
    print(f"set up in {time.monotonic() - began:.0f} s", flush=True)


def fingerprint() -> str:
    """What an installation depends on, as one hash."""
    digest = hashlib.sha256(sys.version.encode())
    sources = (
        "packages/*/pyproject.toml",
        "packages/*/hatch_build.py",
        "packages/*/src/*/native/*.c",
        "*.txt",
    )
    for path in sorted(path for pattern in sources for path in ROOT.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def demo(words: list[str]) -> int:
    """Train on the demo base and draw the grid."""
    return subprocess.call([PYTHON, "-m", "lorapipe_demo", *words], cwd=ROOT)


def test(words: list[str]) -> int:
    """Run every check, all of them even if one fails; with ``--quick`` the quick tests alone."""
    quick = "--quick" in words
    if not quick:
        find_browser()
    checks = {
        "format": ["-m", "ruff", "format", "--check", "."],
        "lint": ["-m", "ruff", "check", "."],
        "types": ["-m", "mypy", *SOURCES],
        "imports": ["tools/import_rules.py"],
        "tests": ["-m", "pytest", "-n", "2", "-q", "--durations", "25", *words],
    }
    if quick:
        checks = {"tests": checks["tests"]}
    # One thread each: two test processes share two cores.
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "MYPYPATH": os.pathsep.join(SOURCES)}
    failed = []
    for name, words_of in checks.items():
        began = time.monotonic()
        print(f"== {name}", flush=True)
        status = subprocess.call([PYTHON, *words_of], cwd=ROOT, env=settings)
        print(
            f"== {name}: {'failed' if status else 'passed'} in {time.monotonic() - began:.0f} s", flush=True
        )
        if status:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def find_browser() -> None:
    """See that the tests of HTML pages have a Chromium; what they are skipped for is said, and fails nothing."""
    find = runpy.run_path(str(ROOT / "tests/support/browser.py"))["find_browser"]
    problem = None if find() else install_browser()
    if problem is None and not find():
        problem = "there is none after installing it"
    if problem is not None:
        print(f"no Chromium, so the tests of HTML pages in a browser are skipped: {problem}", flush=True)


def install_browser() -> str | None:
    """Install Chromium where that can be done without asking; None, or what stands in the way."""
    apt = shutil.which("apt-get")
    if apt is None or os.name == "nt" or os.geteuid() != 0:
        return "install one (chromium, Chrome or Edge), or name it in CHROMIUM"
    print("installing Chromium with apt-get, for the tests of HTML pages", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        command = [apt, "-o", "DPkg::Lock::Timeout=120", *words]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=quiet,
                timeout=600,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            return f"apt-get {words[0]} failed ({last})"
    return None


def run(command: list[str | Path]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
