"""One optimizer step: its batch, its scoring passes, its gradients and the credit that it reports."""
