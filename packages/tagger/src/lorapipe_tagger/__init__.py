"""WD14 ONNX tagger for training pictures."""

__version__ = "0.1.0"
