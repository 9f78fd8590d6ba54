"""Network files: described, their algorithms, metadata, factors and ranks."""
