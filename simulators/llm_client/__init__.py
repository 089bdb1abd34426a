"""Client of OpenAI-compatible endpoints: limits, retries, timeouts, and validation of responses."""
