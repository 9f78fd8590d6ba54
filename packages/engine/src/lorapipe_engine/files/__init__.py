"""Files: written whole, read without trust, locked, hashed and cached."""
