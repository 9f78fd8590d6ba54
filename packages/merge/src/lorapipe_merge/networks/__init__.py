"""Networks into one network."""
