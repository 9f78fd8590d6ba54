"""Pictures drawn while training, and those of plans."""
