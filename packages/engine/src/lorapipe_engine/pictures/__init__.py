"""Pictures and captions on disk: found, measured, put into buckets and batches."""
