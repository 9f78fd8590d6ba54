"""From tags to a caption on disk."""
