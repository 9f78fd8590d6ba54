"""``lora-convert``: a network in the names and the form of another program."""
