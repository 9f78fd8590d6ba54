"""Trainable network modules (torch). Each algorithm is one file; :mod:`.attach` puts them into a model."""
