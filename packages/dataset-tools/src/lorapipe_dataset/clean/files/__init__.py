"""Where captions are read from and written to."""
