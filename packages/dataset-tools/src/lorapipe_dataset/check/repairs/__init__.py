"""What a program can mend: planned, done, taken back."""
