"""The families of base models that can be trained, each behind :class:`~.base.Family`."""
