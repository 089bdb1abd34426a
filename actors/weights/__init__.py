"""Weights on their way into running engines: the sender for GPU transports and the receiver inside vLLM."""
