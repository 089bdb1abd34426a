"""Customer service with real tools: databases, tools, customers, grading and tasks of the gym `tau`."""
