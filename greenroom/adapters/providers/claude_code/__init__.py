"""Kind `claude-code`."""
