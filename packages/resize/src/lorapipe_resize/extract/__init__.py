"""lora-extract: a LoRA out of two checkpoints, or out of a network of another kind."""
