"""Caption cleaner, repeat folders and dataset checks."""

__version__ = "0.1.0"
