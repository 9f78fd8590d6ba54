"""``lora-repeats``: how often each concept's pictures come in an epoch, and the folders that say so."""
