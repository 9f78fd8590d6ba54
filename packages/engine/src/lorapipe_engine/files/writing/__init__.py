"""Writing: whole or not at all, under a lock, with one date for all outputs, and in folders that are held open."""
