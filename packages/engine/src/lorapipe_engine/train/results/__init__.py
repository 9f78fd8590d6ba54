"""What a run leaves behind: networks, state, metadata, curves."""
