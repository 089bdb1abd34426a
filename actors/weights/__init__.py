"""Both ends of a weight sync that vLLM runs: the learner's sender for GPU transports, and the receiver inside
vLLM's workers."""
