"""What lies in a dataset: found, read, decoded and measured."""
