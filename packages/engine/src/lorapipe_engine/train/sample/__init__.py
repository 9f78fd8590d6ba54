"""Pictures drawn while training."""
