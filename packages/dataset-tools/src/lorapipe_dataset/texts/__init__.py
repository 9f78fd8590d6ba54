"""Lists of tags and counts of tokens, for all tools."""
