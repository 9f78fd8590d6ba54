"""``lora-check --edit``: the page of the report, served to this machine alone, in which captions are edited."""
