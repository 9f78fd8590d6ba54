"""One checkpoint: cast, pruned, repaired, turned from a file into a folder and back."""
