"""Taggers: named, found, downloaded, their labels read."""
