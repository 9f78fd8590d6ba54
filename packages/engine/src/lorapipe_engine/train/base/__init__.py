"""A base model, opened: found, read, built."""
