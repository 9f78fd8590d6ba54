"""Files: written whole, read without trust, locked, hashed, cached, and had from the hub."""
