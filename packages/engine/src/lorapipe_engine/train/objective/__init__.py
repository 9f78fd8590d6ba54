"""What is learned: noise, targets, losses."""
