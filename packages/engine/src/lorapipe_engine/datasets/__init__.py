"""What is trained on: folders of pictures (subsets), how each is trained, and the pictures found in them.

Whether the folders are named on the command line (``folders``) or in a dataset file (``file``), they become the same
:class:`~.spec.DatasetSpec` values, which ``scan`` turns into pictures with captions and places in buckets.
"""
