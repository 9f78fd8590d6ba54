"""``lora-check``: what is wrong with a dataset, how bad it is, and how to mend it."""
