"""``lora-grid``: cells of a plan, laid out as one picture or one page, and which network of them to take."""
