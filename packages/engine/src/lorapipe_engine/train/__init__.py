"""Training: needs torch, diffusers and transformers (``pip install lorapipe-engine[train]``)."""

import os
import sys

# Memory that grows in place instead of in blocks of fixed size: a fifth less of it for the same step. It is read when
# the first tensor goes to the card; a setting of the user's own stays.
if sys.platform == "linux":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
