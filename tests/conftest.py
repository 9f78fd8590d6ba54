"""For all tests."""

import os
import signal

# As training has it (see lorapipe_engine.train), before any other test multiplies: MKL reads it once.
os.environ.setdefault("MKL_CBWR", "AUTO")

# A shell starts what it puts into the background with Ctrl-C ignored, and programs pass that on to their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
