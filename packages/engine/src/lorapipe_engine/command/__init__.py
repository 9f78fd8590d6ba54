"""What every command shares: options, records on pipes, one-line errors, progress."""
