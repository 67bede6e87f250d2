"""Recordings of each agent's client, taken apart into attempts and put through its mapping."""
