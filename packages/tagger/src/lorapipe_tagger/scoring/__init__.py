"""From a picture file to the tags that a model gives it."""
