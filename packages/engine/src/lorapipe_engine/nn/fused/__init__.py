"""The frozen model with its LoRA in few, large kernels: the same mathematics, written out by hand with its backward."""
