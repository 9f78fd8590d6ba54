"""The process that a command is: what it imports, its processors and signals, and programs that it starts."""
