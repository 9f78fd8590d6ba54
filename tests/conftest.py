"""For all tests."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

from lorapipe_engine.command.progress import QUIET
from support.quick import QUICK_EXAMPLES, WHOLE_EXAMPLES, QuickLane

# A busy machine is no fault of the code: how long an example takes is not what these tests ask.
settings.register_profile("lorapipe", deadline=None, max_examples=WHOLE_EXAMPLES)
settings.register_profile("quick", deadline=None, max_examples=QUICK_EXAMPLES)
settings.load_profile("lorapipe")

# Runs of the tests are not the user's.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lorapipe-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# As training has it (see lorapipe_engine.train), before any other test multiplies: MKL reads it once.
os.environ.setdefault("MKL_CBWR", "AUTO")

# A shell starts what it puts into the background with Ctrl-C ignored, and programs pass that on to their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def loud() -> None:
    """A command that was run quietly in this process says nothing of the next test's otherwise."""
    QUIET.set(False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what needs torch or takes long")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        settings.load_profile("quick")
        config.pluginmanager.register(QuickLane(), "quick lane")
