"""Loss terms as pure functions of logprobs: policy losses, importance weights, KL, entropy."""
