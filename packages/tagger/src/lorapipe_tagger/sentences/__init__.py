"""Sentences about pictures, by a model that the user runs."""
