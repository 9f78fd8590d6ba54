"""One algorithm a file: the module that stands in the place of a layer and trains a change of it."""
