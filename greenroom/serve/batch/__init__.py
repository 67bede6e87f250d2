"""Batches: many rows through agents, on Ray Data, as often as it takes and each row once."""
