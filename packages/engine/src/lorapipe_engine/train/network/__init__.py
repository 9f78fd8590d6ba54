"""The network that is trained: made, started from files, applied, written, measured."""
