"""The world: tasks, environments and simulated users. Knows messages, never token ids; imports no other
room."""
