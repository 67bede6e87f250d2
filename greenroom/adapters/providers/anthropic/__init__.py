"""Kind `anthropic`: the Messages API."""
