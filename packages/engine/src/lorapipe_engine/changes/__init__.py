"""Changes to a folder's files, journaled so that they can be taken back."""
