"""Tags that nobody named and that say nothing: said twice, implied, in every caption, or of nobody in particular.

Each module is a step, as those of the folder above.
"""
