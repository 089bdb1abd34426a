"""The client of OpenAI-compatible endpoints: limits, retries, time-outs, and what a response may hold."""
