"""For all tests."""

import os

# As training has it (see lorapipe_engine.train), before any other test multiplies: MKL reads it once.
os.environ.setdefault("MKL_CBWR", "AUTO")
