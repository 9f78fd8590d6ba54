"""Networks into a checkpoint."""
