"""Kind `amp`."""
