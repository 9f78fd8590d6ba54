"""Models that are drawn with: no backward pass, half precision, and networks put in and taken out in place."""
