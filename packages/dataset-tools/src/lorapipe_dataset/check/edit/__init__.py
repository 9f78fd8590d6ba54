"""The report's page, served to this machine alone, in which captions are edited."""
