"""Base models by name: families, the names of their layers, what a user may call them."""
