"""How one update runs: forward, backward, captured or not."""
