"""Network files: written, read as the engine trains on them, started from, and drawn with."""
