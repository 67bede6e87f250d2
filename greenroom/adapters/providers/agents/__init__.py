"""What all kinds that drive an agent's own client have in common."""
