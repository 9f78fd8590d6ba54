"""The syntax of prompts: weights, networks, choices and wildcards, and what is refused."""
