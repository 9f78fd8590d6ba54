"""For all tests."""

import atexit
import os
import shutil
import signal
import tempfile

# Runs of the tests are not the user's.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lorapipe-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# As training has it (see lorapipe_engine.train), before any other test multiplies: MKL reads it once.
os.environ.setdefault("MKL_CBWR", "AUTO")

# A shell starts what it puts into the background with Ctrl-C ignored, and programs pass that on to their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
