"""``lora-clean``: captions in, cleaner captions out."""
