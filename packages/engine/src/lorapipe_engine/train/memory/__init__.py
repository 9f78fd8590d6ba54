"""Whether a run fits the card, and what to change where it does not."""
