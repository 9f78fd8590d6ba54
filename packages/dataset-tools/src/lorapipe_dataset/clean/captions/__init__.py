"""What is done to a caption's text."""
