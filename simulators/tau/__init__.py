"""Customer service domains of the tau gym: databases, tools, customers, grading and tasks."""
