"""`userrl chaos`: random faults injected into a real job, and an audit of what they cost."""
