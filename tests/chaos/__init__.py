"""`make chaos-store`: the event store under faults. What was acknowledged is there, or it is reported; every time."""
