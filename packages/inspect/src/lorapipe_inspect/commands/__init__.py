"""One module a command of ``lora-inspect``."""
