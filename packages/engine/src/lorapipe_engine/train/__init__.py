"""Training: needs torch, diffusers and transformers (``pip install lorapipe-engine[train]``)."""
