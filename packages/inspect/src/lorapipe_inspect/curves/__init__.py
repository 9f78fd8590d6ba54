"""What runs recorded of themselves: their curves, out of ``metrics.jsonl`` and TensorBoard's event files."""
