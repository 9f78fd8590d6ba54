"""Make a demo base that predicts v, out of the one that predicts noise: its text encoder and UNet go on training.

    python tools/demo_world/make_v.py OUT --seconds 180                       # on a GPU
    python tools/demo_world/make_v.py OUT --seconds 20 --pictures 500 --batch 16    # a try, on a CPU

Leaves OUT/demo-v.safetensors with a tokenizer beside it, and prints how well it obeys.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from remake import remake

if __name__ == "__main__":
    remake("v", "lorapipe demo, v", __doc__ or "")
