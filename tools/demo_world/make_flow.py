"""Make a demo base that predicts rectified flow, out of the one that predicts noise, whose text encoder and UNet go on
training.

    python tools/demo_world/make_flow.py OUT --seconds 165                       # on a GPU
    python tools/demo_world/make_flow.py OUT --seconds 20 --pictures 500 --batch 16    # a try, on a CPU

Leaves OUT/demo-flow.safetensors with a tokenizer beside it, and prints how well it obeys.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from remake import remake

if __name__ == "__main__":
    remake("flow", "lorapipe demo, flow", __doc__ or "")
