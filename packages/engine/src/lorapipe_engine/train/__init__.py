"""Training: needs torch, diffusers and transformers (the extra ``train``)."""

import os
import sys

# Memory that grows in place instead of in blocks of fixed size: a fifth less of it for the same step. It is read when
# the first tensor goes to the card; a setting of the user's own stays.
if sys.platform == "linux":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

# On a busy machine MKL cuts a product otherwise from one time to the next, and the last bits differ. This makes it one
# way always, so that a run gives the same network every time. It is read at the first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

# Triton 3.9 warns where nothing is said of this, and means to change it: products and sums in one rounding, as before.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
